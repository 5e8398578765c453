"""Which parameters are trained, and trees of these alone: None stands where another is."""

from collections.abc import Collection, Sequence
from typing import Any

import jax

from mm.config import BadInput
from mm.optim.paths import flatten, map_paths, match_any


def find_frozen(
    params: Any, trainable: Sequence[str], frozen: Sequence[str], added: Collection[str] = ()
) -> frozenset[str]:
    """The path names of what no step changes.

    All that no regex of `trainable` matches, or what one of `frozen` matches. Without either, what
    config.adapt has `added` to the model is trained and the rest of the model is not; with nothing
    added everything is trained. Raises BadInput for both lists at once, for a regex that matches
    nothing, and where nothing would be left to train.
    """
    if trainable and frozen:
        raise BadInput(
            f"trainable={list(trainable)}, frozen={list(frozen)}: each says what the other leaves; "
            "set one of them"
        )
    names = frozenset(flatten(params))
    if trainable:
        return names - match_any(params, trainable, "trainable")
    if not frozen and added:
        return frozenset(name for name in names if name.startswith("model/")) - frozenset(added)
    if names == (held := match_any(params, frozen, "frozen")):
        raise BadInput(f"frozen={list(frozen)}: leaves no parameter to train")
    return held


def trained(tree: Any, frozen: Collection[str]) -> Any:
    """The tree with None for what is frozen: no leaf, so no gradient, no moment, no memory."""
    return map_paths(lambda name, x: None if name in frozen else x, tree) if frozen else tree


def join(part: Any, tree: Any) -> Any:
    """The tree with the leaves that `part`, made by `trained`, has in place of its own."""
    return jax.tree.map(lambda new, old: old if new is None else new, part, tree, is_leaf=is_none)


def is_none(x: Any) -> bool:
    """Of a leaf that is not there."""
    return x is None
