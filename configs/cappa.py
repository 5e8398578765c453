"""CapPa (Tschannen et al. 2023, arXiv 2306.07915): captioners alone, on your own pairs.

  python main.py --config=configs/cappa.py:variant=B/16 --workdir=workdirs/cappa
  python main.py --config=configs/cappa.py:variant=tiny --workdir=workdirs/cappa  # emoji, on a CPU

It reads pairs.jsonl and tokenizer.json, or `path` and `tokenizer` of the argument; configs/pairs.py
says what they are and how to make them (with --vocab_size=32000).

From the paper (section 3 and 4.1): no text tower, a decoder of half the encoder's depth and its
width, three in four captions predicted all at once from mask tokens, 224 pixels, 64 tokens, 32k
words, batch 8,192, 9 billion pairs, 1e-3 with 10,000 steps of warm-up, decay 1e-4 not multiplied by
the rate (0.1 here). Other than theirs: AdamW instead of Adafactor (whose second moment decays at
most by 0.999, as here); layers of the decoder have biases. Cap, which predicts nothing in parallel,
is --config.objectives.captioning.parallel=0.0.
"""

from ml_collections import ConfigDict

from configs.menu import TINY_VARIANT, V5E_64, V5E_128, assemble, parse

PAIRS_SEEN = 9_000_000_000
B = dict(width=768, num_heads=12, mlp_dim=3072, remat="cheap")
L = dict(width=1024, num_heads=16, mlp_dim=4096, remat="cheap")
VARIANTS = {
    "B/16": dict(stack=B, depth=12, image=224, patch_size=16, **V5E_64),
    "L/14": dict(stack=L, depth=24, image=224, patch_size=14, **V5E_128),
    "tiny": dict(stack=B, depth=12, **V5E_64, **TINY_VARIANT),
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "variant=B/16,image=224,path=...,tokenizer=...", optional."""
    given, variant = parse(arg, VARIANTS)
    stack, depth = variant["stack"], variant["depth"]
    return assemble(
        given,
        variant,
        total_examples=PAIRS_SEEN,
        batch_size=8192,
        length=64,
        model=dict(
            image=dict(
                name="vit", image_size=given["image"], patch_size=variant["patch_size"],
                pool="mean", depth=depth, **stack,
            ),
            decoder=dict(
                name="transformer", memory="image", mask_token=True, vocab_size=32_000, length=64,
                depth=depth // 2, **stack,
            ),
        ),
        objectives=dict(captioning=dict(name="captioning", parallel=0.75)),
        optimizer=dict(
            learning_rate=1e-3,
            b2=0.999,
            weight_decay=0.1,
            moment_dtype="bfloat16",
            schedule=dict(name="cosine", warmup_steps=10_000),
        ),
    )  # fmt: skip
