"""FLAVA (Singh et al. 2022, arXiv 2112.04482): five losses for one model, on your own pairs.

  python main.py --config=configs/flava.py:variant=B/16 --workdir=workdirs/flava
  python main.py --config=configs/flava.py:variant=tiny --workdir=workdirs/flava  # emoji, on a CPU

It reads pairs.jsonl and tokenizer.json, or `path` and `tokenizer` of the argument; configs/pairs.py
says what they are and how to make them (with --vocab_size=30522).

From the paper (section 3, tables in its appendix): ViT-B/16 towers of 12 blocks and a multimodal
encoder of 6 with a class token; losses of equal weight: global contrast, matching, masked image and
masked text each alone and both fused; 224 pixels, 77 tokens, batch 8,192, 150,000 steps, 1e-3 with
10,000 of warm-up, decay 0.1, 70M pairs; 768 dimensions are those of the released code (512 in the
paper). Other than theirs: pairs alone, without the steps of lone pictures and texts; codes are
of our frozen tokenizer instead of DALL-E's (8,192 of them, as there); texts are pooled by their
mean; matching reads pairs that are not masked, of which two in three are negatives, and the pooled
vector as it is.

Six losses see ten encodings of a pair: the pod is one where 64 of them fit a chip. On half of its
chips they would not; on twice as many the hard negatives, which pass by every chip, take a third of
a step (22% MFU instead of 28%).
"""

from ml_collections import ConfigDict

from configs.menu import TINY_VARIANT, V5E_128, assemble, parse

BATCH_SIZE = 8192
STACK = dict(width=768, num_heads=12, remat="hidden")
MASKED = dict(ratio=0.4, masks="patch_mask", num_codes=8192)
VARIANTS = {
    "B/16": dict(image=224, patch_size=16, **V5E_128),
    "tiny": V5E_128 | TINY_VARIANT,
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "variant=B/16,image=224,path=...,tokenizer=...", optional."""
    given, variant = parse(arg, VARIANTS)
    return assemble(
        given,
        variant,
        total_examples=150_000 * BATCH_SIZE,
        batch_size=BATCH_SIZE,
        length=77,
        model=dict(
            image=dict(
                name="vit", image_size=given["image"], patch_size=variant["patch_size"],
                pool="cls", mask_token=True, depth=12, **STACK,
            ),
            text=dict(
                name="transformer", vocab_size=30_522, length=77, pool="mean", mask_token=True,
                depth=12, **STACK,
            ),
            fusion=dict(name="early", cls_token=True, depth=6, **STACK),
            embed_dim=768,
        ),
        objectives=dict(
            contrastive=dict(name="contrastive", kind="softmax"),
            matching=dict(name="matching", temperature=None),
            masked_image=dict(name="beit", **MASKED),
            masked_text=dict(name="masked_text"),
            both_image=dict(name="beit", context="fused", text_mask=dict(ratio=0.15), **MASKED),
            both_text=dict(name="masked_text", context="fused", image_replace="patch_mask"),
        ),
        optimizer=dict(
            learning_rate=1e-3,
            weight_decay=0.1,
            schedule=dict(name="cosine", warmup_steps=10_000),
        ),
        augment="random_resized_crop({image}, scale=(0.9, 1.0))|flip",
        masks=f"|patch_mask({variant['patch_size']}, {MASKED['ratio']}, 'block')",
        words=True,
    )  # fmt: skip
