"""SigLIP 2 (Tschannen et al. 2025, arXiv 2502.14786): more losses for SigLIP, on your own pairs.

  python main.py --config=configs/siglip2.py:variant=B/16 --workdir=workdirs/siglip2
  python main.py --config=configs/siglip2.py:variant=tiny --workdir=workdirs/siglip2  # emoji, a CPU

It reads pairs.jsonl and tokenizer.json, or `path` and `tokenizer` of the argument; configs/pairs.py
says what they are and how to make them (with --vocab_size=256000).

From the paper (section 2): towers, loss and schedule of SigLIP, 256 pixels, 64 tokens, 256k words,
batch 32,768, 40 billion pairs, both towers pooled by attention; beside it a decoder that writes
captions (LocCa's, of half the text tower's blocks), and over the last 20% of the steps
self-distillation of a whole picture into 8 views, weight 1, and of an average into hidden patches,
weight 0.25, both times a quarter for B and a half for L. Other than theirs: the average has decay
0.996, temperatures are DINO's, prototypes 4,096; the picture that the average sees and that with
hidden patches are whole; captions alone, without boxes.
"""

from ml_collections import ConfigDict

from configs.menu import TINY_VARIANT, V5P_128, assemble, parse
from configs.siglip import V5P
from configs.siglip import B as SIGLIP_B

BATCH_SIZE = 32_768
PAIRS_SEEN = 40_000_000_000
LOCAL = tuple(f"local{i}" for i in range(8))
LOCAL_SIZE = 96
B = SIGLIP_B | dict(unroll=1)
L = dict(width=1024, depth=24, num_heads=16, mlp_dim=4096, remat="full")
VARIANTS = {
    "B/16": dict(tower=B, weight=0.25, image=256, patch_size=16, **V5P_128),
    "L/16": dict(tower=L, weight=0.5, image=256, patch_size=16, **V5P),
    "tiny": dict(tower=B, weight=0.25, **V5P_128, **TINY_VARIANT),
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "variant=B/16,image=256,path=...,tokenizer=...", optional."""
    given, variant = parse(arg, VARIANTS)
    tower, patch = variant["tower"], variant["patch_size"]
    size = min(LOCAL_SIZE, given["image"] * 2 // 3) // patch * patch
    crop = f"random_resized_crop({size}, scale=(0.05, 0.4))|flip"
    return assemble(
        given,
        variant,
        total_examples=PAIRS_SEEN,
        batch_size=BATCH_SIZE,
        length=64,
        model=dict(
            image=dict(
                name="vit", image_size=given["image"], patch_size=variant["patch_size"],
                pool="map", activation="gelu_tanh", mask_token=True, **tower,
            ),
            text=dict(
                name="transformer", vocab_size=256_000, length=64, pool="map",
                activation="gelu_tanh", **tower,
            ),
            decoder=dict(
                name="transformer", memory="image", inputs="shared_words", head="tied",
                mask_token=True, **tower | dict(depth=tower["depth"] // 2),
            ),
            embed_dim=tower["width"],
        ),
        objectives=dict(
            contrastive=dict(name="contrastive", kind="sigmoid"),
            captioning=dict(name="captioning", parallel=0.5),
            self_distillation=dict(
                name="self_distillation", views=LOCAL, view_size=size, replace=0.5,
                patch_weight=0.25, prototypes=4096, hidden=2048, bottleneck=256,
                weight=variant["weight"], from_step=int(0.8 * PAIRS_SEEN / BATCH_SIZE),
            ),
        ),
        teacher=dict(name="average", decay=0.996),
        optimizer=dict(
            learning_rate=1e-3,
            b2=0.95,
            weight_decay=0.1,
            moment_dtype="bfloat16",
            clip_norm=1.0,
            schedule=dict(name="cosine", warmup_steps=20_000),
        ),
        views="".join(f'view("{name}", "{crop}")|' for name in LOCAL),
    )  # fmt: skip
