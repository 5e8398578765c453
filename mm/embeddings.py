"""The files of a folder that `--mode=embed` writes, and that search reads.

"parquet": part-000000.parquet with the columns id, image, text and score. "npy": an array a file,
part-000000.image.npy and so on, which can be mapped into memory. embeddings.json says which.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data import files
from mm.config import BadInput

Format = Literal["parquet", "npy"]
FORMATS = ("parquet", "npy")
COLUMNS = ("id", "image", "text", "score")
FACTS = "embeddings.json"


def is_written(folder: str, part: int, format: Format) -> bool:
    """Whether the part is there, whole."""
    return files.exists(_path(folder, part, format, COLUMNS[-1]))


def write_part(folder: str, part: int, format: Format, columns: Mapping[str, np.ndarray]) -> None:
    """id [n], image and text [n, d], score [n]; of several files the last makes it whole."""
    if format == "parquet":
        table = {name: _column(columns[name]) for name in COLUMNS}
        buffer = io.BytesIO()
        pq.write_table(pa.table(table), buffer)
        files.write(_path(folder, part, format, ""), buffer.getvalue())
        return
    for name in COLUMNS:
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, columns[name], allow_pickle=False)
        files.write(_path(folder, part, format, name), buffer.getvalue())


def read_facts(folder: str) -> dict:
    """What they are of. Raises BadInput where there is no such folder."""
    path = files.join(folder, FACTS)
    if not files.exists(path):
        raise BadInput(f"{folder}: has no {FACTS}; expected a folder that --mode=embed wrote")
    return json.loads(files.read(path))


def read_parts(folder: str, names: Sequence[str]) -> Iterator[list[np.ndarray]]:
    """These columns of each part, in order; .npy on this machine's disk are mapped into memory.

    Raises BadInput where there is none.
    """
    format = read_facts(folder).get("format", "parquet")
    last = "" if format == "parquet" else f".{COLUMNS[-1]}"
    for path in files.expand(files.join(folder, f"part-*{last}.{format}")):
        part = int(path.rsplit("part-", 1)[1].split(".")[0])
        if format == "parquet":
            table = pq.read_table(io.BytesIO(files.read(path)), columns=list(names))
            yield [_array(table[name].combine_chunks()) for name in names]
        else:
            yield [_load(_path(folder, part, format, name)) for name in names]


def _path(folder: str, part: int, format: Format, name: str) -> str:
    between = "" if format == "parquet" else f".{name}"
    return files.join(folder, f"part-{part:06d}{between}.{format}")


def _load(path: str) -> np.ndarray:
    if files.is_remote(path):
        return np.load(io.BytesIO(files.read(path)), allow_pickle=False)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _column(rows: np.ndarray) -> np.ndarray | pa.Array:
    if rows.ndim == 1:
        return rows
    return pa.FixedSizeListArray.from_arrays(rows.ravel(), rows.shape[1])


def _array(column: pa.Array) -> np.ndarray:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy()
    return column.flatten().to_numpy().reshape(len(column), column.type.list_size)
