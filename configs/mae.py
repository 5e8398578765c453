"""MAE (He et al. 2022, arXiv 2111.06377): a masked autoencoder of pictures, on your own.

  python main.py --config=configs/mae.py:variant=L/16 --workdir=workdirs/mae
  python main.py --config=configs/mae.py:variant=tiny --workdir=workdirs/mae  # emoji, on a CPU

It reads the pictures of pairs.jsonl, or of `path` of the argument, which may be a folder of
pictures; configs/pairs.py says what else. Captions need not be there.

From the paper (section 4, table 8): three quarters of the patches hidden, a decoder of 8 blocks of
512, normalized pixels, crops of 0.2 to 1 of the area and flips alone, batch 4,096, 1.5e-4 for each
256 of the batch, betas 0.9 and 0.95, decay 0.05, 40 epochs of warm-up, 1,600 epochs of ImageNet.
Other than theirs: crops are bilinear, not bicubic, and pixels are -1 to 1, not over ImageNet's
deviation of each colour, which a patch's own normalization leaves in the targets.
"""

from ml_collections import ConfigDict

from configs.menu import TINY_VARIANT, V5E_64, assemble, parse

BATCH_SIZE = 4096
EPOCH = 1_281_167
B = dict(width=768, depth=12, num_heads=12, remat="cheap")
L = dict(width=1024, depth=24, num_heads=16, remat="cheap")
H = dict(width=1280, depth=32, num_heads=16, remat="cheap")
VARIANTS = {
    "B/16": dict(tower=B, image=224, patch_size=16, **V5E_64),
    "L/16": dict(tower=L, image=224, patch_size=16, **V5E_64),
    "H/14": dict(tower=H, image=224, patch_size=14, **V5E_64),
    "tiny": dict(tower=B, **V5E_64, **TINY_VARIANT),
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "variant=B/16,image=224,path=...,tokenizer=...", optional."""
    given, variant = parse(arg, VARIANTS)
    decoder = dict(width=512, depth=8, num_heads=16, remat="cheap")
    return assemble(
        given,
        variant,
        total_examples=1600 * EPOCH,
        batch_size=BATCH_SIZE,
        length=16,
        model=dict(
            image=dict(
                name="vit", image_size=given["image"], patch_size=variant["patch_size"],
                pool="cls", position="sincos2d", **variant["tower"],
            ),
        ),
        objectives=dict(mae=dict(name="mae", ratio=0.75, decoder=decoder)),
        optimizer=dict(
            learning_rate=1.5e-4 * BATCH_SIZE / 256,
            b2=0.95,
            weight_decay=0.05,
            clip_norm=None,
            schedule=dict(name="cosine", warmup_steps=40 * EPOCH // BATCH_SIZE),
        ),
        augment="random_resized_crop({image}, scale=(0.2, 1.0))|flip",
    )  # fmt: skip
