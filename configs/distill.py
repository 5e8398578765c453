"""Distillation of a CLIP into a smaller one (CLIP-KD, Yang et al. 2024, arXiv 2307.12732).

  python main.py --config=configs/distill.py:variant=T/16 --workdir=workdirs/distill
  python main.py --config=configs/distill.py:variant=tiny --workdir=workdirs/distill  # emoji, a CPU

It reads pairs.jsonl and tokenizer.json, or `path` and `tokenizer` of the argument; configs/pairs.py
says what they are and how to make them (with --vocab_size=49408). Each line also has what a teacher
says of its picture and of its caption, `teacher_image` and `teacher_text`, lists of 512 numbers:
made once, with any model, as MobileCLIP does (Vasu et al. 2024, section 4). A teacher that is a run
of this codebase can be asked in every step instead: source="teacher" in both objectives, width left
out, and config.teacher=dict(name="checkpoint", workdir=..., model=its config.model).

From CLIP-KD (section 4.1): ViT-T/16 and S/16 with their text towers, taught by a ViT-B/16 of 512
dimensions; batch 1,024, 32 epochs of CC3M and CC12M, 1e-3, decay 0.1, 10,000 steps of warm-up;
contrast, similarities and features at once, features with weight 2,000 for the mean of 512 squared
errors of unit vectors, of images and of texts, which is 4 x 2,000 / 512 for the mean of both
cosines. Other than theirs: no loss between students and teachers (interactive contrast);
similarities have the first scale, 1 / 0.07, and not the learned ones; features pass a linear layer,
also where they are as wide. The tiny variant has no such data: the average of its own towers is its
teacher. T/16 is planned at 13% MFU: 192 numbers a token fill a TPU's matrix units badly, and a
larger batch a chip would not change it.
"""

from ml_collections import ConfigDict

from configs.menu import TINY_VARIANT, V5E_16, assemble, parse

PAIRS_SEEN = 32 * 15_000_000
TEACHER_DIM = 512
T = dict(width=192, depth=12, num_heads=3), dict(width=384, depth=12, num_heads=6)
S = dict(width=384, depth=12, num_heads=6), dict(width=384, depth=12, num_heads=6)
VARIANTS = {
    "T/16": dict(towers=T, embed_dim=512, image=224, patch_size=16, **V5E_16),
    "S/16": dict(towers=S, embed_dim=384, image=224, patch_size=16, **V5E_16),
    "tiny": dict(towers=S, embed_dim=384, **V5E_16, **TINY_VARIANT),
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "variant=T/16,image=224,path=...,tokenizer=...", optional."""
    given, variant = parse(arg, VARIANTS)
    image, text = variant["towers"]
    stored = given["variant"] != "tiny"
    source = dict(source="batch", width=TEACHER_DIM) if stored else dict(source="teacher")
    return assemble(
        given,
        variant,
        total_examples=PAIRS_SEEN,
        batch_size=1024,
        length=77,
        model=dict(
            image=dict(
                name="vit", image_size=given["image"], patch_size=variant["patch_size"],
                pool="cls", **image,
            ),
            text=dict(
                name="transformer", vocab_size=49_408, length=77, causal=True, pool="last", **text
            ),
            embed_dim=variant["embed_dim"],
        ),
        objectives=dict(
            contrastive=dict(name="contrastive", kind="softmax"),
            response=dict(name="response_distillation", **source),
            feature=dict(name="feature_distillation", weight=4 * 2000 / 512, **source),
        ),
        teacher=None if stored else dict(name="average", decay=0.99),
        optimizer=dict(
            learning_rate=1e-3,
            b2=0.98,
            epsilon=1e-6,
            weight_decay=0.1,
            clip_norm=None,
            schedule=dict(name="cosine", warmup_steps=10_000),
        ),
        augment="random_resized_crop({image}, scale=(0.9, 1.0))",
        numbers=dict(teacher_image=TEACHER_DIM, teacher_text=TEACHER_DIM) if stored else {},
    )  # fmt: skip
