"""Arrays in .npz files, read without trusting them: no pickles, and no memory before sizes fit."""

import io
import math
import os
import zipfile
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from data import files
from mm.config import BadInput

_KINDS = "fiub"  # floats, ints, bools: what parameters are made of
_UNTYPED = np.dtype("V2")
_HEADER_BYTES = 1 << 16


def write_npz(path: str, arrays: Mapping[str, np.ndarray]) -> None:
    """By name, stored as they are; `np.load(path)` reads them. The same arrays, the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name in sorted(arrays):
            entry = zipfile.ZipInfo(f"{name}.npy")  # dated 1980, whenever it is written
            with archive.open(entry, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(arrays[name]), allow_pickle=False)


def read_npz(path: str, under: str = "") -> dict[str, np.ndarray]:
    """The arrays of a .npz, by name.

    under: where names begin with it, those alone are read. Members are stored as they are: a
    compressed one could grow a thousandfold. Two bytes without a type are a bfloat16, as numpy
    writes one. Raises BadInput for what is no .npz, holds objects, or does not have the size that
    its header declares.
    """
    path = files.local_copy(path)
    if not os.path.isfile(path):
        raise BadInput(f"{path}: does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(path, archive)
            some = [info for info in members if info.filename.startswith(under)]
            return {
                info.filename.removesuffix(".npy"): _member(path, archive, info)
                for info in some or members
            }
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise BadInput(f"{path}: is no whole .npz ({error})") from error


def _members(path: str, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Checked as far as the directory of the archive tells."""
    members, names = archive.infolist(), archive.namelist()
    if len(set(names)) != len(names):
        raise BadInput(f"{path}: has two members of one name")
    if wrong := next((name for name in names if not name.endswith(".npy")), None):
        raise BadInput(f"{path}: {wrong!r} is no .npy; expected arrays alone")
    total, there = 0, os.path.getsize(path)
    for info in members:
        if info.compress_type != zipfile.ZIP_STORED:
            raise BadInput(
                f"{path}: {info.filename!r} is compressed; expected arrays that are stored as they "
                "are (np.savez, not np.savez_compressed)"
            )
        total += info.file_size
        if info.file_size != info.compress_size or total > there:
            raise BadInput(
                f"{path}: declares more bytes ({total:,}) than it has ({there:,}); it is "
                "damaged, or made to harm"
            )
    return members


def _member(path: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    name = info.filename.removesuffix(".npy")
    with archive.open(info) as member:
        head = io.BytesIO(member.read(min(info.file_size, _HEADER_BYTES)))
        try:
            version = np.lib.format.read_magic(head)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran, dtype = read(head)
        except (ValueError, KeyError) as error:
            raise BadInput(f"{path}: {name!r} is no .npy ({error})") from error
    if dtype == _UNTYPED:
        dtype = np.dtype(ml_dtypes.bfloat16)
    elif dtype.kind not in _KINDS:
        raise BadInput(f"{path}: {name!r} is of {dtype}; expected numbers")
    declared, there = math.prod(shape) * dtype.itemsize, info.file_size - head.tell()
    if declared != there or min(shape, default=0) < 0:
        raise BadInput(
            f"{path}: {name!r} declares {declared:,} bytes and has {there:,}; it is damaged"
        )
    values = np.empty(shape, dtype, order="F" if fortran else "C")
    flat = values.reshape(-1, order="A").view(np.uint8).reshape(-1)
    with archive.open(info) as member:
        member.read(head.tell())
        at = 0
        while at < len(flat):
            part = member.read(min(len(flat) - at, 1 << 24))
            if not part:
                raise BadInput(f"{path}: {name!r} is cut off")
            flat[at : at + len(part)] = np.frombuffer(part, np.uint8)
            at += len(part)
    return values
