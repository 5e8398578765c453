"""Logical axes to mesh axes: one table for parameters, one for activations.

Every parameter names its dimensions ("embed", "mlp", ...); a rule says on which mesh axis such a
dimension is split. Nothing is replicated by accident: a large parameter that no rule splits, a rule
for an unknown axis or two dimensions on one mesh axis raise, unless the rules say otherwise.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mm import registry
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
    """Maps logical axes to mesh axes (one, or several), for parameters and for activations apart.

    `replicate` states on purpose that parameters which no rule splits may be large.
    """

    parameters: Mapping
    activations: Mapping
    replicate: bool = False

    def __post_init__(self):
        tables = ((self.parameters, PARAMETER_AXES), (self.activations, ACTIVATION_AXES))
        for table, known in tables:
            for logical, mesh_axes in table.items():
                if logical not in known:
                    hint = suggest(logical, known)
                    raise BadInput(f"sharding rule for unknown axis {logical!r}{hint} ({known})")
                for axis in axes_of(mesh_axes):
                    if axis not in AXES:
                        hint = suggest(axis, AXES)
                        raise BadInput(
                            f"sharding rule {logical!r} -> {axis!r}: no such mesh axis{hint} {AXES}"
                        )

    def parameter_spec(self, path: str, shape: tuple[int, ...], axes: tuple, mesh: Mesh) -> P:
        """The PartitionSpec of a parameter whose dimensions are named `axes`.

        A dimension that its mesh axis does not divide stays whole, and so does a small array; of a
        stack of layers each is taken for itself, as a scan does. Raises BadInput when two
        dimensions fall on one mesh axis and when a large array is left replicated on a mesh that
        could split it.
        """
        if len(axes) != len(shape):
            raise ValueError(f"{path}: shape {shape} has axes {axes}; one name a dimension")
        size = int(np.prod(shape))
        layers = math.prod(n for axis, n in zip(axes, shape, strict=True) if axis == "layers")
        spec: list[str | tuple[str, ...] | None] = []
        used: set[str] = set()
        for logical, length in zip(axes, shape, strict=True):
            over = axes_of(self.parameters.get(logical))
            if both := used.intersection(over):
                axis = min(both)
                raise BadInput(f"{path}: axes {axes} put two dimensions on mesh axis {axis!r}")
            over = tuple(axis for axis in over if mesh.shape[axis] > 1)
            parts = axis_size(mesh, over)
            if parts == 1 or length % parts or size // layers < SMALL:
                spec.append(None)
                continue
            used.update(over)
            spec.append(over[0] if len(over) == 1 else over)
        over = {axis for axes in self.parameters.values() for axis in axes_of(axes)} or AXES
        splittable = any(mesh.shape[axis] > 1 for axis in over)
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


def axes_of(mesh_axes: str | Sequence[str] | None) -> tuple[str, ...]:
    """The mesh axes of a rule or of an entry of a PartitionSpec: none, one or several."""
    if mesh_axes is None:
        return ()
    return (mesh_axes,) if isinstance(mesh_axes, str) else tuple(mesh_axes)


def axis_size(mesh: Mesh, axes: str | Sequence[str] | None) -> int:
    """Over how many devices these mesh axes split."""
    return math.prod(mesh.shape[axis] for axis in axes_of(axes))


_BATCH = {"batch": BATCH_AXES}
_TENSOR = {"mlp": "tensor", "heads": "tensor", "vocab": "tensor"}
PRESETS = {
    # Parameters on every device, the batch split: small models.
    "dp": ShardingRules(parameters={}, activations=_BATCH, replicate=True),
    # Parameters and moments split over all devices of the batch (ZeRO-3).
    "fsdp": ShardingRules(parameters={"embed": BATCH_AXES}, activations=_BATCH),
    # Split inside of a slice, copies across `replica`: the slow network carries gradients only.
    "hsdp": ShardingRules(parameters={"embed": "fsdp"}, activations=_BATCH),
    # As hsdp, and heads, MLP and vocabulary split over tensor (Megatron).
    "fsdp_tp": ShardingRules(parameters={"embed": "fsdp", **_TENSOR}, activations=_BATCH),
}


def find_rules(rules: str | Mapping) -> ShardingRules:
    """The preset of that name, or rules of the config's own: dict(parameters=, activations=)."""
    if isinstance(rules, Mapping):
        return registry.call(
            ShardingRules, {"activations": _BATCH, **rules}, "config.sharding.rules"
        )
    if rules not in PRESETS:
        hint = suggest(rules, PRESETS)
        raise BadInput(f"config.sharding.rules={rules!r}: expected one of {list(PRESETS)}{hint}")
    return PRESETS[rules]


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


def active_rules() -> ShardingRules | None:
    """The rules in use, or None."""
    active = _active.get()
    return None if active is None else active[1]


def platform() -> str:
    """What the step is compiled for: "cpu", "tpu" or "gpu"; not always what this machine has."""
    mesh = active_mesh()
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def constrain(x: Array, *axes: str | None) -> Array:
    """States how an activation is laid out; without a mesh in use, returns x as it is."""
    active = _active.get()
    if active is None:
        return x
    mesh, rules = active
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, rules.activation_spec(axes)))
