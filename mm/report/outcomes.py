"""What became of each example of an evaluation: a file that two runs are compared by.

`<workdir>/outcomes/<evaluation>.npz` holds for a metric such as "accuracy" the arrays
"accuracy/ids", the numbers of the examples, and "accuracy/values", whose mean is the metric.
"""

import io
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from mm.config import BadInput
from mm.runtime.workdir import write_atomic

FOLDER = "outcomes"
_PARTS = ("ids", "values")


class Outcome(NamedTuple):
    """Of a metric that is a mean over examples: their numbers in the source, each one's value."""

    ids: Int[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values, dtype=np.float64))


def means(outcomes: Mapping[str, Outcome]) -> dict[str, float]:
    """The metrics."""
    return {name: outcome.mean for name, outcome in outcomes.items()}


def write(path: Any, outcomes: Mapping[str, Outcome]) -> None:
    """Writes the file, whole or not at all; makes its folder."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        **{
            f"{name}/{part}": array
            for name, outcome in outcomes.items()
            for part, array in zip(_PARTS, outcome, strict=True)
        },
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())


def read(path: Any) -> dict[str, Outcome]:
    """What `write` wrote. Raises BadInput for another file."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            names = [key.removesuffix("/ids") for key in file.files if key.endswith("/ids")]
            return {name: Outcome(*(file[f"{name}/{part}"] for part in _PARTS)) for name in names}
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path}: is no file of outcomes ({error})") from error
