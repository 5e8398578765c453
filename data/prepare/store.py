"""Files of the data set that is made: whole under their names, or not there.

Local (or mounted) and remote folders through fsspec. A local file is written in the work folder of
the same disk, flushed to it, and renamed; a remote one is uploaded in one piece.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec

from data import files
from mm.config import BadInput

WORK = ".work"  # of a folder that is not finished: what a run has found out, and half files
_HALF = "half-"


def names(folder: str) -> list[str]:
    """The names in a folder, sorted; none if there is no such folder."""
    if not files.exists(folder):
        return []
    filesystem, inner = fsspec.core.url_to_fs(folder)
    return sorted(
        path.rstrip("/").rsplit("/", 1)[-1] for path in filesystem.ls(inner, detail=False)
    )


def write(path: str, data: bytes, output: str) -> None:
    """As `new_file`, of bytes."""
    with new_file(path, output) as temporary:
        Path(temporary).write_bytes(data)


@contextlib.contextmanager
def new_file(path: str, output: str) -> Iterator[str]:
    """A local path to write to; what is there afterwards gets the name `path`, inside `output`.

    Raises BadInput when there is no room, or no right, to write; then nothing is left behind.
    """
    try:
        with temporary_folder(output) as folder:
            temporary = os.path.join(folder, "file")
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            if files.is_remote(path):
                filesystem, inner = fsspec.core.url_to_fs(path)
                filesystem.put_file(temporary, inner)
            else:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                os.replace(temporary, path)
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another "
            "--output, and run it again: finished shards are kept"
        ) from error


@contextlib.contextmanager
def temporary_folder(output: str) -> Iterator[str]:
    """A folder that is gone afterwards: in the work folder, or this machine's of a remote one."""
    work = None
    if not files.is_remote(output):
        work = files.join(output, WORK)
        os.makedirs(work, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_HALF, dir=work) as folder:
        yield folder


def remove_work(output: str) -> None:
    """Deletes the work folder."""
    filesystem, inner = fsspec.core.url_to_fs(files.join(output, WORK))
    if filesystem.exists(inner):
        filesystem.rm(inner, recursive=True)


def remove_half_files(output: str) -> None:
    """Deletes what a killed run left half written."""
    folder = files.join(output, WORK)
    if files.is_remote(output) or not os.path.isdir(folder):
        return
    for name in os.listdir(folder):
        if name.startswith(_HALF):
            shutil.rmtree(os.path.join(folder, name))
