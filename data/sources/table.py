"""Rows of columns, one of which may lead to a picture, as a source.

What all tables share, whatever their format: which columns become `image` and `caption`, the share
of the rows that is taken, where pictures are read, and what is wrong with a value. A format gives
`Rows`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from data import files
from data.sources import BadExample, Feature, Source
from data.sources.features import check_text
from data.sources.part import part
from mm.config import BadInput, suggest

_KINDS = {
    "image": "a picture or its path",
    "text": "a text",
    "bytes": "bytes",
    "bool": "true or false",
}
_PICTURES = (Feature("text"), Feature("bytes"), Feature("image"))  # a path, a picture, or either


class Rows(Protocol):
    """What a format of tables gives. From several threads at once, as `Source`.

    columns: what each holds; None where no op could read it, which leaves it out.
    """

    columns: Mapping[str, Feature | None]

    def __len__(self) -> int: ...

    def row(self, index: int, columns: Sequence[str]) -> Mapping[str, Any]:
        """At least these columns, as far as the row has them; raises BadExample if it is broken.

        A picture is its bytes, its path, or {"bytes": ..., "path": ...} with one of both.
        """
        ...

    def where(self, index: int) -> str:
        """The row as messages name it: "pairs.jsonl line 3"."""
        ...

    def folder(self, index: int) -> str:
        """Where relative paths of pictures begin."""
        ...


def open_table(
    rows: Rows,
    *,
    image_key: str | None = None,
    caption_key: str | None = None,
    first: float = 0.0,
    last: float = 1.0,
) -> Source:
    """The rows from the share `first` of all to the share `last`, see `part`.

    image_key, caption_key: the columns that are the fields `image` and `caption`; None for neither.
    All others keep their names, but one that is called so as well is left out. "caption" itself
    need not be there. `shards` is that of the rows, if they have it. Raises BadInput when the share
    is empty or a column is not there or of the wrong type.
    """
    fields = {name: name for name in rows.columns}
    if image_key is not None:
        fields["image"] = _image(rows, image_key)
    if caption_key is not None and (caption_key in rows.columns or caption_key != "caption"):
        fields["caption"] = _caption(rows, caption_key)
    for column, field in ((image_key, "image"), (caption_key, "caption")):
        if column in fields and column != field and fields[column] == column:
            del fields[column]
    return part(_Table(rows, fields, image_key), first, last)


def _image(rows: Rows, key: str) -> str:
    if rows.columns.get(key) not in _PICTURES:
        raise BadInput(
            f"{rows.where(0)}: has no picture's path{_instead(rows, key)}; set image_key"
        )
    return key


def _caption(rows: Rows, key: str) -> str:
    feature = rows.columns.get(key)
    if feature is None or feature.dtype != "text":
        raise BadInput(f"{rows.where(0)}: has no text{_instead(rows, key)}; set caption_key")
    return key


def _instead(rows: Rows, key: str) -> str:
    near = "" if key in rows.columns else suggest(key, rows.columns)
    return f" in {key!r}{near} (have {sorted(rows.columns)})"


class _Table:
    """fields: the name of each field -> its column."""

    def __init__(self, rows: Rows, fields: Mapping[str, str], image_key: str | None):
        self._rows = rows
        found = {field: rows.columns[column] for field, column in fields.items()}
        if image_key is not None:
            found["image"] = Feature("image")
        self.features: Mapping[str, Feature] = {
            field: feature for field, feature in found.items() if feature is not None
        }
        self._columns = {field: fields[field] for field in self.features}
        if (shards := getattr(rows, "shards", None)) is not None:
            self.shards = shards

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, ids: np.ndarray, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
        keys = self._columns if keys is None else keys
        fields = {key: self._columns[key] for key in keys}
        return [self._record(i, fields) for i in ids.tolist()]

    def _record(self, index: int, fields: Mapping[str, str]) -> dict[str, Any]:
        row = self._rows.row(index, tuple(fields.values()))
        record = {}
        for field, column in fields.items():
            if column not in row:
                raise BadExample(
                    f"{self._rows.where(index)}: has no field {column!r}{suggest(column, row)} "
                    f"(have {sorted(row)})",
                    "field is missing",
                )
            value, feature = row[column], self.features[field]
            if value is None:
                raise BadExample(
                    f"{self._rows.where(index)}: {column} is null, expected {_kind(feature)}",
                    "field is null",
                )
            if not fits(value, feature):
                raise BadExample(
                    f"{self._rows.where(index)}: {column}={value!r:.80}: expected "
                    f"{_kind(feature)}, as in the others",
                    "field has the wrong type",
                )
            if feature.dtype == "text":
                self._check_text(index, column, value)
            record[field] = self._picture(index, value) if feature.dtype == "image" else value
        return record

    def _check_text(self, index: int, column: str, value: str | list[str]) -> None:
        for text in [value] if isinstance(value, str) else value:
            check_text(text, f"{self._rows.where(index)}: {column}")

    def _picture(self, index: int, value: Any) -> bytes:
        path = value
        if isinstance(value, dict):
            found = value.get("bytes")
            path = value.get("path") if found is None else found
        if isinstance(path, bytes):
            return path
        if not isinstance(path, str):
            raise BadExample(
                f"{self._rows.where(index)}: has neither a picture nor its path",
                "picture is missing",
            )
        folder = self._rows.folder(index)
        try:
            return files.read(files.join(folder, path))
        except (files.MissingError, ValueError) as error:  # ValueError: no name of a file
            raise BadExample(
                f"{self._rows.where(index)}: picture {path!r:.200} is missing ({error})",
                "picture is missing",
            ) from error


def feature_of(value: Any) -> Feature | None:
    """What a value of JSON is; None if no op could read it."""
    if isinstance(value, list):
        inner = {feature_of(item) for item in value}
        if inner <= {Feature("text")}:
            return Feature("text", ragged=True)
        numbers = inner <= {Feature("int64"), Feature("float32")}
        return Feature("float32", shape=(len(value),)) if numbers else None
    dtype = {str: "text", bool: "bool", int: "int64", float: "float32"}.get(type(value))
    return dtype and Feature(dtype)


def fits(value: Any, feature: Feature) -> bool:
    """Whether a value is what its column holds; a whole number may be a float."""
    if feature.ragged or feature.shape:
        return (
            isinstance(value, list)
            and feature.shape in ((), (len(value),))
            and all(_fits(item, feature.dtype) for item in value)
        )
    return _fits(value, feature.dtype)


def _fits(value: Any, dtype: str) -> bool:
    kind = type(value)
    if dtype.startswith(("int", "uint")):
        limits = np.iinfo(dtype)
        return kind is int and limits.min <= value <= limits.max
    if dtype.startswith("float"):
        return kind in (int, float)
    wanted = {"image": (str, bytes, dict), "text": (str,), "bytes": (bytes,), "bool": (bool,)}
    return kind in wanted[dtype]


def _kind(feature: Feature) -> str:
    if feature.shape:
        return f"{feature.shape[0]} numbers"
    number = "a whole number" if "int" in feature.dtype else "a number"
    kind = _KINDS.get(feature.dtype, number)
    return f"a list, each {kind}" if feature.ragged else kind
