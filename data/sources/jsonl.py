"""Pictures beside a file of JSON lines: {"image": "photos/1.jpg", "caption": "a red bicycle"}.

One object a line. The picture's path is relative to the file's folder, or absolute. Only where each
line begins is kept in memory (16 bytes a line); lines and pictures are read when they are asked
for.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from data.sources import Feature, Source
from mm import registry
from mm.config import BadInput, suggest

_BLOCK = 1 << 24  # bytes read at a time when looking for the lines
_NEWLINE = ord("\n")
_KINDS = {
    Feature("image"): "a path",
    Feature("text"): "a text",
    Feature("text", ragged=True): "a list of texts",
    Feature("int64"): "a whole number",
    Feature("float32"): "a number",
}


@registry.register("source", "jsonl")
def jsonl(*, path: str, image_key: str = "image", first: float = 0.0, last: float = 1.0) -> Source:
    """The lines from the share `first` of the file to the share `last`, as in last=0.99.

    first=0.99 then is the rest: no line is in both. Lines are taken in the file's order, so a file
    whose lines are sorted has to be shuffled before. image_key: the field with the picture's path.
    The first line tells what the fields are: texts, lists of texts and numbers; others are left
    out. Raises BadInput when the file or the share is empty, and, when a line is read, with its
    number if it is no JSON, lacks a field or names a picture that is not there.
    """
    if not 0 <= first < last <= 1:
        raise BadInput(f"first={first}, last={last}: expected 0 <= first < last <= 1")
    source = _Lines(Path(path).expanduser(), image_key)
    source.keep(first, last)
    return source


class _Lines:
    """The lines of a file, and how to read them."""

    def __init__(self, path: Path, image_key: str):
        self._path, self._image_key = path, image_key
        try:
            # Unbuffered, and never moved: several threads read from it at once, by position.
            self._file = open(path, "rb", buffering=0)
            self._bounds = _line_bounds(self._file)
        except OSError as error:
            raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
        self._rows = np.flatnonzero(np.diff(self._bounds) > 1)  # not blank
        if not len(self._rows):
            raise BadInput(f"{path}: is empty; expected one JSON object a line")
        record = self._parse(0)
        if not isinstance(record.get(image_key), str):
            raise BadInput(
                f"{self._where(0)}: has no picture's path in {image_key!r}"
                f"{suggest(image_key, record)} (have {sorted(record)}); set image_key"
            )
        found = {key: _feature(value) for key, value in record.items()}
        self.features: Mapping[str, Feature] = {
            key: Feature("image") if key == image_key else feature
            for key, feature in found.items()
            if feature is not None
        }

    def __len__(self) -> int:
        return len(self._rows)

    def keep(self, first: float, last: float) -> None:
        """Keeps the lines from a share of all to another."""
        total = len(self)
        self._rows = self._rows[round(first * total) : round(last * total)]
        if not len(self):
            raise BadInput(
                f"{self._path}: none of its {total} lines is between first={first} and "
                f"last={last}; take a larger share"
            )

    def read(self, ids: np.ndarray, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
        keys = tuple(self.features) if keys is None else keys
        return [self._record(i, keys) for i in ids.tolist()]

    def _record(self, index: int, keys: Sequence[str]) -> dict[str, Any]:
        record, chosen = self._parse(index), {}
        for key in keys:
            if key not in record:
                raise BadInput(
                    f"{self._where(index)}: has no field {key!r}{suggest(key, record)} "
                    f"(have {sorted(record)})"
                )
            value, feature = record[key], self.features[key]
            if not _fits(value, feature):
                kind = f"{feature.shape[0]} numbers" if feature.shape else _KINDS[feature]
                raise BadInput(
                    f"{self._where(index)}: {key}={value!r:.80}: expected {kind}, "
                    "as in the first line"
                )
            chosen[key] = self._picture(index, value) if feature.dtype == "image" else value
        return chosen

    def _parse(self, index: int) -> dict[str, Any]:
        start, stop = self._bounds[self._rows[index] :][:2].tolist()
        line = os.pread(self._file.fileno(), stop - start, start)
        try:
            record = json.loads(line)
        except ValueError as error:
            raise BadInput(f"{self._where(index)}: is no JSON ({error})") from error
        if not isinstance(record, dict):
            raise BadInput(f'{self._where(index)}: is no object; expected {{"field": value, ...}}')
        return record

    def _picture(self, index: int, name: str) -> bytes:
        try:
            return (self._path.parent / name).read_bytes()
        except OSError as error:
            raise BadInput(
                f"{self._where(index)}: picture {name!r} cannot be read from {self._path.parent} "
                f"({error.strerror}); mend {self._image_key!r}, or take the line out"
            ) from error

    def _where(self, index: int) -> str:
        return f"{self._path} line {self._rows[index] + 1}"


def _line_bounds(file: Any) -> Int64[np.ndarray, " lines+1"]:
    """Line i is the bytes from bounds[i] to bounds[i + 1], its newline included."""
    ends, size = [np.zeros(1, np.int64)], 0
    while block := file.read(_BLOCK):
        ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == _NEWLINE) + size + 1)
        size += len(block)
    bounds = np.concatenate(ends)
    # A last line without a newline gets one past the end, so that only blank lines have length 1.
    return bounds if bounds[-1] == size else np.append(bounds, size + 1)


def _feature(value: Any) -> Feature | None:
    """What a field of the first line is; None if no op could read it."""
    if isinstance(value, str):
        return Feature("text")
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return Feature("text", ragged=True)
    if isinstance(value, list) and all(type(item) in (int, float) for item in value):
        return Feature("float32", shape=(len(value),))
    if isinstance(value, int):
        return Feature("int64")
    return Feature("float32") if isinstance(value, float) else None


def _fits(value: Any, feature: Feature) -> bool:
    """Whether a value is what its field was in the first line; a whole number may be a float."""
    found = _feature(value)
    if feature.dtype == "image":
        return found == Feature("text")
    return found == feature or (found == Feature("int64") and feature == Feature("float32"))
