"""Parameters by path: "model/image/encoder/blocks/mlp/up/kernel", and regex lists over paths."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from mm.config import BadInput, suggest


def path_name(path: tuple) -> str:
    """A key path of `jax.tree_util` as "a/b/c"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree: Any) -> dict[str, Any]:
    """Path name -> leaf, in the order of the tree."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_paths(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """The tree of function(path name, leaf)."""
    return jax.tree_util.tree_map_with_path(lambda path, x: function(path_name(path), x), tree)


def match_any(tree: Any, patterns: Sequence[str], where: str) -> frozenset[str]:
    """The path names that one of the regexes matches as a whole; each must match some."""
    names, found = list(flatten(tree)), set()
    for pattern in patterns:
        compiled = _compiled(pattern, where)
        if not (mine := {name for name in names if compiled.fullmatch(name)}):
            raise BadInput(f"{where}: {pattern!r} matches no parameter{suggest(pattern, names)}")
        found |= mine
    return frozenset(found)


def match_factors(
    tree: Any, entries: Sequence[Sequence], where: str, default: float
) -> dict[str, float]:
    """Path name -> factor of the first (regex, factor) whose regex matches the whole path.

    Raises BadInput for an entry that is first for no parameter, since it would do nothing.
    """
    for entry in entries:
        if (
            len(entry) != 2
            or not isinstance(entry[0], str)
            or isinstance(entry[1], bool)
            or not isinstance(entry[1], int | float)
        ):
            raise BadInput(f"{where}: {entry!r} is not a pair of a regex and a number")
        _compiled(entry[0], where)
    names, used = list(flatten(tree)), set()
    factors = {}
    for name in names:
        factors[name] = default
        for i, (pattern, factor) in enumerate(entries):
            if re.fullmatch(pattern, name):
                factors[name] = float(factor)
                used.add(i)
                break
    for i, (pattern, _) in enumerate(entries):
        if i not in used:
            hint = suggest(pattern, names)
            raise BadInput(
                f"{where}: {pattern!r} matches no parameter that an earlier entry leaves{hint}"
            )
    return factors


def _compiled(pattern: str, where: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise BadInput(f"{where}: {pattern!r} is not a regular expression: {error}") from error
