"""FLIP (Li et al. 2023, arXiv 2212.00794): CLIP that reads half of each picture, or a quarter.

  python main.py --config=configs/flip.py:variant=L/16,keep=0.5 --workdir=workdirs/flip
  python main.py --config=configs/flip.py:variant=L/16,phase=tune,init=workdirs/flip \\
    --workdir=workdirs/flip-tune

`keep` is the share of patches that training reads, 0.5 or 0.25. The second command is the unmasked
tuning of a finished run: 0.3 epochs that read every patch, with a hundredth of the learning rate.
Both read pairs.jsonl and tokenizer.json, or `path` and `tokenizer` of the argument;
configs/pairs.py says what they are and how to make them (with --vocab_size=30522). What the authors
reached on LAION-400M, seen 32 times with keep=0.5 and tuned, zero-shot on ImageNet in percent
(table 2), and the pod that the recipe is meant for:

  variant  pod        ImageNet
  B/16     v5e:16x16  68.0
  L/16     v5e:16x16  74.3

From the paper's code (facebookresearch/flip, configs/default.py): towers with fixed positions of
patches and their mean, 32 tokens, batch, pairs seen, learning rate (4e-6 for each 256 of the
batch), warm-up, betas, weight decay (on token embeddings, too), crop. Other than theirs: no class
token beside the mean; padding is masked and the last token pooled (theirs: the first).

Fewer devices: a smaller --config.global_batch_size, and --config.sharding.mesh.replica=1.
"""

from ml_collections import ConfigDict

from configs.clip import TEXT_B, TEXT_L, B, L
from configs.pairs import ARGUMENTS, add_pairs
from configs.siglip import V5E, find_variant
from mm.config import BadInput, parse_arg

BATCH_SIZE = 65_536
EPOCH = 1_281_167  # pairs: the paper's code counts in epochs of ImageNet
WARMUP_STEPS = 20 * EPOCH // BATCH_SIZE
# Epochs, learning rate for each 256 of the batch
PHASES = {"train": (10_000, 4e-6), "tune": (100, 4e-8)}
LENGTH = 32
CROP = "random_resized_crop({image}, scale=(0.5, 1.0))|flip"
VARIANTS = {
    "B/16": dict(patch_size=16, image=224, towers=(B, TEXT_B), embed_dim=512),
    "L/16": dict(patch_size=16, image=224, towers=(L, TEXT_L), embed_dim=768),
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "variant=L/16,keep=0.5,phase=train,path=...,tokenizer=...", optional.

    And `init`, the workdir of the run that phase=tune begins with.
    """
    given = parse_arg(
        arg, variant="L/16", image=0, keep=0.5, phase="train", init="workdirs/flip",
        **ARGUMENTS,
    )  # fmt: skip
    if given["phase"] not in PHASES:
        raise BadInput(f"config argument phase={given['phase']}: have {list(PHASES)}")
    variant, tune = find_variant(VARIANTS, given), given["phase"] == "tune"
    epochs, learning_rate = PHASES[given["phase"]]
    image, text = variant["towers"]
    config = ConfigDict()
    config.pod = V5E["pod"]
    config.seed = 0
    config.total_steps = epochs * EPOCH // BATCH_SIZE
    config.global_batch_size = BATCH_SIZE
    if tune:
        config.model_init = dict(path=given["init"])
    config.model = dict(
        image=dict(
            name="vit",
            image_size=given["image"],
            patch_size=variant["patch_size"],
            pool="mean",
            position="sincos2d",
            activation="gelu_tanh",
            **image,
        ),
        text=dict(
            name="transformer",
            vocab_size=30_522,
            length=LENGTH,
            pool="last",
            activation="gelu_tanh",
            **text,
        ),
        embed_dim=variant["embed_dim"],
        dtype="bfloat16",
    )
    if tune:  # twice the tokens or more: the pod has no room for what is kept otherwise
        config.model.image.remat = "full"
    config.objectives = dict(
        contrastive=dict(
            name="contrastive", kind="softmax", image_keep=1.0 if tune else given["keep"]
        )
    )
    config.optimizer = dict(
        name="adamw",
        learning_rate=learning_rate * BATCH_SIZE / 256,
        b1=0.9,
        b2=0.95,
        weight_decay=0.2,
        weight_decay_factors=((r".*/(kernel|embedding)", 1.0),),
        clip_norm=None,
        schedule=dict(name="cosine", warmup_steps=WARMUP_STEPS),
    )
    config.sharding = dict(mesh=V5E["mesh"], rules=V5E["rules"])
    add_pairs(config, given, LENGTH, augment=CROP)
    return config
