"""Lines of text files by their number: where each begins is kept, 8 bytes a line."""

import codecs
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from data import files
from data.sources import BadExample
from mm.config import BadInput

_BLOCK_BYTES = 1 << 24  # read at a time when looking for the lines
_THREADS = 16  # that look, each in a file
_NEWLINE, _RETURN = b"\n\r"


class Bounds(NamedTuple):
    """Line i of a file is the bytes from starts[i] to starts[i + 1], its newline included.

    blank: the numbers of the lines that are no examples, ascending.
    """

    starts: Int64[np.ndarray, " lines+1"]
    blank: Int64[np.ndarray, " blank"]


class Lines:
    """The lines that are not blank of files, one after the other; `shards` is how many each has.

    bounds: finds them in a file. unit: what messages call one. expected: what the files should
    hold, for the error when there is no line at all.
    """

    def __init__(
        self,
        paths: Sequence[str],
        expected: str,
        bounds: Callable[[str], Bounds] | None = None,
        unit: str = "line",
    ):
        self.paths, self._unit = paths, unit
        with ThreadPoolExecutor(min(_THREADS, len(paths))) as pool:
            self._bounds = list(pool.map(bounds or line_bounds, paths))
        counts = [len(found.starts) - 1 - len(found.blank) for found in self._bounds]
        self.shards = np.array(counts, np.int64)  # far away, lines are best read by windows
        self._ends = np.cumsum(counts)
        # How many lines that are not blank stand before each that is.
        self._before = [found.blank - np.arange(len(found.blank)) for found in self._bounds]
        if not len(self):
            raise BadInput(f"{paths[0]}: is empty; expected {expected}")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def text(self, index: int) -> str:
        """The line, with its newline. Raises BadExample if it is no UTF-8."""
        file, line = self.find(index)
        start, stop = self._bounds[file].starts[line : line + 2].tolist()
        try:
            return files.read(self.paths[file], start, stop).decode()
        except UnicodeDecodeError as error:
            message = f"{self.where(index)}: is no UTF-8 ({error.reason} at byte {error.start})"
            raise BadExample(message, "text is no UTF-8") from error

    def where(self, index: int) -> str:
        file, line = self.find(index)
        return f"{self.paths[file]} {self._unit} {line + 1}"

    def folder(self, index: int) -> str:
        return files.parent(self.paths[self.find(index)[0]])

    def find(self, index: int) -> tuple[int, int]:
        """The number of the file, and that of the line in it, blank ones counted, from 0."""
        file = int(np.searchsorted(self._ends, index, side="right"))
        line = index - (int(self._ends[file - 1]) if file else 0)
        return file, line + int(np.searchsorted(self._before[file], line, side="right"))


def line_bounds(path: str) -> Bounds:
    """Of the lines of a file; those of a newline alone are blank. A byte order mark is skipped."""
    starts, blank, count = [], [], 0
    for first, block in _blocks(path):
        found = np.frombuffer(block, np.uint8)
        ends = np.flatnonzero(found == _NEWLINE) + 1
        if not len(ends) or ends[-1] != len(block):
            ends = np.append(ends, len(block))
        here = np.concatenate([[0], ends[:-1]])
        head, tail, lengths = found[here], found[ends - 1], ends - here
        ended = (lengths == 1) | ((lengths == 2) & (tail == _NEWLINE))
        empty = (head == _NEWLINE) | ((head == _RETURN) & ended)
        blank.append(np.flatnonzero(empty) + count)
        starts.append(here + first)
        count += len(here)
    starts.append(np.array([files.size(path)]))
    return Bounds(np.concatenate(starts), np.concatenate([*blank, np.zeros(0, np.int64)]))


def split(path: str) -> Iterator[tuple[int, bytes]]:
    """Each line of a file with where it begins; a byte order mark is skipped."""
    for start, block in _blocks(path):
        for line in io.BytesIO(block):
            yield start, line
            start += len(line)


def _blocks(path: str) -> Iterator[tuple[int, bytes]]:
    """Blocks of whole lines, and where each begins."""
    start, size, rest = 0, files.size(path), []
    for at in range(0, size, _BLOCK_BYTES):
        block = files.read(path, at, min(at + _BLOCK_BYTES, size))
        if at == 0 and block.startswith(codecs.BOM_UTF8):
            start = len(codecs.BOM_UTF8)
            block = block[start:]
        end = block.rfind(b"\n") + 1
        if not end:
            rest.append(block)
            continue
        whole = b"".join([*rest, block[:end]])
        yield start, whole
        start, rest = start + len(whole), [block[end:]]
    if last := b"".join(rest):
        yield start, last
