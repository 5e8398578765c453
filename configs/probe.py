"""What a checkpoint of the quick start can do beyond the retrieval that it was chosen by.

  python main.py --mode=eval --config=configs/probe.py --workdir=workdirs/quickstart
  python main.py --mode=eval --config=configs/probe.py:parts=languages,languages=de+zh --workdir=...

`parts` are some of PARTS, joined by +, or all; docs/probing.md says what each measures and takes.
winoground is not among the default: it reads what `python -m data.builders.quadruples` made. It is
the recipe of the quick start with other evaluations, so that it also trains.
"""

from ml_collections import ConfigDict

from configs.quickstart import EMOJI, TO_TENSORS
from configs.quickstart import get_config as quickstart
from mm.config import BadInput, parse_arg

DEFAULT = "representation", "explanations", "compositional", "languages", "robustness"
PARTS = (*DEFAULT, "winoground")
TOKENS = TO_TENSORS.split("|")[0]  # without the group, which only the loss reads
LANGUAGES = "de+es+fr+ru+hi+ja+zh"  # of the 27 in the field `labels`


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "parts=robustness+languages,languages=de+fr"."""
    given = parse_arg(arg, parts="+".join(DEFAULT), languages=LANGUAGES)
    parts = PARTS if given["parts"] == "all" else given["parts"].split("+")
    for part in parts:
        if part not in PARTS:
            raise BadInput(f"config argument parts={part}: have {[*PARTS, 'all']}")
    config = quickstart()
    config.evals = {}
    for part in parts:
        if part == "languages":
            for language in given["languages"].split("+"):
                config.evals[language] = on_emoji(f"labels/{language}", name="retrieval")
        elif part == "winoground":
            config.evals.winoground = dict(
                name="winoground",
                source=dict(
                    name="quadruples",
                    of=dict(name="jsonl", path=".data/quadruples/quadruples.jsonl"),
                ),
                preprocess=f'decode|resize(48)|caption("caption")|{TOKENS}',
                batch_size=512,
            )
        else:
            config.evals[part] = on_emoji(name=part)
    if "robustness" in parts:
        config.evals.robustness.update(of=dict(name="retrieval"), strengths=(1, 2, 3, 4, 5))
    config.checkpoint.keep_best = None
    return config


def on_emoji(label: str = "label", **spec) -> dict:
    """An evaluation on the vendor that training never saw."""
    return dict(
        source=dict(split="seen", **EMOJI),
        preprocess=f'decode|resize(48)|caption("{label}")|{TOKENS}',
        batch_size=512,
        **spec,
    )
