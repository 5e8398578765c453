"""Parquet files: pictures as bytes, as Hugging Face's struct of bytes and path, or by their path.

A row group is read when the first of its rows is asked for, only the columns asked for; the latest
are kept, `cache_mib` of them at most. Beside them are in memory the footers of the files, 1 kB for
each column of a row group.
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data import files
from data.latest import Latest
from data.sources import Source
from data.sources.arrow import Groups
from data.sources.table import open_table
from mm import registry
from mm.config import BadInput, Positive

_THREADS = 16  # that read footers


@registry.register("source", "parquet")
def parquet(
    *,
    path: str | Sequence[str],
    image_key: str | None = "image",
    caption_key: str | None = "caption",
    first: float = 0.0,
    last: float = 1.0,
    cache_mib: Positive = 1024,
) -> Source:
    """The rows from the share `first` of all to the share `last`, as in `jsonl`.

    path: files or patterns, all with the same columns. image_key, caption_key: the columns that
    become `image` and `caption`; image_key=None: there are no pictures. Numbers, texts, bytes and
    lists of them are fields too; columns of other types are left out. Hugging Face's ClassLabel is
    the name of the class. `shards` are the rows of each row group: to read it for one row costs as
    much as for all, so the order "windows" suits; cache_mib: MiB of the row groups read latest that
    are kept, at best all that the windows of a host are in. Raises BadInput when a file is no
    Parquet, or a column is not there.
    """
    rows = _RowGroups(files.expand(path), cache_mib << 20)
    given = dict(image_key=image_key, caption_key=caption_key, first=first, last=last)
    return open_table(rows, **given)


class _RowGroups(Groups):
    def __init__(self, paths: Sequence[str], cache_bytes: int):
        with ThreadPoolExecutor(min(_THREADS, len(paths))) as pool:
            self._footers = list(pool.map(_footer, paths))
        schema = self._footers[0].schema.to_arrow_schema()
        for path, footer in zip(paths, self._footers, strict=True):
            _check_columns(path, footer.schema.to_arrow_schema(), paths[0], schema)
        self._places = [
            (file, number)
            for file, footer in enumerate(self._footers)
            for number in range(footer.num_row_groups)
        ]
        counts = [self._footers[f].row_group(number).num_rows for f, number in self._places]
        if not sum(counts):
            raise BadInput(f"{paths[0]}: is empty; expected rows")
        self.shards = np.array(counts, np.int64)
        self._files = paths
        latest = Latest(self._read, cache_bytes, lambda table: table.nbytes)
        super().__init__(
            schema,
            counts,
            lambda number, columns: latest((number, columns)),
            [paths[file] for file, _ in self._places],
            files.parent,
        )

    def _read(self, key: tuple[int, tuple[str, ...]]) -> pa.Table:
        number, columns = key
        file, group = self._places[number]
        path = self._files[file]
        try:
            # Opened anew: what is opened has a position, and several threads read.
            with pq.ParquetFile(_File(path), metadata=self._footers[file]) as opened:
                return opened.read_row_group(group, columns=list(columns), use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise BadInput(f"{path}: row group {group} cannot be read ({_line(error)})") from error


def _footer(path: str) -> pq.FileMetaData:
    try:
        with pq.ParquetFile(_File(path)) as opened:
            return opened.metadata
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path}: is no Parquet file ({_line(error)})") from error


def _check_columns(path: str, schema: pa.Schema, first: str, expected: pa.Schema) -> None:
    for field in expected:
        index = schema.get_field_index(field.name)
        if index < 0:
            raise BadInput(f"{path}: has no column {field.name!r}, which {first} has")
        if schema.field(index).type != field.type:
            raise BadInput(
                f"{path}: column {field.name!r} is {schema.field(index).type}, in {first} it is "
                f"{field.type}; expected the same in all files"
            )


def _line(error: Exception) -> str:
    return str(error).split("\n")[0]


class _File(io.RawIOBase):
    """A file, near or far, as Arrow wants it; read through `data.files`, which tries again."""

    def __init__(self, path: str):
        self._path, self._size, self._at = path, files.size(path), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        stop = self._size if size < 0 else min(self._at + size, self._size)
        found = files.read(self._path, self._at, stop) if stop > self._at else b""
        self._at += len(found)
        return found
