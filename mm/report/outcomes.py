"""What became of each example of an evaluation: a file that two runs are compared by.

`<workdir>/outcomes/<evaluation>.npz` holds for a metric such as "accuracy" the arrays
"accuracy/ids", the numbers of the examples, "accuracy/values", "accuracy/kind", how the metric is
made of them, and perhaps "accuracy/clusters"; and "of", JSON that says what was evaluated.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from mm.config import BadInput
from mm.report.measures import measure
from mm.runtime.workdir import write_atomic

FOLDER = "outcomes"
_OF = "of"


class Outcome(NamedTuple):
    """What a metric is made of: the examples' numbers in the source, and each one's value or row.

    kind: how, see `mm.report.measures`. clusters: examples of one number are drawn together in
    resamples, as captions of one picture; None: each alone.
    """

    ids: Int[np.ndarray, " n"]
    values: Shaped[np.ndarray, "n ..."]
    kind: str = "mean"
    clusters: Int[np.ndarray, " n"] | None = None

    @property
    def metric(self) -> float:
        """Of all examples."""
        if self.kind == "mean":
            return float(np.mean(self.values, dtype=np.float64))
        return float(measure(self.kind, self.values, np.ones((1, len(self.values))))[0])


def metrics(outcomes: Mapping[str, Outcome]) -> dict[str, float]:
    """By name."""
    return {name: outcome.metric for name, outcome in outcomes.items()}


def write(path: Any, outcomes: Mapping[str, Outcome], of: Mapping[str, Any]) -> None:
    """Writes the file, whole or not at all; makes its folder. of: see `read_of`."""
    arrays = {
        f"{name}/{part}": np.asarray(array)
        for name, outcome in outcomes.items()
        for part, array in outcome._asdict().items()
        if array is not None
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays, **{_OF: np.asarray(json.dumps(of))})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())


def read(path: Any) -> dict[str, Outcome]:
    """What `write` wrote. Raises BadInput for another file."""
    arrays, _ = _read(path)
    names = [key.removesuffix("/ids") for key in arrays if key.endswith("/ids")]
    try:
        return {
            name: Outcome(
                arrays[f"{name}/ids"],
                arrays[f"{name}/values"],
                str(arrays[f"{name}/kind"]),
                arrays.get(f"{name}/clusters"),
            )
            for name in names
        }
    except KeyError as error:
        raise BadInput(f"{path}: is no file of outcomes ({error})") from error


def read_of(path: Any) -> dict[str, Any]:
    """What was evaluated, see `mm.evaluate.Evaluation`. Raises as `read`."""
    return _read(path)[1]


def _read(path: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays, and what was evaluated."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = dict(file)
        of = json.loads(str(arrays.pop(_OF, "{}")))
        if "evaluator" not in of:
            raise BadInput(f"{path}: is of an older version; --mode=eval makes it again")
        return arrays, of
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path}: is no file of outcomes ({error})") from error
