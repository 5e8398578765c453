"""Weights of others in safetensors, read so that no byte of them is believed or run.

The header is checked against the file's size, and shapes against the config, before anything is
allocated. Pickles (.bin, .pt, .pth, .ckpt) are refused: reading one runs its code.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

from mm.config import BadInput, listed
from mm.interop.json_files import read_json

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_TYPES = {
    "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16), "F32": np.dtype(np.float32),
    "I64": np.dtype(np.int64), "I32": np.dtype(np.int32), "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_), "F64": np.dtype(np.float64),
}  # fmt: skip
_FLOATS = ("float16", "bfloat16", "float32")


class Entry(NamedTuple):
    """An array of a file: its shape and type are known, its bytes are read by `read`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


Entries = dict[str, Entry]


def open_safetensors(folder: str, name: str = "model") -> Entries:
    """The arrays of `<name>.safetensors` in a folder, or of the parts that its index lists.

    Raises BadInput where there is none, or one is damaged.
    """
    path = Path(folder)
    index = path / f"{name}.safetensors.index.json"
    if (path / f"{name}.safetensors").is_file():
        return _safetensors(path / f"{name}.safetensors")
    if not index.is_file():
        pickles = sorted(p.name for p in path.glob("*") if p.suffix in PICKLES)
        if pickles:
            raise BadInput(
                f"{path / pickles[0]}: is a pickle, whose code would run; convert it to "
                "safetensors (`safetensors.torch.save_file`) where you trust it"
            )
        raise BadInput(f"{path}: has no {name}.safetensors")
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise BadInput(f"{index}: has no weight_map")
    parts: dict[str, Entries] = {}
    for part in sorted(set(map(str, where.values()))):
        if Path(part).name != part or not part.endswith(".safetensors"):
            raise BadInput(f"{index}: names {part!r}; expected a .safetensors file beside it")
        parts[part] = _safetensors(path / part)
    for key, part in where.items():
        if key not in parts[part]:
            raise BadInput(f"{index}: {part} has no {key!r}")
    return {key: parts[part][key] for key, part in where.items()}


def _safetensors(path: Path) -> Entries:
    try:
        # The library checks the header whole: its length, JSON, types, and that the arrays fill the
        # rest of the file one after the other.
        with safetensors.safe_open(path, framework="numpy"):
            pass
    except (safetensors.SafetensorError, OSError) as error:
        raise BadInput(f"{path}: is no whole safetensors file ({error})") from error
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    entries = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _TYPES:
            raise BadInput(f"{path}: {name} is {entry['dtype']}; expected F32, F16 or BF16")
        dtype, shape = _TYPES[entry["dtype"]], tuple(entry["shape"])
        start = 8 + length + entry["data_offsets"][0]
        entries[name] = Entry(shape, dtype, _reader(path, dtype, shape, start))
    return entries


def _reader(path: Path, dtype: np.dtype, shape: tuple, start: int) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        flat = np.fromfile(path, dtype, math.prod(shape), offset=start)
        return flat.reshape(shape)

    return read


def take(
    entries: Entries, expected: Mapping[str, tuple[int, ...]], where: str
) -> dict[str, np.ndarray]:
    """The arrays of these names and shapes, as float32. Raises BadInput, before any is read, where
    one is something else."""
    other = [
        f"{name} {list(entries[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if entries[name].shape != tuple(shape)
    ]
    if other:
        raise BadInput(f"{where}: has other shapes than its config says: {listed(other)}")
    types = [
        f"{name} {entries[name].dtype}"
        for name in expected
        if entries[name].dtype.name not in _FLOATS
    ]
    if types:
        raise BadInput(f"{where}: expected float32, float16 or bfloat16: {listed(types)}")
    return {name: entries[name].read().astype(np.float32) for name in expected}


def write_safetensors(weights: Mapping[str, np.ndarray], path: str | os.PathLike) -> None:
    """As torch's loaders want it: the metadata says so."""
    arrays = {name: np.ascontiguousarray(x, np.float32) for name, x in weights.items()}
    arrays = {name: x.reshape(np.shape(weights[name])) for name, x in arrays.items()}
    save_file(arrays, path, metadata={"format": "pt"})
    os.chmod(path, 0o644)  # the library's files are the owner's alone
