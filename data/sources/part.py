"""Some examples of a source: a share, to train on most and evaluate on the rest, or a list."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.sources import Source
from mm.config import BadInput


def part(source: Source, first: float, last: float) -> Source:
    """From the share `first` of its examples to the share `last`, in their order.

    part(s, 0, x) and part(s, x, 1) together are all, and share none. Raises BadInput when there is
    none.
    """
    if not 0 <= first < last <= 1:
        raise BadInput(f"first={first}, last={last}: expected 0 <= first < last <= 1")
    total = len(source)
    start, stop = round(first * total), round(last * total)
    if start == stop:
        raise BadInput(
            f"none of the {total:,} examples is between first={first} and last={last}; take a "
            "larger share"
        )
    return source if stop - start == total else _Part(source, start, stop)


def chosen(source: Source, ids: np.ndarray) -> Source:
    """The examples of these numbers, in their order; number 0 is then the first of them."""
    return _Chosen(source, ids)


class _Part:
    """Examples start .. stop - 1. `shards` are what is left of the source's, if it has them."""

    def __init__(self, source: Source, start: int, stop: int):
        self._source, self._start, self._size = source, start, stop - start
        self.features = source.features
        if (shards := getattr(source, "shards", None)) is not None:
            kept = np.diff(np.clip(np.cumsum(shards), start, stop), prepend=start)
            self.shards = kept[kept > 0]

    def __len__(self) -> int:
        return self._size

    def read(self, ids: np.ndarray, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
        return self._source.read(ids + self._start, keys)


class _Chosen:
    def __init__(self, source: Source, ids: np.ndarray):
        self._source, self._ids = source, ids
        self.features = source.features

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, ids: np.ndarray, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
        return self._source.read(self._ids[ids], keys)
