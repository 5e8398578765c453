"""Keeps records in memory once read, their pictures decoded."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.sources import Feature, Source, first_whole
from data.sources.pictures import decode
from mm.config import BadInput


class InMemory:
    """`source`, each record read and decoded once. For sets of small pictures, all of one size.

    Decoding a 64 x 64 PNG takes longer than all its augmentation, and 10,000 such take 120 MB.
    Pictures are uint8 [h, w, 3]. The memory fills as examples are first asked for, so opening costs
    nothing.
    """

    def __init__(self, source: Source):
        self._source = source
        self._records: dict[tuple[str, ...], dict[int, dict[str, Any]]] = {}
        self._images = [key for key, f in source.features.items() if f.dtype == "image"]
        self._first, self._shapes = first_whole(
            source, self._images, lambda i, first: (i, {k: decode(first[k]).shape for k in first})
        )
        self.features: Mapping[str, Feature] = {
            key: Feature("uint8", shape=self._shapes[key]) if key in self._shapes else feature
            for key, feature in source.features.items()
        }

    def __len__(self) -> int:
        return len(self._source)

    def read(self, ids: np.ndarray, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
        keys = tuple(self.features) if keys is None else tuple(keys)
        records = self._records.setdefault(keys, {})
        ids = ids.tolist()
        new = [i for i in ids if i not in records]
        if new:
            for i, record in zip(new, self._source.read(np.array(new), keys), strict=True):
                records[i] = self._decoded(i, record)
        return [records[i] for i in ids]

    def _decoded(self, index: int, record: dict[str, Any]) -> dict[str, Any]:
        for key in self._shapes.keys() & record.keys():
            pixels = decode(record[key])
            if pixels.shape != self._shapes[key]:
                raise BadInput(
                    f"cache=True needs pictures of one size: {key} of example {index} is "
                    f"{list(pixels.shape)}, that of example {self._first} "
                    f"{list(self._shapes[key])}; set cache=False"
                )
            record[key] = pixels
        return record
