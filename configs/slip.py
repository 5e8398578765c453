"""SLIP (Mu et al. 2022, arXiv 2112.12750): CLIP and SimCLR at once, on your own pairs.

  python main.py --config=configs/slip.py:variant=B/16 --workdir=workdirs/slip
  python main.py --config=configs/slip.py:variant=tiny --workdir=workdirs/slip  # emoji, on a CPU

It reads pairs.jsonl and tokenizer.json, or `path` and `tokenizer` of the argument; configs/pairs.py
says what they are and how to make them (with --vocab_size=49408).

From the paper (sections 3 and 4): ViT-S, B and L of patch 16, CLIP's smaller text tower, a
projector of three layers of 4,096 to 256, both losses of weight 1, temperature 0.1, crops of 0.5 to
1 for contrast with text and of 0.08 to 1 with colour for the two views, batch 4,096, 25 epochs of
YFCC15M, 3e-3, betas 0.9 and 0.98, decay 0.1. Other than theirs: layer norms in the projector
instead of batch norms; no blur; the views' colours always change (theirs: 4 times in 5).
"""

from ml_collections import ConfigDict

from configs.clip import DECAY
from configs.menu import TINY_VARIANT, V5E_64, assemble, parse

BATCH_SIZE = 4096
EPOCH = 15_000_000
S = dict(width=384, depth=12, num_heads=12, remat="cheap")
B = dict(width=768, depth=12, num_heads=12, remat="cheap")
L = dict(width=1024, depth=24, num_heads=16, remat="hidden")
VIEW = (
    "random_resized_crop({image}, scale=(0.08, 1.0))|flip|color_jitter(0.4, 0.4, 0.4, 0.1)"
    "|grayscale(0.2)"
)
VIEWS = "".join(f'view("{name}", "{VIEW}")|' for name in ("one", "two"))
VARIANTS = {
    "B/16": dict(tower=B, image=224, patch_size=16, **V5E_64),
    "S/16": dict(tower=S, image=224, patch_size=16, **V5E_64),
    "L/16": dict(tower=L, image=224, patch_size=16, **V5E_64),
    "tiny": dict(tower=B, **V5E_64, **TINY_VARIANT),
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "variant=B/16,image=224,path=...,tokenizer=...", optional."""
    given, variant = parse(arg, VARIANTS)
    return assemble(
        given,
        variant,
        total_examples=25 * EPOCH,
        batch_size=BATCH_SIZE,
        length=77,
        model=dict(
            image=dict(
                name="vit", image_size=given["image"], patch_size=variant["patch_size"],
                pool="cls", **variant["tower"],
            ),
            text=dict(
                name="transformer", vocab_size=49_408, length=77, causal=True, pool="last",
                width=512, depth=12, num_heads=8, activation="quick_gelu", remat="cheap",
            ),
            embed_dim=512,
        ),
        objectives=dict(
            contrastive=dict(name="contrastive", kind="softmax"),
            simclr=dict(name="simclr", temperature=0.1, hidden=4096, out=256, layers=3),
        ),
        optimizer=dict(
            learning_rate=3e-3,
            b2=0.98,
            weight_decay=0.1,
            weight_decay_factors=DECAY,
            clip_norm=None,
            schedule=dict(name="cosine", warmup_steps=EPOCH // BATCH_SIZE, final=1 / 300),
        ),
        views=VIEWS,
        augment="random_resized_crop({image}, scale=(0.5, 1.0))",
    )  # fmt: skip
