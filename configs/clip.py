"""CLIP (Radford et al. 2021, arXiv 2103.00020) with a ViT, on your own pairs.

  python main.py --config=configs/clip.py:variant=B/32 --workdir=workdirs/clip

It reads pairs.jsonl and tokenizer.json, or `path` and `tokenizer` of the argument; configs/pairs.py
says what they are and how to make them (with --vocab_size=49408). What the authors reached on their
own 400 million pairs, seen 32 times, zero-shot on ImageNet in percent (table 11), and the pod that
the recipe is meant for:

  variant  pod        ImageNet
  B/32     v5e:16x16  63.2
  B/16     v5e:16x16  68.6
  L/14     v5e:16x16  75.3

From the paper (section 2.5, tables 18 and 20): batch, steps, loss, first and greatest scale, towers
and their joint space, learning rates, warm-up, betas, epsilon, weight decay on everything but gains
and biases, 77 tokens read causally. From its released models: quick GELU, epsilon 1e-5 of norms and
one before the first block of the image tower. Other than theirs: the crop is that of open_clip, at
least 90% of the area (theirs: a random square of a resized picture); the first layer has a bias,
and the class token no position of its own (it is learned itself). Gradients are not clipped: the
paper names none.

Fewer devices: a smaller --config.global_batch_size, and --config.sharding.mesh.replica=1.
"""

from ml_collections import ConfigDict

from configs.pairs import ARGUMENTS, add_pairs
from configs.siglip import V5E, find_variant
from mm.config import parse_arg

BATCH_SIZE = 32_768
TOTAL_PAIRS = 32 * 400_000_000
LENGTH = 77
CROP = "random_resized_crop({image}, scale=(0.9, 1.0))"
# Everything but gains and biases decays.
DECAY = ((r".*/(kernel|embedding|position_embedding|cls)", 1.0),)
B = dict(width=768, depth=12, num_heads=12, remat="cheap", unroll=12)
L = dict(width=1024, depth=24, num_heads=16, remat="hidden")
TEXT_B = dict(width=512, depth=12, num_heads=8, remat="cheap", unroll=12)
TEXT_L = dict(width=768, depth=12, num_heads=12, remat="cheap")
FOR_B = dict(image=224, towers=(B, TEXT_B), embed_dim=512, learning_rate=5e-4)
VARIANTS = {
    "B/32": dict(patch_size=32, **FOR_B),
    "B/16": dict(patch_size=16, **FOR_B),
    "L/14": dict(patch_size=14, image=224, towers=(L, TEXT_L), embed_dim=768, learning_rate=4e-4),
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "variant=B/32,image=224,path=...,tokenizer=...", optional."""
    given = parse_arg(arg, variant="B/32", image=0, **ARGUMENTS)
    variant = find_variant(VARIANTS, given)
    image, text = variant["towers"]
    config = ConfigDict()
    config.pod = V5E["pod"]
    config.seed = 0
    config.total_steps = TOTAL_PAIRS // BATCH_SIZE
    config.global_batch_size = BATCH_SIZE
    config.model = dict(
        image=dict(
            name="vit",
            image_size=given["image"],
            patch_size=variant["patch_size"],
            pool="cls",
            pre_norm=True,
            activation="quick_gelu",
            norm_epsilon=1e-5,
            **image,
        ),
        text=dict(
            name="transformer",
            vocab_size=49_408,
            length=LENGTH,
            causal=True,
            pool="last",
            activation="quick_gelu",
            norm_epsilon=1e-5,
            **text,
        ),
        embed_dim=variant["embed_dim"],
        dtype="bfloat16",
    )
    config.objectives = dict(contrastive=dict(name="contrastive", kind="softmax"))
    config.optimizer = dict(
        name="adamw",
        learning_rate=variant["learning_rate"],
        b1=0.9,
        b2=0.98,
        epsilon=1e-6,
        weight_decay=0.2,
        weight_decay_factors=DECAY,
        clip_norm=None,
        schedule=dict(name="cosine", warmup_steps=2000),
    )
    config.sharding = dict(mesh=V5E["mesh"], rules=V5E["rules"])
    add_pairs(config, given, LENGTH, augment=CROP)
    return config
