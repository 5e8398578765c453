"""Ops that turn the names of classes into numbers."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data import files
from data.preprocess import Columns, Op
from data.preprocess.draws import Draws
from mm import registry
from mm.config import BadInput, Positive, suggest

Given = Positive | str | Sequence[str] | Mapping[str, Any]
_SHOWN = 8  # classes in a message


class Classes(NamedTuple):
    """names: of class 0, 1, ... numbers: the class of each name, and of each other name."""

    names: tuple[str, ...]
    numbers: Mapping[str, int]

    def find(self, value: Any, key: str) -> int:
        """The number of a value: its name, or itself. Raises BadInput for what is no class."""
        if isinstance(value, int | np.integer) and not isinstance(value, bool):
            if 0 <= value < len(self.names):
                return int(value)
            raise BadInput(
                f"{key!r}: {value} is no class; expected 0 .. {len(self.names) - 1}, as classes "
                f"has {len(self.names)}"
            )
        if not isinstance(value, str):
            raise BadInput(f"{key!r}: {value!r:.80} is no class; expected a name or a whole number")
        if value not in self.numbers:
            more = len(self.names) - _SHOWN
            raise BadInput(
                f"{key!r}: {value!r:.80} is no class{suggest(value, self.numbers)}; add it to "
                f"classes, which has {list(self.names[:_SHOWN])}"
                + (f" and {more} more" if more > 0 else "")
            )
        return self.numbers[value]


def read_classes(given: Given) -> Classes:
    """Of a number of classes, their names, {name: [other names]}, or a JSON file of either.

    Raises BadInput where there is none, or one name means two.
    """
    what = f"classes={given!r:.80}"
    if isinstance(given, str):
        try:
            found = json.loads(files.read(os.path.expanduser(given)))
        except ValueError as error:
            raise BadInput(f"{what}: is no JSON ({error})") from error
    else:
        found = tuple(map(str, range(given))) if isinstance(given, int) else given
    if not isinstance(found, Mapping):
        found = dict.fromkeys(found, ()) if _are_texts(found) and _differ(found, what) else {}
    if not found or not all(_are_texts(others) for others in found.values()):
        raise BadInput(f"{what}: expected names, {{name: [other names]}}, or a JSON file of either")
    numbers: dict[str, int] = {}
    for number, (name, others) in enumerate(found.items()):
        for one in (name, *others):
            if numbers.setdefault(one, number) != number:
                raise BadInput(f"{what}: {one!r} is a name of two classes; leave one out")
    return Classes(tuple(found), numbers)


@registry.register("op", "label")
def label(*, key: str, classes: Given) -> Op:
    """Writes `label`, int32 [b]: the number of the class that the field `key` names.

    classes: their names in order, {name: [other names]}, a JSON file of either, or how many there
    are. A field of whole numbers holds them already; they are held against the range. Raises
    BadInput for a value that is no class.
    """
    known = read_classes(classes)

    def apply(columns: Columns, draws: Draws) -> Columns:
        return columns | {"label": np.array([known.find(x, key) for x in columns[key]], np.int32)}

    return Op(apply, reads=(key,), stage="text", classes=known.names)


@registry.register("op", "labels")
def labels(*, key: str, classes: Given, others: bool = False) -> Op:
    """Writes `labels`, float32 [b, c]: 1 for each class that is in the list `key`, 0 for the rest.

    classes: as for `label`. others: leave out what is no class; otherwise it raises BadInput.
    """
    known = read_classes(classes)

    def apply(columns: Columns, draws: Draws) -> Columns:
        found = np.zeros((len(columns[key]), len(known.names)), np.float32)
        for row, values in zip(found, columns[key], strict=True):
            if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
                raise BadInput(f"{key!r} is one value, not a list of them; use label")
            for value in values:
                if not others or value in known.numbers or isinstance(value, int | np.integer):
                    row[known.find(value, key)] = 1
        return columns | {"labels": found}

    return Op(apply, reads=(key,), stage="text", classes=known.names)


def _are_texts(found: Any) -> bool:
    return (
        isinstance(found, Sequence)
        and not isinstance(found, str)
        and all(isinstance(one, str) for one in found)
    )


def _differ(names: Sequence[str], what: str) -> bool:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BadInput(f"{what}: {name!r} is there twice; leave one out")
        seen.add(name)
    return True
