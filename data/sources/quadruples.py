"""Rows with two pictures and two captions, as pairs: what Winoground's scores are asked of."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.sources import Feature, Source, open_source
from mm import registry
from mm.config import BadInput


@registry.register("source", "quadruples")
def quadruples(
    *,
    of: Mapping,
    images: tuple[str, ...] = ("image_0", "image_1"),
    captions: tuple[str, ...] = ("caption_0", "caption_1"),
) -> Source:
    """Row k of a table is examples 2 k and 2 k + 1: its first picture and caption, and its second.

    of: a source that takes `image_key` and `caption_key`, as dict(name="jsonl", path=...); images,
    captions: its columns (by default Winoground's). Fields are `image` and `caption`.
    """
    if len(images) != 2 or len(captions) != 2:
        raise BadInput(f"images={images}, captions={captions}: expected two columns each")
    keys = zip(images, captions, strict=True)
    return _Quadruples(
        [open_source({**of, "image_key": i, "caption_key": c}, "of") for i, c in keys]
    )


class _Quadruples:
    """The examples of two sources of the same length in turns."""

    def __init__(self, halves: Sequence[Source]):
        self._halves = halves
        self.features: Mapping[str, Feature] = {
            key: halves[0].features[key] for key in ("image", "caption")
        }

    def __len__(self) -> int:
        return 2 * len(self._halves[0])

    def read(self, ids: np.ndarray, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
        keys = tuple(self.features) if keys is None else keys
        return [self._halves[i % 2].read(np.array([i // 2]), keys)[0] for i in ids.tolist()]
