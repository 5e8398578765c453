"""The files of tests/golden/models."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

FILES = Path(__file__).parents[1] / "golden" / "models"


class Golden(NamedTuple):
    """A file's arrays by their names, in float32 where they are floats."""

    weight: dict[str, np.ndarray]
    input: dict[str, np.ndarray]
    output: dict[str, np.ndarray]
    gradient: dict[str, np.ndarray]


def read(name: str) -> Golden:
    """A safetensors file: the length of a header, the header in JSON, and the arrays."""
    data = (FILES / f"{name}.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    types = {"F16": np.float16, "F32": np.float32, "I32": np.int32, "BOOL": np.bool_}
    found = Golden({}, {}, {}, {})
    for key, entry in json.loads(data[8:start]).items():
        kind, _, name = key.partition("/")
        begin, end = entry["data_offsets"]
        x = np.frombuffer(data[start + begin : start + end], types[entry["dtype"]])
        x = x.reshape(entry["shape"])
        getattr(found, kind)[name] = x.astype(np.float32) if x.dtype == np.float16 else x
    return found
