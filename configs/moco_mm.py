"""MoCo (He et al. 2020, arXiv 1911.05722) across modalities: queues, on your own pairs.

  python main.py --config=configs/moco_mm.py:variant=R50 --workdir=workdirs/moco
  python main.py --config=configs/moco_mm.py:variant=tiny --workdir=workdirs/moco  # emoji, on a CPU

It reads pairs.jsonl and tokenizer.json, or `path` and `tokenizer` of the argument; configs/pairs.py
says what they are and how to make them (with --vocab_size=30522). For few devices: the queues, not
the batch, hold the negatives.

From the paper (section 3): queues of 65,536, an average of decay 0.999, temperature 0.07, batch
256, 128 dimensions, ResNet-50. The text tower is BERT-base's; targets are hard (alpha=0: ALBEF's
are soft); AdamW instead of SGD; 100 epochs of CC3M. The ResNet norms groups of channels.
"""

from ml_collections import ConfigDict

from configs.menu import TINY_VARIANT, assemble, parse

PAIRS_SEEN = 100 * 3_100_000
# 8 chips with whole parameters, which are few.
V5E_8 = dict(pod="v5e:2x4", mesh=dict(replica=1, fsdp=-1, tensor=1), rules="dp")
VARIANTS = {
    "R50": dict(depth=50, image=224, patch_size=32, **V5E_8),
    "R101": dict(depth=101, image=224, patch_size=32, **V5E_8),
    "tiny": dict(depth=18, **V5E_8, **TINY_VARIANT),
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "variant=R50,image=224,path=...,tokenizer=...", optional."""
    given, variant = parse(arg, VARIANTS)
    return assemble(
        given,
        variant,
        total_examples=PAIRS_SEEN,
        batch_size=256,
        length=32,
        model=dict(
            image=dict(
                name="resnet", image_size=given["image"], depth=variant["depth"], base_width=64,
                groups=32,
            ),
            text=dict(
                name="transformer", vocab_size=30_522, length=32, pool="mean", width=768, depth=12,
                num_heads=12, remat="cheap",
            ),
            embed_dim=128,
        ),
        objectives=dict(
            contrastive=dict(name="momentum", queue_size=65_536, alpha=0.0, init_scale=1 / 0.07)
        ),
        teacher=dict(name="average", decay=0.999),
        optimizer=dict(
            learning_rate=1e-4,
            weight_decay=0.05,
            clip_norm=None,
            frozen=("objectives/contrastive/log_scale",),
            schedule=dict(name="cosine", warmup_steps=2000),
        ),
        augment="random_resized_crop({image}, scale=(0.2, 1.0))|flip"
        "|color_jitter(0.4, 0.4, 0.4, 0.4)|grayscale(0.2)",
    )  # fmt: skip
