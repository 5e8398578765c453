"""JSON objects that lie beside weights."""

import json
import os

from data import files
from mm.config import BadInput

_MAX_BYTES = 256 << 20  # tokenizers have a few


def read_json(path: str | os.PathLike) -> dict:
    """The object in a file, here or far away. Raises BadInput where there is none."""
    try:
        found = json.loads(read_text(path))
    except ValueError as error:
        raise BadInput(f"{path}: is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise BadInput(f"{path}: expected an object, got {type(found).__name__}")
    return found


def read_text(path: str | os.PathLike) -> str:
    """The text of a file to the letter, as its hash is of that. Raises BadInput for a huge one."""
    path = os.fspath(path)
    if (size := files.size(path)) > _MAX_BYTES:
        raise BadInput(f"{path}: has {size:,} bytes, expected at most {_MAX_BYTES:,}")
    return files.read(path).decode()
