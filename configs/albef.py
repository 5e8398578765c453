"""ALBEF (Li et al. 2021, arXiv 2107.07651): align before fuse, with momentum, on your own pairs.

  python main.py --config=configs/albef.py:variant=B/16 --workdir=workdirs/albef
  python main.py --config=configs/albef.py:variant=tiny --workdir=workdirs/albef  # emoji, on a CPU

It reads pairs.jsonl and tokenizer.json, or `path` and `tokenizer` of the argument; configs/pairs.py
says what they are and how to make them (with --vocab_size=30522).

From the paper (section 3): three losses of weight 1: contrast with queues of 65,536 and an average
of decay 0.995, soft targets that grow to 0.4 in the first epoch; matching with hard negatives;
masked text that sees the image. ViT-B/16 at 256 pixels, 6 blocks of text, 6 of text that read the
image; 256 dimensions, batch 512, 30 epochs of 14M pairs, AdamW with 1e-4 and decay 0.02, 1,000
steps of warm-up. Other than theirs: nothing starts from ImageNet or BERT, norms come first, no
RandAugment, masked words are learned from the words alone (theirs also from what the average says),
texts and fused texts are pooled by their mean ([CLS] there), negatives are drawn at temperature
0.07 from the global batch (at the learned one from a device's), and a text has 32 tokens.
"""

from ml_collections import ConfigDict

from configs.clip import DECAY
from configs.menu import TINY_VARIANT, V5E_16, assemble, parse

EPOCH = 14_000_000
STACK = dict(width=768, num_heads=12, remat="cheap")
VARIANTS = {
    "B/16": dict(image=256, patch_size=16, **V5E_16),
    "tiny": V5E_16 | TINY_VARIANT,
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "variant=B/16,image=256,path=...,tokenizer=...", optional."""
    given, variant = parse(arg, VARIANTS)
    return assemble(
        given,
        variant,
        total_examples=30 * EPOCH,
        batch_size=512,
        length=32,
        model=dict(
            image=dict(
                name="vit", image_size=given["image"], patch_size=variant["patch_size"],
                pool="cls", depth=12, **STACK,
            ),
            text=dict(
                name="transformer", vocab_size=30_522, length=32, pool="mean", mask_token=True,
                depth=6, **STACK,
            ),
            fusion=dict(name="cross", depth=6, **STACK),
            embed_dim=256,
            image_projection="affine",
            text_projection="affine",
        ),
        objectives=dict(
            contrastive=dict(
                name="momentum", queue_size=65_536, alpha=0.4, alpha_warmup_steps=EPOCH // 512,
                max_scale=1000.0,
            ),
            matching=dict(name="matching"),
            masked_text=dict(name="masked_text", context="fused", ratio=0.15),
        ),
        teacher=dict(name="average", decay=0.995),
        optimizer=dict(
            learning_rate=1e-4,
            weight_decay=0.02,
            weight_decay_factors=DECAY,
            clip_norm=None,
            schedule=dict(name="cosine", warmup_steps=1000, final=0.1),
        ),
        augment="random_resized_crop({image}, scale=(0.2, 1.0))|flip",
        words=True,
    )  # fmt: skip
