"""Labels of pictures in one folder: the files that come with ImageNet's validation."""

import csv
import io
import os
from collections.abc import Sequence

import numpy as np
import scipy.io
from scipy.io.matlab import MatReadError

from data import files
from mm.config import BadInput

_META = "meta.mat"
_NO_META = (KeyError, ValueError, TypeError, IndexError, NotImplementedError, MatReadError)


def read_labels(path: str, names: Sequence[str]) -> list[str]:
    """The label of each of the pictures `names`, which are sorted.

    path: LOC_val_solution.csv of Kaggle, whose labels are WordNet's ids, "n01440764"; a text with
    lines "ILSVRC2012_val_00000001.JPEG 65", where it is what follows the name; or
    ILSVRC2012_validation_ground_truth.txt of the development kit, a number a line, in the order of
    the names, of which meta.mat beside it knows WordNet's id. Raises BadInput for another file, and
    where a picture has no label.
    """
    path = os.path.expanduser(path)
    try:
        text = files.read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: is no UTF-8 ({error.reason} at byte {error.start})") from error
    lines = text.split("\n")
    if lines[0].startswith("ImageId,"):
        rows = [row for row in csv.reader(io.StringIO(text)) if row][1:]
        pairs = [(row[0], row[1].split()) for row in rows if len(row) == 2]
    else:
        rows = [line.split() for line in lines if line.strip()]
        if rows and all(len(row) == 1 and row[0].isdigit() for row in rows):
            return _ground_truth(path, [int(row[0]) for row in rows], names)
        pairs = [(row[0], row[1:]) for row in rows if len(row) == 2]
    labels: dict[str, str] = {}
    for name, found in pairs:
        if found and labels.setdefault(_stem(name), found[0]) != found[0]:
            raise BadInput(f"{path}: gives two labels to pictures called {_stem(name)}")
    if not labels or len(pairs) < len(rows):
        raise BadInput(f"{path}: is no file of labels as ImageNet has them, a picture a line")
    missing = [name for name in names if _stem(name) not in labels]
    if missing:
        raise BadInput(
            f"{path}: has no label for {len(missing):,} of {len(names):,} pictures; the first is "
            f"{missing[0]}"
        )
    return [labels[_stem(name)] for name in names]


def _stem(name: str) -> str:
    return os.path.splitext(name.rpartition("/")[2])[0]


def _ground_truth(path: str, numbers: list[int], names: Sequence[str]) -> list[str]:
    """By the order of the names."""
    if len(numbers) != len(names):
        raise BadInput(
            f"{path}: has {len(numbers):,} labels, in the order of the names, and there are "
            f"{len(names):,} pictures"
        )
    beside = files.join(files.parent(path), _META)
    if not files.exists(beside):
        raise BadInput(f"{beside}: is missing; it says which classes the numbers in {path} are")
    try:
        found = scipy.io.loadmat(io.BytesIO(files.read(beside)), squeeze_me=True)["synsets"]
        numbered = np.atleast_1d(found["ILSVRC2012_ID"]), np.atleast_1d(found["WNID"])
        known = {int(number): str(name) for number, name in zip(*numbered, strict=True)}
        return [known[number] for number in numbers]
    except _NO_META as error:
        raise BadInput(f"{beside}: does not name the classes in {path} ({error!r})") from error
