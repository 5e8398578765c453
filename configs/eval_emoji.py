"""The quick start judged as classifiers are: by the names of groups and of concepts, and by probes.

  python -m data.classes --field=label --output=.data/emoji/labels.json \
    '{"name": "tfds", "dataset": "emoji", "data_dir": ".data", "split": "seen+unseen"}'
  python main.py --mode=eval --config=configs/eval_emoji.py --workdir=workdirs/quickstart

Groups are the eight of the pool's pictures, under names that a text tower can read; concepts are
all labels of both pools, so that one that no vendor drew in training has 1,643 rivals. The config's
argument `labels=PATH` is another place for their file. Each is asked by the name alone and by the
mean of several templates (`_ensemble`). `data=digits` or `data=mnist` judges it by handwritten
digits instead, which it has never seen. docs/evaluation.md has the results.
"""

from ml_collections import ConfigDict

from configs.classify import DIGITS as CLASSES
from configs.finetune import TEMPLATES
from configs.quickstart import EMOJI
from configs.quickstart import get_config as quickstart
from mm.config import BadInput, parse_arg

GROUPS = {
    "smileys and emotion": ("smileys-emotion",),
    "people and body": ("people-body",),
    "animals and nature": ("animals-nature",),
    "food and drink": ("food-drink",),
    "travel and places": ("travel-places",),
    "activities": (),
    "objects": (),
    "symbols": (),
}
DIGITS = {"digits": "digits", "mnist": "mnist_5k"}  # argument -> data set
METHODS = {name: dict(name=name) for name in ("few_shot", "linear_probe", "knn")}


def get_config(arg: str = "") -> ConfigDict:
    """The quick start with other evaluators."""
    given = parse_arg(arg, labels=".data/emoji/labels.json", data="emoji")
    config = quickstart()
    config.evals = on_digits(given["data"]) if given["data"] != "emoji" else on_emoji(given)
    config.checkpoint.keep_best = None
    return config


def on_digits(data: str) -> dict:
    """The names of digits, and probes of them."""
    if data not in DIGITS:
        raise BadInput(f"config argument data={data}: have {['emoji', *DIGITS]}")
    digits = EMOJI | dict(dataset=DIGITS[data])
    given = dict(
        source=dict(split="test", **digits),
        preprocess='decode|resize(48)|caption("label")|tokenize("emoji", 24)'
        f'|label("label", classes="{CLASSES}")',
        batch_size=512,
    )
    return {
        f"{data}_names": dict(name="zero_shot", **given),
        f"{data}_probes": dict(
            name="probes", train=dict(split="train", **digits), methods=METHODS, **given
        ),
    }


def on_emoji(given: dict) -> dict:
    """The names of groups and of concepts, and probes of groups."""
    names = tuple(name for pair in GROUPS.items() for name in (pair[1] or (pair[0],)))
    train = dict(split="train", only=dict(group=names), **EMOJI)
    group, concept = (
        f'decode|resize(48)|caption("{field}")|tokenize("emoji", 24)'
        f'|label("{field}", classes={classes!r})'
        for field, classes in (("group", GROUPS), ("label", given["labels"]))
    )
    evals = {}
    for split in ("seen", "unseen"):
        pool = dict(source=dict(split=split, **EMOJI), batch_size=512)
        for name, ops in (("group", group), ("concept", concept)):
            zero_shot = dict(name="zero_shot", preprocess=ops, **pool)
            evals[f"{split}_{name}"] = zero_shot
            evals[f"{split}_{name}_ensemble"] = dict(zero_shot, templates=TEMPLATES)
        evals[f"{split}_probes"] = dict(
            name="probes", preprocess=group, train=train, methods=METHODS, **pool
        )
    return evals
