"""Where the examples of a shard begin: found in one pass, kept in a folder, loaded when needed.

`python -m data.index 'photos/{00000..00099}.tar'` makes indexes ahead of a run. Without it, the
first run that opens the shards makes them. In memory is how many examples each shard has; where
they are is loaded as they are read, and what was used last is kept, so that sets of a billion
examples can be opened.
"""

import argparse
import collections
import concurrent.futures
import hashlib
import importlib
import io
import logging
import os
import struct
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Int64

from data import files
from mm.config import BadInput

T = TypeVar("T")
# Arrays by name. count: how many examples; loss: what could not be indexed, as text, see `pack`.
Index = dict[str, np.ndarray]

DEFAULT_FOLDER = "~/.cache/mm/index"  # unless the environment says MM_INDEX_DIR
_FORMATS = {".tar": "webdataset", ".tfrecord": "tfrecord"}  # what a name has in it -> its source
_THREADS = 16  # they mostly wait
_MEMORY_BYTES = 512 << 20
_PROGRESS_SECONDS = 5.0
_LOSSES_TOLD = 20
# What numpy and zipfile raise when they read a file that is not as it was written.
_DAMAGE = (ValueError, KeyError, EOFError, OSError, NotImplementedError, struct.error)
_DAMAGE += (zipfile.BadZipFile, zipfile.LargeZipFile)

_PARSING = threading.Lock()

log = logging.getLogger(__name__)


class Indexes:
    """The indexes that `build` makes of shards, by path. Used from several threads at once.

    kind: names the format of the index; another one, such as "tar 2", when `build` changes. folder:
    where indexes are kept, also far away; one for many sets, programs and hosts.
    """

    def __init__(self, kind: str, build: Callable[[str], Index], folder: str | None = None):
        folder = folder or os.environ.get("MM_INDEX_DIR") or DEFAULT_FOLDER
        self.folder = folder if files.is_remote(folder) else os.path.expanduser(folder)
        self.is_kept = True
        self._kind, self._build = kind, build
        self._files: dict[str, str] = {}
        self._lock = threading.Lock()

    def load(self, path: str) -> Index:
        """The index of one shard."""
        file = self._file(path)
        found = _memory.get(file)
        if found is None:
            found = self._kept(file, lambda: self._build(path))
            _memory.put(file, found)
        return found

    def count(self, paths: Sequence[str]) -> Int64[np.ndarray, " shards"]:
        """How many examples each shard has; warns of what is lost. Builds what is missing."""
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(self._file, paths))

        def count() -> Index:
            counts, losses = [], []
            with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
                indexes = pool.map(lambda path: _summary(self.load(path)), paths)
                for path, (number, loss) in zip(paths, _told(indexes, len(paths)), strict=True):
                    counts.append(number)
                    losses += [f"{path}: {loss}"] if loss else []
            return {"count": np.array(counts, np.int64), "loss": pack("\n".join(losses))}

        found = self._kept(self._named("set", *map(os.path.basename, found)), count)
        lines = unpack(found["loss"]).splitlines()
        for line in lines[:_LOSSES_TOLD]:
            log.warning("%s", line)
        if len(lines) > _LOSSES_TOLD:
            log.warning("and so on, of %d shards", len(lines))
        return found["count"]

    def _file(self, path: str) -> str:
        """Where the index of a shard is kept; of the shard as it was when first asked for."""
        if path not in self._files:
            place = path if files.is_remote(path) else os.path.abspath(path)
            self._files[path] = self._named(self._kind, place, files.stamp(path))
        return self._files[path]

    def _named(self, *parts: str) -> str:
        text = "\0".join(parts).encode("utf-8", "surrogateescape")
        return files.join(self.folder, f"{hashlib.sha256(text).hexdigest()}.npz")

    def _kept(self, file: str, make: Callable[[], Index]) -> Index:
        """What `make` makes, from its file if that is there."""
        try:
            if self.is_kept and files.exists(file):
                content = io.BytesIO(files.read(file))
                # NumPy parses the heads of arrays by `ast`, in which the threads of Python 3.11
                # get in each other's way (CPython issue 106905): a SystemError in a hundred loads.
                with _PARSING, np.load(content, allow_pickle=False) as arrays:
                    return {name: arrays[name] for name in arrays.files}
        except BadInput as error:
            self._give_up(error)
        except _DAMAGE as error:
            log.warning("%s: is damaged (%s), made again", file, error)
        made = make()
        if self.is_kept:
            try:
                files.write(file, _written(made))
            except OSError as error:
                self._give_up(error)
        return made

    def _give_up(self, error: Exception) -> None:
        with self._lock:
            if self.is_kept:
                log.warning(
                    "indexes cannot be kept in %s (%s): they are made again by each run, and once "
                    "there are more than %d MB of them; set index_dir or MM_INDEX_DIR",
                    self.folder,
                    error,
                    _MEMORY_BYTES >> 20,
                )
            self.is_kept = False


