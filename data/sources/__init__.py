"""Where examples come from. A source answers reads at random places; `data.order` says which."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from mm import registry
from mm.config import BadInput

T = TypeVar("T")
_TRIES = 100  # examples that may be broken before one is whole

# Each source's module is loaded when one asks for it, since some load TensorFlow or Arrow.
_MODULES = {
    "coco": "coco",
    "csv": "csv",
    "flickr30k": "coco",
    "folder": "folder",
    "hf": "hf",
    "iconify": "iconify",
    "jsonl": "jsonl",
    "mixture": "mixture",
    "parquet": "parquet",
    "quadruples": "quadruples",
    "synthetic": "synthetic",
    "synthetic_audio": "synthetic_media",
    "synthetic_video": "synthetic_media",
    "text": "text",
    "tfds": "tfds",
    "tfrecord": "tfrecord",
    "vqav2": "vqa",
    "webdataset": "webdataset",
}


class Feature(NamedTuple):
    """What one field of a record is.

    dtype: "image" (an encoded picture, bytes), "text" (str), "bytes", or a numpy number type.
    ragged: a list of any length of them. shape: of numbers, (64, 64, 3) for a decoded picture.
    """

    dtype: str
    ragged: bool = False
    shape: tuple[int, ...] = ()


class BadExample(BadInput):
    """The data of one example is wrong, not the config: it is counted and another takes its place.

    reason: a few words that are the same for all examples with that fault; they are counted by it.
    always: whatever an op draws for it, as in another epoch. Whoever knows the example's number
    adds it to the message.
    """

    def __init__(self, message: str, reason: str, always: bool = False):
        super().__init__(message)
        self.reason, self.always = reason, always


class Source(Protocol):
    """Random access to examples 0 .. len - 1. `read` is called from several threads at once.

    It raises BadExample when an example is broken, BadInput or ReadError when more than that is. A
    source of files that are best read from front to back also has `shards`, int64: how many
    examples each holds, in the order of their numbers (see `data.lanes.windows`).
    """

    features: Mapping[str, Feature]

    def __len__(self) -> int: ...

    def read(self, ids: np.ndarray, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The fields `keys` (all if None) of the examples `ids` (int64 [b]), in that order."""
        ...


def open_source(spec: Mapping, where: str) -> Source:
    """Opens {"name": "tfds", ...}; raises BadInput, prefixed with `where`, when it cannot."""
    _register(spec.get("name"))
    return registry.build("source", spec, where)


def check_source(spec: Mapping, where: str) -> None:
    """Raises BadInput for a wrong name, key or type; looks for no file."""
    _register(spec.get("name"))
    rest = {key: value for key, value in spec.items() if key != "name"}
    registry.check(registry.find("source", spec.get("name"), where), rest, where)
    if spec["name"] == "mixture":
        for name, part in spec["parts"].items():
            check_source(part, f"{where}.parts.{name}")


def _register(name: str | None) -> None:
    """Loads the module of that source; all, if there is none, for the message."""
    for module in [_MODULES[name]] if name in _MODULES else sorted(set(_MODULES.values())):
        importlib.import_module(f"data.sources.{module}")


def first_whole(source: Source, keys: Sequence[str], make: Callable[[int, dict], T]) -> T:
    """make(number, record) of the first example that is whole, among some all over the source.

    `make` may raise BadExample, too. Raises BadInput if none of them is whole.
    """
    first, tries = None, min(len(source), _TRIES)
    for number in np.linspace(0, len(source) - 1, tries).round().astype(int).tolist():
        try:
            return make(number, source.read(np.array([number]), keys)[0])
        except BadExample as error:
            first = first or error
    raise BadInput(f"none of {tries} examples all over the source is whole; of the first: {first}")


def read_each(
    source: Source, ids: np.ndarray, keys: Sequence[str] | None = None
) -> list[dict[str, Any] | BadExample]:
    """As `source.read`, but in the place of a broken example is what it raised."""
    try:
        return list(source.read(ids, keys))
    except BadExample as error:
        if len(ids) == 1:
            return [error]
    return [read_each(source, ids[i : i + 1], keys)[0] for i in range(len(ids))]
