"""ViLBERT (Lu et al. 2019, arXiv 1908.02265): two streams with co-attention, on your own pairs.

  python main.py --config=configs/vilbert.py:variant=B/16 --workdir=workdirs/vilbert
  python main.py --config=configs/vilbert.py:variant=tiny --workdir=workdirs/vilbert  # emoji, a CPU

It reads pairs.jsonl and tokenizer.json, or `path` and `tokenizer` of the argument; configs/pairs.py
says what they are and how to make them (with --vocab_size=30522).

From the paper (section 3): a text stream of BERT-base, of which the last 6 blocks follow one of
co-attention each; losses: masked text and masked image that see each other, and whether the pair
belongs together; batch 512, 10 epochs of 3.1M pairs, 1e-4 with warm-up. Other than theirs: patches
of a ViT, trained with the rest, instead of regions of a frozen detector, with codes of our
tokenizer for its classes; both streams are 768 wide with 12 heads (theirs: 1,024 with 8 for regions
and for co-attention); a pair is told by both means side by side (theirs: the product of both first
tokens) among two others (one); norms come first; no dropout.
"""

from ml_collections import ConfigDict

from configs.clip import DECAY
from configs.menu import TINY_VARIANT, V5E_16, assemble, parse

PAIRS_SEEN = 10 * 3_100_000
STACK = dict(width=768, num_heads=12, remat="cheap")
VARIANTS = {
    "B/16": dict(image=224, patch_size=16, **V5E_16),
    "tiny": V5E_16 | TINY_VARIANT,
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "variant=B/16,image=224,path=...,tokenizer=...", optional."""
    given, variant = parse(arg, VARIANTS)
    return assemble(
        given,
        variant,
        total_examples=PAIRS_SEEN,
        batch_size=512,
        length=36,
        model=dict(
            image=dict(
                name="vit", image_size=given["image"], patch_size=variant["patch_size"],
                pool="cls", mask_token=True, depth=6, **STACK,
            ),
            text=dict(
                name="transformer", vocab_size=30_522, length=36, pool="mean", mask_token=True,
                depth=6, **STACK,
            ),
            fusion=dict(name="coattention", depth=6, **STACK),
        ),
        objectives=dict(
            text=dict(name="masked_text", context="fused", image_replace=0.15),
            image=dict(
                name="beit", context="fused", ratio=0.15, num_codes=8192, text_mask=dict(ratio=0.15)
            ),
            matching=dict(name="matching", temperature=None),
        ),
        optimizer=dict(
            learning_rate=1e-4,
            weight_decay=0.01,
            weight_decay_factors=DECAY,
            schedule=dict(
                name="constant", warmup_steps=6000, cooldown_steps=PAIRS_SEEN // 512 - 6000
            ),
        ),
        augment="random_resized_crop({image}, scale=(0.5, 1.0))|flip",
        words=True,
    )  # fmt: skip
