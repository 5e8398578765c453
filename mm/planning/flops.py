"""FLOPs of matrix products and convolutions in a traced function, recompute included."""

import math
from typing import Any

from jax.extend import core
from jax.interpreters import partial_eval


def count_flops(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> float:
    """2 x multiplications of all matrix products and convolutions, over all devices; nothing else.

    A scan counts as often as it turns, a shard_map once a device, a Pallas kernel once a cell of
    its grid. A convolution counts its padding, as the field does, but not the zeros between the
    rows of a stride's gradient. What no result needs is left out. Raises NotImplementedError for a
    loop whose number of turns is not known.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return _count(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)[0])


def kernel_costs(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> dict[tuple, tuple[float, float]]:
    """(FLOPs, bytes in and out) of one call of each Pallas kernel that states no cost.

    By its name and results' shapes, which on a device are those inside of a shard_map. Raises
    ValueError when two have one name and results, but not one cost.
    """
    found = {}
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name == "pallas_call":
            if equation.params["cost_estimate"] is not None:
                continue
            arrays = [variable.aval for variable in (*equation.invars, *equation.outvars)]
            size = sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)
            shapes = tuple(variable.aval.shape for variable in equation.outvars)
            inner = {(equation.params["name"], shapes): (_equation(equation), float(size))}
        else:
            inner = {}
            for value in equation.params.values():
                for jaxpr in _jaxprs(value):
                    inner |= kernel_costs(jaxpr)
        for key, cost in inner.items():
            if found.setdefault(key, cost) != cost:
                raise ValueError(f"kernel {key[0]} with results {key[1]}: {cost} or {found[key]}")
    return found


def _count(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> float:
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    read = {id(x) for equation in jaxpr.eqns for x in equation.invars} | set(map(id, jaxpr.outvars))
    return sum(_equation(equation) for equation in jaxpr.eqns if not _dead(equation, read))


def _dead(equation: Any, read: set[int]) -> bool:
    """A kernel whose results nothing reads: JAX keeps it, XLA does not."""
    return equation.primitive.name == "pallas_call" and not any(
        id(variable) in read for variable in equation.outvars
    )


def _equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contract, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return (
            2.0
            * math.prod(equation.outvars[0].aval.shape)
            * math.prod(left[axis] for axis in contract)
        )
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
        # Of a group's kernel the inputs are those of the group.
        window = math.prod(kernel) / outputs / math.prod(params["lhs_dilation"])
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * window
    inner = [_count(jaxpr) for value in params.values() for jaxpr in _jaxprs(value)]
    if not any(inner):
        return 0.0
    if name == "cond":
        return max(inner)
    if name == "while":
        raise NotImplementedError("FLOPs of a loop that turns until a condition is met")
    return sum(inner) * _times(name, params)


def _times(name: str, params: dict[str, Any]) -> int:
    if name == "scan":
        return params["length"]
    if name == "shard_map":
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    return 1


def _jaxprs(value: Any) -> list:
    """The jaxprs that a parameter of an equation holds."""
    if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
        return [value]
    if isinstance(value, tuple | list):
        return [jaxpr for item in value for jaxpr in _jaxprs(item)]
    return []
