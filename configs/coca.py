"""CoCa (Yu et al. 2022, arXiv 2205.01917): contrastive captioners, on your own pairs.

  python main.py --config=configs/coca.py:variant=B/18 --workdir=workdirs/coca
  python main.py --config=configs/coca.py:variant=tiny --workdir=workdirs/coca  # emoji, on a CPU

It reads pairs.jsonl and tokenizer.json, or `path` and `tokenizer` of the argument; configs/pairs.py
says what they are and how to make them (with --vocab_size=64000).

From the paper (sections 3.2 and 4.1, table 1): a causal text tower and, going on from its tokens,
as many blocks that read the image; captions weigh 2, contrast 1; 288 pixels in patches of 18, 64
tokens, 64k words, batch 65,536, 500k steps, 8e-4 with 2% of warm-up and a linear decay, betas 0.9
and 0.999, decay 0.01. Other than theirs: the decoder reads all image tokens instead of 256 pooled
queries, the text is pooled at its end mark instead of a [CLS] put behind it, AdamW instead of
Adafactor, crops are whole pictures squashed.
"""

from ml_collections import ConfigDict

from configs.menu import TINY_VARIANT, assemble, parse
from configs.siglip import V5P

BATCH_SIZE, TOTAL_STEPS = 65_536, 500_000
WARMUP = TOTAL_STEPS // 50
B = dict(width=768, num_heads=12, mlp_dim=3072, remat="cheap")
L = dict(width=1024, num_heads=16, mlp_dim=4096, remat="cheap")
G = dict(width=1408, num_heads=16, mlp_dim=6144, remat="hidden")
VARIANTS = {
    "B/18": dict(stack=B, depths=(12, 12), image=288, patch_size=18, **V5P),
    "L/18": dict(stack=L, depths=(24, 12), image=288, patch_size=18, **V5P),
    "g/18": dict(stack=G, depths=(40, 18), text_mlp=5632, image=288, patch_size=18, **V5P),
    "tiny": dict(stack=B, depths=(12, 12), **V5P, **TINY_VARIANT),
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "variant=B/18,image=288,path=...,tokenizer=...", optional."""
    given, variant = parse(arg, VARIANTS)
    stack, (image_depth, text_depth) = variant["stack"], variant["depths"]
    text = stack | dict(mlp_dim=variant.get("text_mlp", stack["mlp_dim"]))
    return assemble(
        given,
        variant,
        total_examples=TOTAL_STEPS * BATCH_SIZE,
        batch_size=BATCH_SIZE,
        length=64,
        model=dict(
            image=dict(
                name="vit", image_size=given["image"], patch_size=variant["patch_size"],
                pool="map", depth=image_depth, **stack,
            ),
            text=dict(
                name="transformer", vocab_size=64_000, length=64, causal=True, pool="last",
                depth=text_depth, **text,
            ),
            decoder=dict(
                name="transformer", memory="image", inputs="text_tower", depth=text_depth,
                **text,
            ),
            embed_dim=stack["width"],
        ),
        objectives=dict(
            contrastive=dict(name="contrastive", kind="softmax", weight=1.0),
            captioning=dict(name="captioning", weight=2.0),
        ),
        optimizer=dict(
            learning_rate=8e-4,
            b1=0.9,
            b2=0.999,
            weight_decay=0.01,
            moment_dtype="bfloat16",
            schedule=dict(name="constant", warmup_steps=WARMUP, cooldown_steps=49 * WARMUP),
        ),
    )  # fmt: skip
