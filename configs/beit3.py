"""BEiT-3 (Wang et al. 2023, arXiv 2208.10442): shared attention, own experts, on your own pairs.

  python main.py --config=configs/beit3.py:variant=B/16 --workdir=workdirs/beit3
  python main.py --config=configs/beit3.py:variant=tiny --workdir=workdirs/beit3  # emoji, on a CPU

It reads pairs.jsonl and tokenizer.json, or `path` and `tokenizer` of the argument; configs/pairs.py
says what they are and how to make them (with --vocab_size=64010).

From the paper (section 2, table 2): one stack of blocks with the attention of both and an MLP of
each (multiway, over towers of depth 0); 40% of patches, in blocks, and half of a pair's words are
masked and predicted; the giant has 40 blocks, 1,408 wide; 14 by 14 patches of 224 pixels, batch
6,144, 1M steps, 1e-3 with 10k of warm-up, betas 0.9 and 0.98, decay 0.05, stochastic depth 0.1.
Other than theirs: pairs alone, without lone pictures and texts; codes of our tokenizer for BEiT
v2's; no third expert in the last blocks; no norms within attention and MLP (Sub-LN), but one before
the first block.
"""

from ml_collections import ConfigDict

from configs.menu import TINY_VARIANT, V5E_64, V5E_128, assemble, parse
from configs.siglip import V5E

BATCH_SIZE, TOTAL_STEPS = 6144, 1_000_000
HIDDEN = 0.4  # of the patches
B = dict(width=768, num_heads=12, remat="cheap")
L = dict(width=1024, num_heads=16, remat="cheap")
G = dict(width=1408, num_heads=16, mlp_dim=6144, remat="hidden")
VARIANTS = {
    "B/16": dict(stack=B, depth=12, image=224, patch_size=16, **V5E_64),
    "L/16": dict(stack=L, depth=24, image=224, patch_size=16, **V5E_128),
    "g/14": dict(stack=G, depth=40, image=224, patch_size=14, **V5E),
    "tiny": dict(stack=B, depth=12, **V5E_64, **TINY_VARIANT),
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "variant=B/16,image=224,path=...,tokenizer=...", optional."""
    given, variant = parse(arg, VARIANTS)
    stack = variant["stack"]
    return assemble(
        given,
        variant,
        total_examples=TOTAL_STEPS * BATCH_SIZE,
        batch_size=BATCH_SIZE,
        length=64,
        model=dict(
            image=dict(
                name="vit", image_size=given["image"], patch_size=variant["patch_size"],
                pool="cls", mask_token=True, pre_norm=True, depth=0, **stack,
            ),
            text=dict(
                name="transformer", vocab_size=64_010, length=64, pool="mean", mask_token=True,
                pre_norm=True, depth=0, **stack,
            ),
            fusion=dict(name="multiway", depth=variant["depth"], drop_path=0.1, **stack),
        ),
        objectives=dict(
            text=dict(name="masked_text", context="fused", ratio=0.5),
            image=dict(
                name="beit", context="fused", ratio=HIDDEN, masks="patch_mask", num_codes=8192
            ),
        ),
        optimizer=dict(
            learning_rate=1e-3,
            b2=0.98,
            epsilon=1e-6,
            weight_decay=0.05,
            clip_norm=3.0,
            schedule=dict(name="cosine", warmup_steps=10_000),
        ),
        augment="random_resized_crop({image}, scale=(0.5, 1.0))|flip|color_jitter(0.4, 0.4, 0.4)",
        masks=f"|patch_mask({variant['patch_size']}, {HIDDEN}, 'block')",
        words=True,
    )  # fmt: skip
