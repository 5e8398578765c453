"""Two towers and the sigmoid loss (SigLIP, Zhai et al. 2023) on 299,159 icons and their names.

  python -m data.builders.icons --data_dir=.data

installs the icons and prints the commands that prepare them and train the tokenizer; then

  python main.py --config=configs/icons.py --workdir=workdirs/icons
  python main.py --config=configs/icons.py:variant=tiny --workdir=workdirs/icons-tiny

The first is for one accelerator or a few, 32 epochs; `tiny` runs on a laptop's CPU. Two pools test
what was never trained on, each with one picture of a concept: `held_out` are new names in known
hands (1,459 icons), `unseen_sets` all that nine other authors drew (10,000 icons; most of what they
draw has a known name). Icons of one concept are positives of each other, whoever draws them, and
pictures are not flipped: left and right are names. No number has been tuned.

`data=openclipart` in the argument trains on clip art with titles and keywords instead, 2,600
drawings and 300 of held-out titles; it takes two commands before:

  python -m data.builders.openclipart --data_dir=.data
  python -m data.tokenizers.train --dataset=openclipart --data_dir=.data
"""

from ml_collections import ConfigDict

from data.builders.icons import DATASETS
from mm.config import BadInput, parse_arg

DATA_DIR = ".data"
PATCH_SIZE, LENGTH, IMAGE_SIZE = 8, 16, 64
POOLS = {"icons": ("held_out", "unseen_sets"), "openclipart": ("held_out",)}  # of each data set
VARIANTS = {
    "S": dict(
        image=dict(width=384, depth=8, num_heads=6),
        text=dict(width=384, depth=4, num_heads=6),
        batch_size=2048,
        total_steps=4700,
        warmup_steps=500,
        eval_every_steps=500,
        dtype="bfloat16",
    ),
    "tiny": dict(
        image=dict(width=128, depth=2, num_heads=4),
        text=dict(width=128, depth=1, num_heads=4),
        batch_size=256,
        total_steps=1000,
        warmup_steps=50,
        eval_every_steps=500,
        dtype="float32",
    ),
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "variant=S,data=icons", "variant=tiny,data=openclipart"; optional."""
    given = parse_arg(arg, variant="S", data="icons")
    for key, have in (("variant", VARIANTS), ("data", POOLS)):
        if given[key] not in have:
            raise BadInput(f"config argument {key}={given[key]}: have {list(have)}")
    variant, data = VARIANTS[given["variant"]], given["data"]
    config = ConfigDict()
    config.seed = 0
    config.total_steps = variant["total_steps"]
    config.global_batch_size = variant["batch_size"]
    config.model = dict(
        image=dict(
            name="vit", image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, pool="map", **variant["image"]
        ),
        text=dict(
            name="transformer", vocab_size=4096, length=LENGTH, pool="last", **variant["text"]
        ),
        embed_dim=variant["image"]["width"],
        dtype=variant["dtype"],
    )  # fmt: skip
    config.objectives = dict(contrastive=dict(name="contrastive", kind="sigmoid"))
    config.optimizer = dict(
        name="adamw",
        learning_rate=1e-3,
        b2=0.95,
        weight_decay=0.1,
        schedule=dict(name="cosine", warmup_steps=variant["warmup_steps"]),
    )
    config.sharding = dict(mesh=dict(replica=1, fsdp=-1, tensor=1), rules="dp")
    to_tensors = f'tokenize("{data}", {LENGTH})|group("concept")'
    config.input = dict(
        source=_source(data, "train"),
        preprocess=f"decode|random_resized_crop({IMAGE_SIZE}, scale=(0.6, 1.0), ratio=(0.8, 1.25))"
        f'|caption("label", "tags", max_tags=2)|{to_tensors}',
    )
    config.evals = {
        split: dict(
            name="retrieval",
            source=_source(data, split),
            preprocess=f'decode|resize({IMAGE_SIZE})|caption("label")|{to_tensors}',
            batch_size=512,
            every_steps=variant["eval_every_steps"],
        )
        for split in POOLS[data]
    }
    config.checkpoint = dict(
        every_steps=variant["eval_every_steps"],
        keep_last=2,
        keep_best="held_out/text_to_image/recall@1",
    )
    config.log = dict(every_steps=20)
    return config


def _source(data: str, split: str) -> dict:
    dataset = DATASETS[split][0] if data == "icons" else data  # a data set for each split of icons
    return dict(name="tfds", dataset=dataset, data_dir=DATA_DIR, split=split)
