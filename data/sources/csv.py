"""Pictures beside tables of comma or tab separated values, whose first row names the columns.

By the rules of Python's csv module: "a ""quoted"" value" may hold separators and newlines. A
picture's path is relative to the file's folder, absolute, or remote. In memory is only where each
row begins, 8 bytes a row; rows and pictures are read when they are asked for.
"""

import array
import csv
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data import files
from data.sources import BadExample, Feature, Source
from data.sources.lines import Bounds, Lines, split
from data.sources.table import open_table
from mm import registry
from mm.config import BadInput, suggest

# Python's own limit, 128 kB, would break a row with a long text; without any, a quote that is never
# closed would take the rest of the file into memory.
csv.field_size_limit(1 << 25)
_UNCLOSED_LINES = 100  # fewer that the last quote takes in are one broken row


@registry.register("source", "csv")
def csv_source(
    *,
    path: str | Sequence[str],
    image_key: str | None = "image",
    caption_key: str | None = "caption",
    numbers: Sequence[str] = (),
    delimiter: str | None = None,
    first: float = 0.0,
    last: float = 1.0,
) -> Source:
    """The rows from the share `first` of all to the share `last`, as in `jsonl`.

    path: files or patterns, all with the same columns. image_key, caption_key: the columns that
    become `image` (a picture's path) and `caption`; image_key=None: there are no pictures. All
    columns are text but those that `numbers` names, since no row can tell a number from a text of
    digits: whole numbers where the first row has one, else floats. delimiter: None is a tab for
    files that end in .tsv, a comma for others. Raises BadInput when a file or the share is empty,
    or a column is not there.
    """
    paths = files.expand(path)
    if delimiter is None:
        delimiter = "\t" if paths[0].lower().endswith(".tsv") else ","
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise BadInput(f"delimiter={delimiter!r}: expected one character, such as ',' or '\\t'")
    rows = _Csv(paths, delimiter, numbers)
    given = dict(image_key=image_key, caption_key=caption_key, first=first, last=last)
    return open_table(rows, **given)


class _Csv(Lines):
    def __init__(self, paths: Sequence[str], delimiter: str, numbers: Sequence[str]):
        self._delimiter = delimiter
        self._headers: dict[str, list[str]] = {}
        super().__init__(paths, "a row of names, then rows", self._row_bounds, "row")
        first = self._headers[paths[0]]
        for path in paths:
            if set(self._headers[path]) != set(first):
                raise BadInput(
                    f"{path}: has the columns {self._headers[path]}, {paths[0]} has {first}; "
                    "expected the same in all files"
                )
        self.columns: dict[str, Feature | None] = dict.fromkeys(first, Feature("text"))
        self._numbers: dict[str, type] = {}
        for name in numbers:
            if name not in self.columns:
                raise BadInput(
                    f"numbers: {paths[0]} has no column {name!r}{suggest(name, first)} "
                    f"(have {first})"
                )
            self._numbers[name] = self._number_type(name)
            self.columns[name] = Feature("int64" if self._numbers[name] is int else "float32")

    def row(self, index: int, columns: Sequence[str]) -> Mapping[str, Any]:
        row: dict[str, Any] = self._text_row(index)
        for name in self._numbers.keys() & set(columns):
            row[name] = self._parsed(index, name, row[name])
        return row

    def _text_row(self, index: int) -> dict[str, str]:
        header = self._headers[self.paths[self.find(index)[0]]]
        try:
            values = _parse(self.text(index), self._delimiter)
        except csv.Error as error:
            message = f"{self.where(index)}: is no CSV ({error})"
            raise BadExample(message, "row is no CSV") from error
        if len(values) != len(header):
            raise BadExample(
                f"{self.where(index)}: has {len(values)} values for {len(header)} columns; is a "
                "separator not within quotes?",
                "row of another length",
            )
        return dict(zip(header, values, strict=True))

    def _number_type(self, name: str) -> type:
        value = self._text_row(0)[name]
        for kind in (int, float):
            try:
                kind(value)
                return kind
            except ValueError:
                continue
        raise BadInput(f"numbers: {self.where(0)}: {name}={value!r:.80}: is no number")

    def _parsed(self, index: int, name: str, value: str) -> float | None:
        if not value.strip():
            return None
        try:
            return self._numbers[name](value)
        except ValueError as error:
            message = f"{self.where(index)}: {name}={value!r:.80}: is no {self.columns[name].dtype}"
            raise BadExample(message, "field has the wrong type") from error

    def _row_bounds(self, path: str) -> Bounds:
        """Also keeps the first row, which names the columns; it counts as blank, as empty ones do.

        Python's reader finds the rows, as nothing else has quite its rules. Broken ones are rows.
        """
        starts, blank = array.array("q"), array.array("q")
        end = 0

        def lines() -> Iterator[str]:
            nonlocal end
            for start, line in split(path):
                end = start + len(line)
                yield line.decode("latin-1")  # of separators and quotes, UTF-8 is the same

        rows = csv.reader(lines(), delimiter=self._delimiter)
        while True:
            start = end
            try:
                row = next(rows)
            except StopIteration:
                break
            except csv.Error:
                row = None
            if row == [] or path not in self._headers:
                blank.append(len(starts))
            if row != [] and path not in self._headers:
                self._headers[path] = _header(path, row)
            starts.append(start)
        if starts:
            self._check_closed(path, starts[-1], end)
        starts.append(end)
        return Bounds(np.array(starts), np.array(blank))

    def _check_closed(self, path: str, start: int, end: int) -> None:
        """Raises BadInput if a quote in the last row is never closed: it would hide many rows."""
        last = files.read(path, start, end).decode("latin-1")
        try:
            _parse(last, self._delimiter)
        except csv.Error as error:
            lines = last.count("\n")
            if lines > _UNCLOSED_LINES:
                raise BadInput(
                    f"{path}: {error}; it takes in {lines:,} lines from byte {start:,} on: close "
                    "it, or double it where it is a part of the text"
                ) from error


def _header(path: str, row: list[str] | None) -> list[str]:
    try:
        names = [name.encode("latin-1").decode() for name in row or ()]
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: its first row is no UTF-8 ({error.reason})") from error
    if not names or len(set(names)) < len(names):
        raise BadInput(f"{path}: its first row is {names}, expected the names of the columns")
    return names


def _parse(text: str, delimiter: str) -> list[str]:
    def once() -> Iterator[str]:
        yield text
        raise csv.Error("a quote is not closed before the end of the file")

    return next(csv.reader(once(), delimiter=delimiter))