def pack(text: str) -> np.ndarray:
    """Text as an array of bytes: arrays of texts are as wide as the longest."""
    return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)


def unpack(packed: np.ndarray) -> str:
    return packed.tobytes().decode("utf-8", "surrogateescape")


def narrow(values: Iterable[int]) -> np.ndarray:
    """An array of the smallest type that holds the values, all at least 0."""
    array = np.asarray(values, np.int64)
    return array.astype(np.min_scalar_type(array.max(initial=0)))


def open_shard(path: str) -> io.BufferedReader:
    """A shard to be read from front to back, with jumps."""
    # Where a record is long, the bytes that are read in vain behind its head cost more than a call.
    return io.BufferedReader(_Raw(path), 1 << 20 if files.is_remote(path) else 1 << 13)


class _Raw(io.RawIOBase):
    def __init__(self, path: str):
        self._path, self._size, self._position = path, files.size(path), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = begin + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        stop = min(self._position + len(buffer), self._size)
        if stop <= self._position:
            return 0
        found = files.read(self._path, self._position, stop)
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)


class _Memory:
    """Indexes, the latest used kept."""

    def __init__(self, max_bytes: int):
        self._max_bytes, self._bytes = max_bytes, 0
        self._lock = threading.Lock()
        self._indexes: collections.OrderedDict[str, Index] = collections.OrderedDict()

    def get(self, key: str) -> Index | None:
        with self._lock:
            if key in self._indexes:
                self._indexes.move_to_end(key)
            return self._indexes.get(key)

    def put(self, key: str, index: Index) -> None:
        with self._lock:
            self._bytes += _num_bytes(index) - _num_bytes(self._indexes.pop(key, {}))
            self._indexes[key] = index
            while self._bytes > self._max_bytes and len(self._indexes) > 1:
                self._bytes -= _num_bytes(self._indexes.popitem(last=False)[1])


_memory = _Memory(_MEMORY_BYTES)


def _num_bytes(index: Index) -> int:
    return sum(array.nbytes for array in index.values())


def _summary(index: Index) -> tuple[int, str]:
    return int(index["count"]), unpack(index["loss"])


def _written(index: Index) -> bytes:
    content = io.BytesIO()
    np.savez(content, **index)
    return content.getvalue()


def _told(items: Iterable[T], total: int) -> Iterator[T]:
    """The items, with a line on stderr every few seconds."""
    begin = told = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - told > _PROGRESS_SECONDS and done < total:
            told, left = now, (now - begin) / done * (total - done)
            line = f"indexed {done:,} of {total:,} shards, about {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data.index", description="Makes the indexes of shards ahead of a run."
    )
    parser.add_argument("pattern", nargs="+", help="shards, e.g. 'photos/{00000..00099}.tar'")
    parser.add_argument("--format", choices=_FORMATS.values(), help="default: by the names")
    parser.add_argument("--index_dir", help=f"default: $MM_INDEX_DIR, else {DEFAULT_FOLDER}")
    given = parser.parse_args(args)
    logging.basicConfig(format="warning: %(message)s")
    try:
        paths = files.expand(given.pattern)
        formats = {given.format or _format(path) for path in paths}
        if len(formats) > 1:
            raise BadInput(f"shards of several formats {sorted(formats)}: give those of one")
        module = importlib.import_module(f"data.sources.{formats.pop()}")
        indexes = module.indexes(given.index_dir)
        counts = indexes.count(paths)
        if not indexes.is_kept:
            raise BadInput(f"{indexes.folder}: no index could be kept there")
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(paths):,} shards, {counts.sum():,} examples, indexed in {indexes.folder}")
    return 0


def _format(path: str) -> str:
    name = os.path.basename(path)
    found = [kind for part, kind in _FORMATS.items() if part in name]
    if not found:
        raise BadInput(
            f"{path}: has none of {list(_FORMATS)} in its name; set --format to one of "
            f"{list(_FORMATS.values())}"
        )
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
