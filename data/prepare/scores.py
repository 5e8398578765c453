"""Scores of examples, from a file that a trained model wrote; preparing runs no model.

NAME.npz has an array `id` (int64 [n], the examples' numbers in the source, in any order) and one or
more of scores (float [n], NaN where there is none), by default `score`; `num_examples` (one int),
if it is there, is the length of the source that was scored. NAME.jsonl has for each example a line
{"id": 3, "score": 0.31}.
"""

import io
import json
import zipfile
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from data import files
from mm.config import BadInput, suggest


class Scores(NamedTuple):
    """ids: ascending. values: NaN where an example was broken, which is dropped then.
    num_examples: of the source, if the file says it."""

    path: str
    ids: Int64[np.ndarray, " n"]
    values: Float32[np.ndarray, " n"]
    num_examples: int | None

    def of(self, example: int) -> float:
        """Raises BadInput when the file has none of it."""
        place = int(np.searchsorted(self.ids, example))
        if place == len(self.ids) or self.ids[place] != example:
            raise BadInput(
                f"{self.path}: has no score of example {example}; score the source that is "
                "prepared, all of it"
            )
        return float(self.values[place])

    def threshold(self, top: float) -> float:
        """The least score among the best `top` of those that have one, and at least of one."""
        found = np.sort(self.values[~np.isnan(self.values)])
        if not len(found):
            raise BadInput(f"{self.path}: no example has a score")
        return float(found[-max(round(top * len(found)), 1)])


def read_scores(path: str, key: str) -> Scores:
    """Raises BadInput when the file is none, or lacks the key."""
    if path.endswith(".npz"):
        found = _from_npz(path)
    elif path.endswith(".jsonl"):
        found = _from_lines(path, key)
    else:
        raise BadInput(f"path={path!r}: expected scores in a .npz or .jsonl file")
    for name in ("id", key):
        if name not in found:
            have = sorted(found.keys() - {"id", "num_examples"})
            raise BadInput(f"{path}: has no {name!r}{suggest(name, have)} (have {have})")
    ids, values = found["id"], found[key]
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or values.shape != ids.shape:
        raise BadInput(
            f"{path}: id is {ids.dtype} {list(ids.shape)} and {key} is {list(values.shape)}; "
            "expected whole numbers [n] and [n]"
        )
    ids, values = ids.astype(np.int64), values.astype(np.float32)
    order = np.argsort(ids, kind="stable")
    ids, values = ids[order], values[order]
    for bad, fault in ((ids[1:][ids[1:] == ids[:-1]], "two scores"),
                       (ids[np.isinf(values)], "a score that is infinite")):  # fmt: skip
        if len(bad):
            raise BadInput(f"{path}: has {fault} for example {bad[0]} ({len(bad):,} such)")
    if not len(ids):
        raise BadInput(f"{path}: is empty")
    count = found.get("num_examples")
    return Scores(path, ids, values, None if count is None else int(count))


def _from_npz(path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(files.read(path)), allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path}: is no .npz of plain arrays ({error})") from error


def _from_lines(path: str, key: str) -> dict[str, np.ndarray]:
    ids, values = [], []
    for number, line in enumerate(files.read(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            ids.append(int(record["id"]))
            values.append(float(record[key]))
        except (ValueError, TypeError, KeyError) as error:
            raise BadInput(
                f'{path} line {number}: expected {{"id": 3, "{key}": 0.31}}, got {line[:80]!r}'
            ) from error
    return {"id": np.array(ids, np.int64), key: np.array(values, np.float32)}
