"""Rows that Arrow holds: tables in memory, record batches of a mapped file, row groups."""

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from data.sources import BadExample, Feature

Group = pa.Table | pa.RecordBatch
_SCALARS = {
    "text": (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    "bytes": (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary),
    "bool": (pa.types.is_boolean,),
}


class Groups:
    """The rows of groups, one after the other. As `data.sources.table.Rows`.

    counts: the rows of each group. group(i, columns): the group with at least these columns.
    paths: of the file that each group is in. A class of Hugging Face's ClassLabel is its name.
    """

    def __init__(
        self,
        schema: pa.Schema,
        counts: Sequence[int],
        group: Callable[[int, tuple[str, ...]], Group],
        paths: Sequence[str],
        folder: Callable[[str], str],
    ):
        self._group, self._paths, self._folder = group, paths, folder
        self._ends = np.cumsum(counts, dtype=np.int64)
        starts = self._ends - counts
        first = {path: start for path, start in zip(paths[::-1], starts[::-1], strict=True)}
        self._file_starts = [int(first[path]) for path in paths]
        self._classes = _classes(schema)
        self.columns = {
            field.name: _feature(field.type, field.name in self._classes) for field in schema
        }

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def row(self, index: int, columns: Sequence[str]) -> Mapping[str, Any]:
        number = self._number(index)
        group = self._group(number, tuple(columns))
        offset = index - (int(self._ends[number - 1]) if number else 0)
        row = {}
        for name in columns:
            try:
                value = group.column(name)[offset].as_py()
            except UnicodeDecodeError as error:
                message = f"{self.where(index)}: {name} is no UTF-8 ({error.reason})"
                raise BadExample(message, "text is no UTF-8") from error
            row[name] = self._name(index, name, value) if name in self._classes else value
        return row

    def where(self, index: int) -> str:
        """Rows are counted from 0 in each file, as Arrow and pandas do."""
        number = self._number(index)
        return f"{self._paths[number]} row {index - self._file_starts[number]}"

    def folder(self, index: int) -> str:
        return self._folder(self._paths[self._number(index)])

    def _number(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index, side="right"))

    def _name(self, index: int, column: str, value: Any) -> Any:
        """Of a class, or of a list of them."""
        if isinstance(value, list):
            return [self._name(index, column, item) for item in value]
        names = self._classes[column]
        if value is None or value == -1:  # Hugging Face's mark of a class that is not known
            return None
        if not 0 <= value < len(names):
            message = f"{self.where(index)}: {column}={value}: expected 0 .. {len(names) - 1}"
            raise BadExample(message, "class is not among the names")
        return names[value]


def strings(values: Iterable[str | None]) -> pa.Array:
    """As compact as their UTF-8. What cannot be UTF-8 breaks its row, when that is read."""
    encoded = [
        None if value is None else value.encode("utf-8", "surrogatepass") for value in values
    ]
    return pa.array(encoded, pa.large_binary()).view(pa.large_string())


def lists(values: Sequence[Sequence[str | None]]) -> pa.Array:
    """Lists of strings."""
    ends = np.cumsum([0, *map(len, values)])
    return pa.LargeListArray.from_arrays(ends, strings(itertools.chain.from_iterable(values)))


def _feature(kind: pa.DataType, classes: bool) -> Feature | None:
    """What a column of a type holds; None if no op could read it. classes: numbers with names."""
    if pa.types.is_struct(kind):
        names = {kind.field(i).name for i in range(kind.num_fields)}
        return Feature("image") if names == {"bytes", "path"} else None  # as Hugging Face has them
    fixed = pa.types.is_fixed_size_list(kind)
    if fixed or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = _feature(kind.value_type, classes)
        if inner is None or inner != Feature(inner.dtype) or inner.dtype == "image":
            return None
        if fixed and inner.dtype not in ("text", "bytes"):
            return Feature(inner.dtype, shape=(kind.list_size,))
        return Feature(inner.dtype, ragged=True)
    if pa.types.is_dictionary(kind):
        return _feature(kind.value_type, classes)
    if pa.types.is_integer(kind):
        return Feature("text" if classes else str(kind))
    if pa.types.is_floating(kind):
        return Feature(f"float{kind.bit_width}")
    for dtype, tests in _SCALARS.items():
        if any(test(kind) for test in tests):
            return Feature(dtype)
    return None


def _classes(schema: pa.Schema) -> dict[str, list[str]]:
    """Column -> names of its classes, which Hugging Face's library writes beside the schema."""
    found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = (found.get("info") or {}).get("features") or {}
    classes = {}
    for column, feature in features.items():
        while isinstance(feature, dict) and isinstance(feature.get("feature"), dict):
            feature = feature["feature"]  # of a list
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            classes[column] = feature["names"]
    return classes
