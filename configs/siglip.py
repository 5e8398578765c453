"""SigLIP (Zhai et al. 2023, arXiv 2303.15343): two towers and the sigmoid loss, on your own pairs.

  python main.py --config=configs/siglip.py:variant=L/16 --workdir=workdirs/siglip

It reads pairs.jsonl and tokenizer.json, or `path` and `tokenizer` of the argument; configs/pairs.py
says what they are and how to make them (with --vocab_size=32000). What the authors reached with
WebLI (their own pairs; 40 billion seen), zero-shot, in percent (SigLIP 2, arXiv 2502.14786, table
1):

  variant     image  pod         mesh                 ImageNet  COCO text to image, image to text
  B/16        224    v5e:16x16   replica 8, fsdp 32   76.2      47.2  64.5
  L/16        256    v5e:16x16   replica 8, fsdp 32   80.5      51.2  69.6
  So400m/14   384    v5p:8x8x8   replica 64, fsdp 8   83.2      52.0  70.2
  g/14        224    v5p:8x8x8   replica 64, fsdp 8   84.5      55.7  72.5

The last row is SigLIP 2's g-opt/16 at 256 pixels, which has these towers, as many tokens and more
losses than this one: an upper bound. `image` sets another size: what is left over by the patches
is left out, as by the authors' convolution, so that 384 pixels in patches of 14 are 378.

From the paper and its authors' code: loss, first scale and bias, towers and activation, map pooling
of the picture, the last token's of the text, 64 tokens, 32k words, pictures squashed to a square,
batch 32,768, learning rate, b2, first moment in bfloat16, gradients clipped to norm 1, weight decay
(1e-4, which they do not multiply by the learning rate, so 0.1 here). From SigLIP 2: 20k steps of
warm-up, cosine, 40 billion pairs. Other than theirs: AdamW instead of their Adafactor; both towers
have a projection without bias (theirs: the text's, with one); padding is masked.

Fewer devices: a smaller --config.global_batch_size, and --config.sharding.mesh.replica=1.
"""

from ml_collections import ConfigDict

from configs.pairs import ARGUMENTS, add_pairs
from mm.config import BadInput, parse_arg

BATCH_SIZE = 32_768
TOTAL_PAIRS = 40_000_000_000
LENGTH = 64
# What is kept for the backward pass is what fits on the pod: docs/plans.md. Without a scan
# (unroll = depth) a step of B/16 takes a seventh less, and compiles in two minutes instead of one.
B = dict(width=768, depth=12, num_heads=12, mlp_dim=3072, remat="cheap", unroll=12)
L = dict(width=1024, depth=24, num_heads=16, mlp_dim=4096, remat="hidden")
# Shape-optimized (Alabdulmohsin et al. 2023, arXiv 2305.13035).
SO400M = dict(width=1152, depth=27, num_heads=16, mlp_dim=4304, remat="cheap")
G = dict(width=1536, depth=40, num_heads=16, mlp_dim=6144, remat="cheap")
# So split, each device keeps a multiple of 8 rows of a parameter, and the compiler sends gradients
# in parts. Over all chips, or with rows that it has to fill up, it sends more: docs/scale.md.
V5E = dict(pod="v5e:16x16", mesh=dict(replica=8, fsdp=-1, tensor=1), rules="hsdp")
V5P = dict(pod="v5p:8x8x8", mesh=dict(replica=64, fsdp=-1, tensor=1), rules="hsdp")
VARIANTS = {
    "B/16": dict(image=224, patch_size=16, towers=(B, B), **V5E),
    "L/16": dict(image=256, patch_size=16, towers=(L, L), **V5E),
    "So400m/14": dict(image=384, patch_size=14, towers=(SO400M, SO400M), **V5P),
    "g/14": dict(image=224, patch_size=14, towers=(G, SO400M), **V5P),
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "variant=B/16,image=224,path=...,tokenizer=...", image=0: as above."""
    given = parse_arg(arg, variant="B/16", image=0, **ARGUMENTS)
    variant = find_variant(VARIANTS, given)
    config = ConfigDict()
    config.pod = variant["pod"]
    config.seed = 0
    config.total_steps = TOTAL_PAIRS // BATCH_SIZE
    config.global_batch_size = BATCH_SIZE
    config.model = make_model(variant, given["image"])
    config.objectives = dict(contrastive=dict(name="contrastive", kind="sigmoid"))
    config.optimizer = dict(
        name="adamw",
        learning_rate=1e-3,
        b2=0.95,
        weight_decay=0.1,
        moment_dtype="bfloat16",
        clip_norm=1.0,
        schedule=dict(name="cosine", warmup_steps=20_000),
    )
    config.sharding = dict(mesh=variant["mesh"], rules=variant["rules"])
    add_pairs(config, given, LENGTH)
    return config


def named_variant(variants: dict[str, dict], given: dict) -> dict:
    """The variant that is given."""
    if given["variant"] not in variants:
        raise BadInput(f"config argument variant={given['variant']}: have {list(variants)}")
    return variants[given["variant"]]


def find_variant(variants: dict[str, dict], given: dict) -> dict:
    """`named_variant`; sets given["image"] to what the model and the input need."""
    variant = named_variant(variants, given)
    image = given["image"] or variant["image"]
    given["image"] = image - image % variant["patch_size"]
    return variant


def make_model(variant: dict, image_size: int) -> dict:
    """The towers of a variant."""
    image, text = variant["towers"]
    return dict(
        image=dict(
            name="vit",
            image_size=image_size,
            patch_size=variant["patch_size"],
            pool="map",
            activation="gelu_tanh",
            **image,
        ),
        text=dict(
            name="transformer",
            vocab_size=32_000,
            length=LENGTH,
            pool="last",
            activation="gelu_tanh",
            **text,
        ),
        embed_dim=image["width"],
        dtype="bfloat16",
    )
