"""Logical axes to mesh axes: one table for parameters, one for activations.

Every parameter names its dimensions ("embed", "mlp", ...); a rule says on which mesh axis such a
dimension is split. Nothing is replicated by accident: a large parameter that no rule splits, a rule
for an unknown axis or two dimensions on one mesh axis raise, unless the rules say otherwise.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mm.config import BadInput, suggest
from mm.sharding.mesh import AXES, BATCH_AXES

PARAMETER_AXES = (
    "embed", "mlp", "heads", "kv", "vocab", "patch", "tokens", "projection", "layers",
)  # fmt: skip
ACTIVATION_AXES = ("batch", "tokens", "width")
SMALL = 2**14  # elements; below this, splitting costs more messages than it saves memory
LARGE = 2**22  # elements; above this, a replicated parameter is taken for an oversight


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Maps logical axes to mesh axes, for parameters and for activations apart.

    `replicate` states on purpose that parameters which no rule splits may be large.
    """

    parameters: Mapping[str, str]
    activations: Mapping[str, str | tuple[str, ...]]
    replicate: bool = False

    def __post_init__(self):
        tables = ((self.parameters, PARAMETER_AXES), (self.activations, ACTIVATION_AXES))
        for table, known in tables:
            for logical, mesh_axes in table.items():
                if logical not in known:
                    hint = suggest(logical, known)
                    raise BadInput(f"sharding rule for unknown axis {logical!r}{hint} ({known})")
                for axis in _axes(mesh_axes):
                    if axis not in AXES:
                        hint = suggest(axis, AXES)
                        raise BadInput(
                            f"sharding rule {logical!r} -> {axis!r}: no such mesh axis{hint} {AXES}"
                        )

    def parameter_spec(self, path: str, shape: tuple[int, ...], axes: tuple, mesh: Mesh) -> P:
        """The PartitionSpec of a parameter whose dimensions are named `axes`.

        A dimension that its mesh axis does not divide stays whole, and so does a small array.
        Raises BadInput when two dimensions fall on one mesh axis and when a large array is left
        replicated on a mesh that could split it.
        """
        if len(axes) != len(shape):
            raise ValueError(f"{path}: shape {shape} has axes {axes}; one name a dimension")
        size = int(np.prod(shape))
        spec: list[str | None] = []
        for logical, length in zip(axes, shape, strict=True):
            axis = self.parameters.get(logical)
            if axis in spec and axis is not None:
                raise BadInput(f"{path}: axes {axes} put two dimensions on mesh axis {axis!r}")
            parts = mesh.shape[axis] if axis else 1
            spec.append(axis if parts > 1 and length % parts == 0 and size >= SMALL else None)
        splittable = mesh.shape["fsdp"] * mesh.shape["tensor"] > 1
        if size >= LARGE and not any(spec) and splittable and not self.replicate:
            raise BadInput(
                f"{path}: shape {shape} ({axes}) would be replicated on mesh {dict(mesh.shape)}; "
                "give one of its axes a rule that divides it, or add replicate=True to "
                "config.sharding"
            )
        while spec and spec[-1] is None:
            spec.pop()
        return P(*spec)

    def activation_spec(self, axes: tuple[str | None, ...]) -> P:
        """The PartitionSpec of an activation whose dimensions are named `axes`."""
        return P(*(self.activations.get(axis) for axis in axes))


def _axes(mesh_axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if mesh_axes is None:
        return ()
    return (mesh_axes,) if isinstance(mesh_axes, str) else tuple(mesh_axes)


_BATCH = {"batch": BATCH_AXES}
_TENSOR = {"mlp": "tensor", "heads": "tensor", "vocab": "tensor"}
PRESETS = {
    # Parameters on every device, the batch split: small models.
    "dp": ShardingRules(parameters={}, activations=_BATCH, replicate=True),
    # Parameters and moments split over fsdp (ZeRO-3), copies across `replica` (hybrid on slices).
    "fsdp": ShardingRules(parameters={"embed": "fsdp"}, activations=_BATCH),
    # As fsdp, and heads, MLP and vocabulary split over tensor (Megatron).
    "fsdp_tp": ShardingRules(parameters={"embed": "fsdp", **_TENSOR}, activations=_BATCH),
}


def find_rules(name: str) -> ShardingRules:
    """The preset of that name, or BadInput with the names there are."""
    if name not in PRESETS:
        hint = suggest(name, PRESETS)
        raise BadInput(f"config.sharding.rules={name!r}: expected one of {list(PRESETS)}{hint}")
    return PRESETS[name]


def shard_tree(tree: Any, axes: Mapping[str, tuple], mesh: Mesh, rules: ShardingRules) -> Any:
    """The tree's NamedShardings; `axes` holds each leaf's logical names by its path "a/b/c"."""

    def sharding(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, rules.parameter_spec(name, leaf.shape, axes[name], mesh))

    return jax.tree_util.tree_map_with_path(sharding, tree)


_active: contextvars.ContextVar[tuple[Mesh, ShardingRules] | None] = contextvars.ContextVar(
    "active_sharding", default=None
)


@contextlib.contextmanager
def use_sharding(mesh: Mesh, rules: ShardingRules) -> Iterator[None]:
    """While a step is traced: what `constrain` constrains to."""
    token = _active.set((mesh, rules))
    try:
        yield
    finally:
        _active.reset(token)


def active_mesh() -> Mesh | None:
    """The mesh in use, or None."""
    active = _active.get()
    return None if active is None else active[0]


def constrain(x: Array, *axes: str | None) -> Array:
    """States how an activation is laid out; without a mesh in use, returns x as it is."""
    active = _active.get()
    if active is None:
        return x
    mesh, rules = active
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, rules.activation_spec(axes)))
