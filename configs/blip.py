"""BLIP (Li et al. 2022, arXiv 2201.12086): contrast, matching and captions, on your own pairs.

  python main.py --config=configs/blip.py:variant=B/16 --workdir=workdirs/blip
  python main.py --config=configs/blip.py:variant=tiny --workdir=workdirs/blip  # emoji, on a CPU

It reads pairs.jsonl and tokenizer.json, or `path` and `tokenizer` of the argument; configs/pairs.py
says what they are and how to make them (with --vocab_size=30522). Captions are not filtered.

From the paper (sections 3.1, 4.1 and its appendix): three losses of weight 1: contrast with queues
of 57,600 and an average of decay 0.995, matching with hard negatives, captions with label smoothing
0.1; ViT at 224 pixels, batches of 2,880 (B) and 2,400 (L), 20 epochs of 129M pairs, 3e-4 (B) and
2e-4 (L), decay 0.05. Other than theirs: the encoder that reads the image is 6 blocks over 6 of text
and not the text encoder with cross-attention, the decoder shares words and nothing else with it,
batches are 2,880 for L as well, the rate falls by a cosine, and nothing starts from ImageNet or
BERT; no RandAugment, norms come first, without dropout; texts and fused texts are pooled by their
mean ([CLS] there) and have 32 tokens (30 there).
"""

from ml_collections import ConfigDict

from configs.menu import TINY_VARIANT, V5E_32, assemble, parse

EPOCH = 129_000_000
B = dict(width=768, depth=12, num_heads=12, remat="cheap")
L = dict(width=1024, depth=24, num_heads=16, remat="hidden")
TEXT = dict(width=768, num_heads=12, remat="cheap")
VARIANTS = {
    "B/16": dict(image=224, patch_size=16, tower=B, learning_rate=3e-4, **V5E_32),
    "L/16": dict(image=224, patch_size=16, tower=L, learning_rate=2e-4, **V5E_32),
    "tiny": dict(tower=B, learning_rate=3e-4, **V5E_32, **TINY_VARIANT),
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "variant=B/16,image=224,path=...,tokenizer=...", optional."""
    given, variant = parse(arg, VARIANTS)
    return assemble(
        given,
        variant,
        total_examples=20 * EPOCH,
        batch_size=2880,
        length=32,
        model=dict(
            image=dict(
                name="vit", image_size=given["image"], patch_size=variant["patch_size"],
                pool="cls", **variant["tower"],
            ),
            text=dict(
                name="transformer", vocab_size=30_522, length=32, pool="mean", depth=6, **TEXT,
            ),
            fusion=dict(name="cross", depth=6, **TEXT),
            decoder=dict(
                name="transformer", memory="image", inputs="shared_words", head="tied", depth=12,
                **TEXT,
            ),
            embed_dim=256,
            image_projection="affine",
            text_projection="affine",
        ),
        objectives=dict(
            contrastive=dict(
                name="momentum", queue_size=57_600, alpha=0.4, alpha_warmup_steps=2 * EPOCH // 2880,
                max_scale=1000.0,
            ),
            matching=dict(name="matching"),
            captioning=dict(name="captioning", label_smoothing=0.1),
        ),
        teacher=dict(name="average", decay=0.995),
        optimizer=dict(
            learning_rate=variant["learning_rate"],
            weight_decay=0.05,
            weight_decay_factors=((".*", 1.0),),
            clip_norm=None,
            schedule=dict(name="cosine", warmup_steps=3000),
        ),
        augment="random_resized_crop({image}, scale=(0.2, 1.0))|flip",
    )  # fmt: skip
