"""Where examples come from. A source answers reads at random places; `data.order` says which."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from mm import registry

_MODULES = ("jsonl", "synthetic", "tfds")


class Feature(NamedTuple):
    """What one field of a record is.

    dtype: "image" (an encoded picture, bytes), "text" (str), "bytes", or a numpy number type.
    ragged: a list of any length of them. shape: of numbers, (64, 64, 3) for a decoded picture.
    """

    dtype: str
    ragged: bool = False
    shape: tuple[int, ...] = ()


class Source(Protocol):
    """Random access to examples 0 .. len - 1. `read` is called from several threads at once."""

    features: Mapping[str, Feature]

    def __len__(self) -> int: ...

    def read(self, ids: np.ndarray, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The fields `keys` (all if None) of the examples `ids` (int64 [b]), in that order."""
        ...


def open_source(spec: Mapping, where: str) -> Source:
    """Opens {"name": "tfds", ...}; raises BadInput, prefixed with `where`, when it cannot."""
    for module in _MODULES:  # late, since they load TensorFlow
        importlib.import_module(f"data.sources.{module}")
    return registry.build("source", spec, where)
