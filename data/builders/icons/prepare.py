"""How the icons are prepared: drawn, without those that are blank or there twice.

  python -m data.builders.icons --data_dir=.data
  python -m data.prepare --config=data/builders/icons/prepare.py:split=train --output=.data/icons

and likewise split=held_out and unseen_sets; the first command says all. `sets=lucide+ph` in the
argument takes some sets, `last=0.01` the first hundredth of the icons. An icon of training that
looks as one that is held out goes: sets copy from each other, under other names.
"""

from ml_collections import ConfigDict

from data.builders.icons import DATASETS, source
from mm.config import BadInput, parse_arg, suggest


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "split=train,data_dir=.data,sets=lucide+ph,last=0.01", all optional."""
    given = parse_arg(arg, split="train", data_dir=".data", sets="*", last=1.0)
    split, data_dir = given["split"], given["data_dir"]
    if split not in DATASETS:
        raise BadInput(
            f"config argument split={split}: have {list(DATASETS)}" + suggest(split, DATASETS)
        )
    config = ConfigDict()
    config.source = source(split, data_dir) | dict(
        sets=tuple(given["sets"].split("+")), last=given["last"]
    )
    config.image_key, config.caption_key = "image", "label"
    config.rules = dict()
    # Pictures that are only similar stay: two hands that draw the same are the point.
    config.duplicates = dict(bytes=True, pixels=True, pictures=False, captions=False)
    others = [other for other in DATASETS if other != split] if split == "train" else []
    config.decontaminate = dict(
        sources={other: dict(source=source(other, data_dir)) for other in others},
        max_distance=0,
        max_color_difference=8,
    )
    config.output = dict(
        format="array_record", split=split, examples_per_shard=16384, shuffle=True, seed=0
    )
    return config
