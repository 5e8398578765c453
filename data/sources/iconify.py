"""Icons as Iconify keeps them, JSON files of SVG; each is drawn when it is asked for.

In memory are the names, and the latest sets that were read. An icon takes a millisecond to draw,
and `data.prepare` makes pictures of them once and for all: data/builders/icons.
"""

import fnmatch
import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from data import files
from data.builders.holdout import held_out
from data.builders.iconify import icon_set
from data.builders.icons.names import concept, label
from data.builders.render import png, svg
from data.latest import Latest
from data.sources import BadExample, Feature, Source
from data.sources.part import part
from mm import registry
from mm.config import BadInput, suggest

# All let one use, change and pass on what is drawn; some want the authors named (SPDX).
LICENSES = (
    "Apache-2.0", "BSD-3-Clause", "CC-BY-3.0", "CC-BY-4.0", "CC0-1.0", "ISC", "MIT", "OFL-1.1",
    "Unlicense",
)  # fmt: skip
_HELD_OUT_AUTHORS, _HELD_OUT_CONCEPTS = 0.05, 0.02
_CACHE_BYTES = 1 << 28  # of files; the largest has 98 MB
# Categories of sets that say how icons are drawn, or who maintains them.
_NO_TAG = re.compile(r"UI|Material|Archive|Thematic")
_BLANK = png(svg({"body": "", "width": 1, "height": 1}), "nothing")

Split = Literal["train", "held_out", "unseen_sets"]

log = logging.getLogger(__name__)


@registry.register("source", "iconify")
def iconify(
    *,
    path: str,
    split: Split | None = None,
    unique: bool = False,
    sets: Sequence[str] = ("*",),
    exclude: Sequence[str] = ("openmoji*", "twemoji*"),
    licenses: Sequence[str] = LICENSES,
    first: float = 0.0,
    last: float = 1.0,
) -> Source:
    """`image` (PNG, 64 x 64, on white), `label` ("arrow left bold"), `tags`, `concept`, `set`, ...

    path: the folder with a file for each set, such as lucide.json. split: "unseen_sets" are all
    sets of a twentieth of the authors; of the others' icons, "held_out" are those of a fiftieth of
    the concepts, in every set; "train" is the rest, None is all. unique: one icon of each concept,
    of a set chosen by a hash: where two are alike, retrieval would call one wrong. sets, exclude:
    names of sets, or patterns; those excluded by default belong to the emoji. licenses: of the sets
    that are taken. first, last: shares, as in `jsonl`.

    `concept` are the sorted words without style ("arrow left"), the same over all sets. `tags` are
    other names on the same side of the split, and categories. `name`, `set`, `author` and `license`
    say where an icon is from. Hidden icons, which their sets have given up, are in no split. A
    drawing that is broken or all white is a BadExample. Raises BadInput when a file is no set, a
    pattern fits no set, or no icon is left.
    """
    taken = _Taken(split, sets, exclude, licenses)
    left_out: Counter[str] = Counter()
    found, prefixes = {}, []
    for one in _paths(path):
        icons = _read(one)
        prefixes.append(icons.prefix)
        found[one] = _choose(icons, taken, left_out)
    _check_patterns(sets, prefixes)
    if unique:
        _keep_one_each(found, left_out)
    source = _Icons({one: list(names) for one, names in found.items() if names}, left_out)
    counts = ", ".join(f"{count:,} ({why})" for why, count in left_out.most_common()) or "none"
    if not len(source):
        raise BadInput(f"{path}: has no icon for split={split!r}; left out: {counts}")
    log.info("%s: %s icons; left out: %s", path, f"{len(source):,}", counts)
    return part(source, first, last)


class _Taken(NamedTuple):
    split: Split | None
    sets: Sequence[str]
    exclude: Sequence[str]
    licenses: Sequence[str]


class _Set(NamedTuple):
    """What one file holds. size: of it, in bytes. styles: with which names may begin."""

    size: int
    prefix: str
    author: str
    license: str
    icons: dict[str, dict]  # all that are not hidden
    other_names: dict[str, list[str]]
    categories: dict[str, list[str]]
    category: str
    styles: tuple[str, ...]

    def label(self, name: str) -> str:
        return label(name, self.styles)

    def side(self, concept: str) -> Split:
        if held_out(self.author, _HELD_OUT_AUTHORS):
            return "unseen_sets"
        return "held_out" if held_out(concept, _HELD_OUT_CONCEPTS) else "train"

    def tags(self, name: str) -> list[str]:
        """Other names on the same side of the split, then categories."""
        mine = concept(self.label(name))
        tags = []
        for other in map(self.label, self.other_names.get(name, ())):
            theirs = concept(other)
            if theirs != mine and self.side(theirs) == self.side(mine):
                tags.append(other)
        for category in [*self.categories.get(name, ()), self.category]:
            tags += re.split(r"\s*[/&,]\s*", category.lower()) if category else []
        return list(dict.fromkeys(tags))


