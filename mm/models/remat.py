"""What the backward pass of a block computes again, and what it reads from memory."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import jax

from mm import registry
from mm.config import BadInput, suggest

# What a block may keep for its backward pass, by `checkpoint_name`: what its matmuls make, and the
# moments of layer norms, two numbers a token. All else (norms, activations, the scores of
# attention) is cheap to compute again.
RESIDUALS = ("moments", "query", "key", "value", "attention", "middle", "hidden")
# What is kept. "hidden", the widest, is half of the bytes and a third of the FLOPs.
REMAT_PRESETS = {
    "full": (),
    "hidden": tuple(name for name in RESIDUALS if name != "hidden"),
    "cheap": RESIDUALS,
}
Remat = Literal["none", "cheap", "hidden", "full"]

_counting: contextvars.ContextVar[bool] = contextvars.ContextVar("counting", default=False)


@contextlib.contextmanager
def count() -> Iterator[None]:
    """While a step is traced only to count its FLOPs: nothing is computed again."""
    token = _counting.set(True)
    try:
        yield
    finally:
        _counting.reset(token)


def counting() -> bool:
    """Whether a step is traced to be counted."""
    return _counting.get()


def find_policy(remat: str | Mapping) -> Callable:
    """What `jax.checkpoint` keeps, for a preset or lists of names."""
    if isinstance(remat, Mapping):
        return registry.call(remat_policy, remat, "remat")
    return jax.checkpoint_policies.save_only_these_names(*REMAT_PRESETS[remat])


def remat_policy(
    *,
    save: tuple[str, ...] = (),
    recompute: tuple[str, ...] = (),
    offload: tuple[str, ...] = (),
) -> Callable:
    """Each of RESIDUALS has to be in one of the lists, so that none is forgotten."""
    listed = [*save, *recompute, *offload]
    for name in listed:
        if name not in RESIDUALS:
            raise BadInput(f"no residual {name!r}{suggest(name, RESIDUALS)} (have {RESIDUALS})")
        if listed.count(name) > 1:
            raise BadInput(f"{name!r} is in two of save, recompute and offload; keep one")
    if missing := [name for name in RESIDUALS if name not in listed]:
        raise BadInput(f"does not say what to do with {missing}: add them to recompute or save")
    if not offload:
        return jax.checkpoint_policies.save_only_these_names(*save)
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=list(save),
        names_which_can_be_offloaded=list(offload),
        offload_src="device",
        offload_dst="pinned_host",
    )
