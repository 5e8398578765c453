"""A recipe small enough for a test, with dropout, token dropping and augmentation on.

Also a config file: `--config=tests/tiny.py:tokenizer=PATH`.
"""

from flax import nnx
from ml_collections import ConfigDict

from mm.config import parse_arg
from mm.models.multimodal import Multimodal

TEXTS = ["red circle", "grey square", "blue diamond", "purple cross", "yellow orange black green"]

TOWER = dict(width=16, depth=1, num_heads=2)
IMAGE = dict(name="vit", image_size=16, patch_size=8, **TOWER)
TEXT = dict(name="transformer", vocab_size=64, length=8, **TOWER)


class Sizes(nnx.Module):
    """Has what it is given: a fusion reads no more of a model than the widths of its towers."""

    def __init__(self, **sizes):
        for name, size in sizes.items():
            setattr(self, name, size)


def model(seed: int = 0, **changes) -> Multimodal:
    """One block a tower."""
    spec = dict(image=IMAGE, text=TEXT, embed_dim=16) | changes
    return Multimodal(**spec, rngs=nnx.Rngs(seed))


def get_config(arg: str = "") -> ConfigDict:
    """Two blocks a tower, width 16, 8 steps of 16 on the synthetic source.

    `tokenizer` is the path of a tokenizer.json with at most 64 tokens.
    """
    tokenizer = parse_arg(arg, tokenizer="tokenizer.json")["tokenizer"]
    tower = dict(TOWER, depth=2, dropout=0.1)
    words = f'tokenize("{tokenizer}", 8)'
    config = ConfigDict()
    config.seed = 0
    config.total_steps = 8
    config.global_batch_size = 16
    config.accumulation_steps = 1
    config.model = dict(
        image=dict(name="vit", image_size=16, patch_size=8, **tower),
        text=dict(name="transformer", vocab_size=64, length=8, **tower),
        embed_dim=16,
        fusion=None,
    )
    config.teacher, config.alternate = None, ()
    config.objectives = dict(contrastive=dict(name="contrastive", kind="sigmoid", image_keep=0.5))
    config.optimizer = dict(
        name="adamw",
        learning_rate=1e-2,
        weight_decay=0.1,
        schedule=dict(name="cosine", warmup_steps=2),
    )
    config.sharding = dict(mesh=dict(fsdp=-1), rules="dp")
    config.input = dict(
        source=dict(name="synthetic", num_examples=40, image_size=16),
        preprocess="decode|random_resized_crop(16)|flip|color_jitter(0.2)|value_range(-1, 1)"
        f'|caption("label", "tags", max_tags=2)|{words}|group("concept")',
    )
    config.evals = dict(
        held_out=dict(
            name="retrieval",
            source=dict(name="synthetic", num_examples=20, image_size=16, seed=1),
            preprocess=f'decode|resize(16)|value_range(-1, 1)|caption("label")|{words}',
            batch_size=16,
            every_steps=4,
        )
    )
    config.checkpoint = dict(
        every_steps=4, keep_last=2, keep_best="held_out/text_to_image/recall@1"
    )
    config.log = dict(every_steps=1)
    return config