def _paths(path: str) -> list[str]:
    try:
        return files.expand(f"{path.rstrip('/')}/*.json")
    except BadInput as error:
        raise BadInput(
            f"{error}; expected the folder `json` of the npm package @iconify/json: "
            "`python -m data.builders.icons --data_dir=.data` installs it"
        ) from error


def _read(path: str) -> _Set:
    encoded = files.read(path)
    try:
        content = json.loads(encoded)
        info, found = content["info"], icon_set(content, {})
        icons, other_names, categories = found.drawable(), {}, {}
        for name, alias in found.aliases.items():
            if name not in icons and not alias.get("hidden"):
                other_names.setdefault(alias["parent"], []).append(name)
        for category, names in content.get("categories", {}).items():
            for name in names:
                categories.setdefault(name, []).append(category)
        return _Set(
            size=len(encoded),
            prefix=content["prefix"],
            author=info["author"]["name"],
            license=info["license"]["spdx"],
            icons=icons,
            other_names=other_names,
            categories=categories,
            category="" if _NO_TAG.match(info.get("category", "")) else info.get("category", ""),
            styles=tuple(content.get("prefixes", ())),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: is no icon set of Iconify ({error!r})") from error


def _choose(icons: _Set, taken: _Taken, left_out: Counter[str]) -> dict[str, str]:
    """Name -> concept of the icons that are taken; counts the others."""
    if not _fits(icons.prefix, taken.sets) or _fits(icons.prefix, taken.exclude):
        left_out["set is not wanted"] += len(icons.icons)
        return {}
    if icons.license not in taken.licenses:
        left_out[f"license is {icons.license}"] += len(icons.icons)
        return {}
    names = {name: concept(icons.label(name)) for name in icons.icons}
    if taken.split is None:
        return names
    kept = {name: what for name, what in names.items() if icons.side(what) == taken.split}
    left_out["in another split"] += len(names) - len(kept)
    return kept


def _fits(prefix: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(prefix, pattern) for pattern in patterns)


def _check_patterns(sets: Sequence[str], prefixes: Sequence[str]) -> None:
    for pattern in sets:
        if not fnmatch.filter(prefixes, pattern):
            raise BadInput(f"sets: no set fits {pattern!r}{suggest(pattern, prefixes)}")


def _keep_one_each(found: dict[str, dict[str, str]], left_out: Counter[str]) -> None:
    """Of each concept the icon whose name has the least hash stays, in the place where it was."""
    best: dict[str, tuple[bytes, str, str]] = {}
    for path, names in found.items():
        for name, what in names.items():
            digest = hashlib.sha256(f"{os.path.basename(path)}:{name}".encode()).digest()
            best[what] = min(best.get(what, (digest, path, name)), (digest, path, name))
    for path, names in found.items():
        found[path] = {name: w for name, w in names.items() if best[w][1:] == (path, name)}
        left_out["another icon of its concept is there"] += len(names) - len(found[path])


class _Icons:
    """names: of the icons in each file."""

    features: Mapping[str, Feature] = {
        "image": Feature("image"),
        "label": Feature("text"),
        "tags": Feature("text", ragged=True),
        "concept": Feature("text"),
        "name": Feature("text"),
        "set": Feature("text"),
        "author": Feature("text"),
        "license": Feature("text"),
    }

    def __init__(self, names: Mapping[str, list[str]], left_out: Mapping[str, int]):
        self.left_out = left_out
        self.shards = np.array([len(names) for names in names.values()], np.int64)
        self._paths, self._names = list(names), list(names.values())
        self._ends = np.cumsum(self.shards)
        self._sets = Latest(_read, _CACHE_BYTES, lambda icons: icons.size)

    def __len__(self) -> int:
        return int(self.shards.sum())

    def read(self, ids: np.ndarray, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
        keys = self.features if keys is None else keys
        return [self._record(index, keys) for index in ids.tolist()]

    def _record(self, index: int, keys: Sequence[str]) -> dict[str, Any]:
        file = int(np.searchsorted(self._ends, index, side="right"))
        name = self._names[file][index - self._ends[file]]
        icons = self._sets(self._paths[file])
        values = {
            "image": lambda: _picture(icons, name),
            "label": lambda: icons.label(name),
            "tags": lambda: icons.tags(name),
            "concept": lambda: concept(icons.label(name)),
            "name": lambda: name,
            "set": lambda: icons.prefix,
            "author": lambda: icons.author,
            "license": lambda: icons.license,
        }
        return {key: values[key]() for key in keys}


def _picture(icons: _Set, name: str) -> bytes:
    where = f"{icons.prefix}:{name}"
    drawn = png(svg(icons.icons[name]), where)
    if drawn == _BLANK:
        raise BadExample(f"the picture {where} is all white", "picture is all white")
    return drawn
