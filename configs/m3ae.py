"""M3AE (Geng et al. 2022, arXiv 2205.14204): a masked autoencoder of both, on your own pairs.

  python main.py --config=configs/m3ae.py:variant=B/16 --workdir=workdirs/m3ae
  python main.py --config=configs/m3ae.py:variant=tiny --workdir=workdirs/m3ae  # emoji, on a CPU

It reads pairs.jsonl and tokenizer.json, or `path` and `tokenizer` of the argument; configs/pairs.py
says what they are and how to make them (with --vocab_size=30522).

From the paper (sections 3 and 4.1): one encoder over the patches that are kept and the text, as
large as a ViT (towers of depth 0 and an early fusion); three quarters of patches and of words are
hidden; a decoder of 8 blocks of 512 with normalized pixels as targets, 224 pixels, 64 tokens, batch
4,096, 1.5e-4 for each 256 of the batch, decay 0.05, 5 epochs of warm-up, 100 epochs of CC12M; text
weighs half, as in the released code. Other than theirs: hidden words are mask tokens that the
encoder reads, and are predicted from it, where theirs are left out and predicted by the decoder,
which here reads no text; text positions are learned, and a norm comes before the first block.
"""

from ml_collections import ConfigDict

from configs.menu import TINY_VARIANT, V5E_64, assemble, parse

BATCH_SIZE = 4096
EPOCH = 12_000_000
B = dict(width=768, num_heads=12, remat="cheap")
L = dict(width=1024, num_heads=16, remat="cheap")
WORDS = dict(ratio=0.75, random=0.0, stay=0.0)
VARIANTS = {
    "B/16": dict(stack=B, depth=12, image=224, patch_size=16, **V5E_64),
    "L/16": dict(stack=L, depth=24, image=224, patch_size=16, **V5E_64),
    "tiny": dict(stack=B, depth=12, **V5E_64, **TINY_VARIANT),
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "variant=B/16,image=224,path=...,tokenizer=...", optional."""
    given, variant = parse(arg, VARIANTS)
    stack, depth = variant["stack"], variant["depth"]
    return assemble(
        given,
        variant,
        total_examples=100 * EPOCH,
        batch_size=BATCH_SIZE,
        length=64,
        model=dict(
            image=dict(
                name="vit", image_size=given["image"], patch_size=variant["patch_size"],
                pool="cls", position="sincos2d", pre_norm=True, depth=0, **stack,
            ),
            text=dict(
                name="transformer", vocab_size=30_522, length=64, pool="mean", mask_token=True,
                pre_norm=True, depth=0, **stack,
            ),
            fusion=dict(name="early", depth=depth, **stack),
        ),
        objectives=dict(
            image=dict(
                name="mae", ratio=0.75, context="fused", text_mask=WORDS,
                decoder=dict(width=512, depth=8, num_heads=16, remat="cheap"),
            ),
            text=dict(name="masked_text", context="fused", image_keep=0.25, weight=0.5, **WORDS),
        ),
        optimizer=dict(
            learning_rate=1.5e-4 * BATCH_SIZE / 256,
            b2=0.95,
            weight_decay=0.05,
            clip_norm=None,
            schedule=dict(name="cosine", warmup_steps=5 * EPOCH // BATCH_SIZE),
        ),
        augment="random_resized_crop({image}, scale=(0.2, 1.0))|flip",
        words=True,
    )  # fmt: skip
