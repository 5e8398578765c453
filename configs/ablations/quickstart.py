"""The quick start's recipe, judged without looking at `seen` and `unseen`.

  python main.py --config=configs/ablations/quickstart.py --workdir=workdirs/arm --config.KEY=VALUE

Trains on six vendors and a part of the concepts. `seen` is a seventh vendor's pictures of these
concepts, `unseen` its pictures of subgroups that training has from no vendor: harder than the
data set's own `unseen`, where a held-out concept has others of its subgroup in training.
"""

from ml_collections import ConfigDict

from configs.quickstart import EMOJI
from configs.quickstart import get_config as quickstart

VENDOR = {"vendor": "fluent-emoji-flat"}
SUBGROUPS = {
    "subgroup": (
        "animal-bird",
        "face-neutral-skeptical",
        "food-fruit",
        "household",
        "office",
        "sport",
        "transport-air",
    )
}


def get_config() -> ConfigDict:
    """The recipe with the other sources."""
    config = quickstart()
    config.total_steps = 500
    config.input.source = dict(split="train", exclude={**VENDOR, **SUBGROUPS}, **EMOJI)
    config.evals.seen.source = dict(split="train", only=VENDOR, exclude=SUBGROUPS, **EMOJI)
    config.evals.unseen.source = dict(split="train", only={**VENDOR, **SUBGROUPS}, **EMOJI)
    for evaluation in config.evals.values():
        evaluation.every_steps = None
    return config
