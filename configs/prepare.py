"""What `python -m data.prepare` drops, and what it writes: rules as of DataComp's basic filter.

  python -m data.prepare --config=configs/prepare.py:pairs.jsonl --output=/data/pairs

Longer captions, larger pictures, another language: `--config.rules.size.min_side=200`, or more
rules: `--config.rules='{"language": {"name": "language", "keep": ("en",)}}'`; data/prepare/rules.py
has them all. Gadre et al., "DataComp", 2023, appendix D: at least 200 pixels, at most 3:1, more
than two words and five characters; here smaller pictures and shorter captions stay.
"""

import re

from ml_collections import ConfigDict

from configs.pairs import pairs_source
from mm.config import parse_arg


def get_config(arg: str = "pairs.jsonl") -> ConfigDict:
    """arg: the path of a source, as `data.sources.guess.guess` reads it, and the names of its
    columns if they are others: "pairs.csv,image_key=URL,caption_key=TEXT"."""
    path, *names = re.split(r",(?=(?:image|caption)_key=)", arg)
    names = parse_arg(",".join(names), image_key="image", caption_key="caption")
    config = ConfigDict()
    config.source = pairs_source(names | {"path": path})
    config.image_key = "image"
    config.caption_key = "caption"
    config.fields = None  # all; ("similarity",) writes that one beside picture and caption
    config.rules = dict(
        size=dict(name="size", min_side=32),
        aspect=dict(name="aspect", max_ratio=3.0),
        caption_length=dict(name="caption_length", min_characters=3),
    )
    config.duplicates = dict(
        bytes=True,
        pixels=True,
        pictures=True,
        max_distance=4,
        max_color_difference=32,
        captions=False,
        threshold=0.8,
        ngram=4,
    )
    config.decontaminate = dict(sources=dict(), max_distance=4, max_color_difference=32)
    config.output = dict(
        format="array_record", split="train", examples_per_shard=8192, shuffle=False, seed=0
    )
    return config
