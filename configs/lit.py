"""LiT (Zhai et al. 2022, arXiv 2111.07991): a text tower for an image tower that stays as it is.

  python main.py --config=configs/lit.py:variant=B/16,init=workdirs/siglip --workdir=workdirs/lit

The image tower and its projection are those of the latest checkpoint in `init`, a run of
configs/siglip.py of the same variant and image size; they are not trained, have no moments, and no
gradient of theirs is computed. It reads pairs.jsonl and tokenizer.json, or `path` and `tokenizer`
of the argument; configs/pairs.py says what they are and how to make them (with --vocab_size=32000).
What the authors reached with image towers trained on ImageNet-21k, text towers of BERT's weights,
YFCC100M and CC12M, zero-shot on ImageNet in percent (their README), and the pod that the recipe is
meant for:

  variant  pod        ImageNet
  B/16     v5e:8x8    73.9
  L/16     v5e:16x16  75.7

From the authors' code (big_vision, configs/proj/image_text/lit_coco.py): learning rate, 3% of
warm-up, cosine, clipping, first scale 10, 16 tokens; from its notes 60k steps. From the paper: the
batch for public data and the loss. From SigLIP: b2 and the weight decay. Other than theirs: the
text tower starts fresh, and the image tower knows captions already.

Fewer devices: a smaller --config.global_batch_size, and --config.sharding.mesh.replica=1.
"""

from ml_collections import ConfigDict

from configs.pairs import ARGUMENTS, add_pairs
from configs.siglip import VARIANTS as SIGLIP
from configs.siglip import find_variant, make_model
from mm.config import parse_arg

BATCH_SIZE = 16_384
TOTAL_STEPS = 60_000
LENGTH = 16
LOCKED = ("model/image/.*", "model/image_projection/.*")
VARIANTS = {"B/16": {**SIGLIP["B/16"], "pod": "v5e:8x8"}, "L/16": SIGLIP["L/16"]}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "variant=B/16,image=224,init=WORKDIR,path=...,tokenizer=...", optional."""
    given = parse_arg(
        arg, variant="B/16", image=0, init="workdirs/siglip", **ARGUMENTS,
    )  # fmt: skip
    variant = find_variant(VARIANTS, given)
    config = ConfigDict()
    config.pod = variant["pod"]
    config.seed = 0
    config.total_steps = TOTAL_STEPS
    config.global_batch_size = BATCH_SIZE
    config.model_init = dict(path=given["init"], parameters=LOCKED)
    config.model = make_model(variant, given["image"])
    config.model.text.length = LENGTH
    config.objectives = dict(contrastive=dict(name="contrastive", kind="softmax", init_scale=10.0))
    config.optimizer = dict(
        name="adamw",
        learning_rate=1e-3,
        b2=0.95,
        weight_decay=0.1,
        frozen=LOCKED,
        moment_dtype="bfloat16",
        clip_norm=1.0,
        schedule=dict(name="cosine", warmup_steps=TOTAL_STEPS * 3 // 100),
    )
    config.sharding = dict(mesh=variant["mesh"], rules=variant["rules"])
    add_pairs(config, given, LENGTH)
    return config
