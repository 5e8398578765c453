"""Several objectives in one step: weights, their schedules, learned weights, turns, gradients."""

import itertools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from mm import registry
from mm.adapt import adapt
from mm.config import BadInput, suggest
from mm.models.layers import param
from mm.models.multimodal import Multimodal
from mm.objectives.base import Buffer, Objective
from mm.objectives.views import Views

Weight = float | Callable[[Array], Array] | None  # None: learned
OF_COMBINATION = ("weight", "from_step")  # not an objective's own keys
HEADS = {  # methods of objectives that evaluators read, and what to say where none has it
    "match": "matches, as dict(name='matching')",  # [b] logits of pairs
    "classify": "classifies, as dict(name='classification', num_classes=...)",  # [b, c] logits
    "estimate": "tells numbers, as dict(name='regression')",  # [b, n]
}


class System(nnx.Module):
    """The model and its objectives under one root, so that one tree holds every parameter."""

    def __init__(
        self, model: Mapping, objectives: Mapping, changes: Mapping = {}, *, rngs: nnx.Rngs
    ):
        self.model = registry.call(Multimodal, model, "config.model", rngs=rngs)
        adapt(self.model, changes, rngs)
        self.objectives = nnx.Dict()
        for name, spec in objectives.items():
            own = {key: value for key, value in spec.items() if key not in OF_COMBINATION}
            where = f"config.objectives.{name}"
            built = registry.build("objective", own, where, model=self.model, rngs=rngs)
            built.key = name
            self.objectives[name] = built
        used = {part for objective in self.objectives.values() for part in objective.uses}
        if "decoder" in used and self.model.decoder.memory == "fused":
            used.add("fusion")
        for part in ("fusion", "decoder"):
            if getattr(self.model, part) is not None and part not in used:
                raise BadInput(f"config.model.{part}: no objective reads it; leave it out")
        learned = [name for name, spec in objectives.items() if spec.get("weight") == "learned"]
        self.log_variances = nnx.Dict({name: param(rngs, 0.0, (), ()) for name in learned})

    def first(self, method: str) -> Any:
        """The first objective that has a method of `HEADS`, of views; None without one."""
        return next((x for x in self.objectives.values() if hasattr(x, method)), None)

    def need(self, what: str, *parts: str) -> None:
        """Raises BadInput when a part is not there: one of `HEADS`, or as in `Multimodal.need`.

        "classes=8": an objective that classifies, if there is one, has to tell so many apart.
        "writes": a decoder that reads no text, which could be the one that it should write.
        """
        for part in parts:
            name, _, count = part.partition("=")
            if name in HEADS and self.first(name) is None:
                raise BadInput(f"{what}: needs an objective that {HEADS[name]}")
            if name == "classes":
                found = getattr(self.first("classify"), "num_classes", int(count))
                if found != int(count):
                    raise BadInput(
                        f"{what}: numbers {count} classes, but the objective has num_classes="
                        f"{found}; make them equal"
                    )
            elif name == "writes":
                self.model.need(what, "decoder")
                if (memory := self.model.decoder.memory) in ("text", "fused"):
                    raise BadInput(
                        f"{what}: needs a decoder that reads no text, but config.model.decoder."
                        f"memory={memory!r}; use 'image'"
                    )
            elif name not in HEADS:
                self.model.need(what, part)


def find_weights(objectives: Mapping, total_steps: int) -> dict[str, Weight]:
    """The weight of each objective (default 1): a number, a schedule of steps, or None: learned.

    A schedule is dict(peak=2.0, name="cosine", ...), as a learning rate's. "learned" is exp(-s) for
    a learned s, which is added to the loss (Kendall, Gal and Cipolla 2018, eq. 10, without the
    halves). Raises BadInput for anything else.
    """
    if not objectives:
        raise BadInput(f"config.objectives: is empty; name one of {registry.names('objective')}")
    weights: dict[str, Weight] = {}
    for name, spec in objectives.items():
        where, weight = f"config.objectives.{name}.weight", spec.get("weight", 1.0)
        if isinstance(weight, Mapping):
            rest = {key: value for key, value in weight.items() if key != "peak"}
            factor = registry.build("schedule", rest, where, total_steps=total_steps)
            peak = number(f"{where}.peak", weight.get("peak", 1.0), "a finite number")
            weights[name] = lambda step, factor=factor, peak=peak: peak * factor(step)
        elif weight == "learned":
            weights[name] = None
        else:
            expected = "a finite number, a schedule or 'learned'"
            weights[name] = number(where, weight, expected)
    return weights


def number(where: str, value: Any, expected: str) -> float:
    """The value, or BadInput."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise BadInput(f"{where}={value!r}: expected {expected}")
    return value


class Turns(NamedTuple):
    """Which objectives a step has: those of entry step % len(turns), of the last phase begun.

    `phases` are (first step, turns), the first at step 0.
    """

    phases: tuple[tuple[int, tuple[tuple[str, ...], ...]], ...]

    def index(self, step: Array | int) -> Array | int:
        """The place of a step's objectives in `groups`."""
        begun = sum(step >= start for start, _ in self.phases[1:])
        length = len(self.phases[0][1])
        return begun * length + step % length

    def hold_idle(self, updates: Any, step: Array) -> Any:
        """Updates without those of what belongs to objectives that a step does not have.

        Their gradient is zero, but weight decay and old moments would go on.
        """
        if len(self.groups) == 1:
            return updates
        index, held = self.index(step), dict(updates)
        for part in ("objectives", "log_variances"):
            held[part] = {}
            for name, tree in updates.get(part, {}).items():
                due = jnp.array([name in group for group in self.groups])[index]
                held[part][name] = jax.tree.map(lambda x, due=due: jnp.where(due, x, 0), tree)
        return {part: held[part] for part in updates}

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """All that a step may have, phase by phase."""
        return [turn for _, turns in self.phases for turn in turns]


def find_turns(alternate: Sequence[Sequence[str]], objectives: Mapping) -> Turns:
    """Of config.alternate, by default one entry with all, and of each objective's `from_step`.

    Raises BadInput for an unknown name, one in no entry, and a step with nothing to learn.
    """
    turns = tuple(map(tuple, alternate)) or (tuple(objectives),)
    named = set(itertools.chain(*turns))
    for name in named - set(objectives):
        raise BadInput(f"config.alternate: no objective {name!r}{suggest(name, objectives)}")
    if missing := set(objectives) - named:
        raise BadInput(f"config.alternate={turns}: has no turn for {missing}")
    first = {name: spec.get("from_step", 0) for name, spec in objectives.items()}
    for name, step in first.items():
        if type(step) is not int or step < 0:
            raise BadInput(f"config.objectives.{name}.from_step={step!r}: expected an int >= 0")
    phases = []
    for start in sorted({0, *first.values()}):
        begun = tuple(tuple(name for name in turn if first[name] <= start) for turn in turns)
        if not all(begun):
            raise BadInput(
                f"config.alternate={turns}: with every from_step, a step from {start} on has no "
                "objective"
            )
        phases.append((start, begun))
    return Turns(tuple(phases))


def total_loss(
    weights: Mapping[str, Weight],
    turns: Turns,
    key: Array,
    step: Array,
    system: System,
    views: Callable[[System], Views],
) -> tuple[Array, tuple[dict[str, Array], Any]]:
    """The weighted sum over views that the objectives share; all metrics, and the new buffers.

    Of objectives whose turn it is not nothing is computed, and their metrics are NaN.
    """

    def run(turn: Sequence[str], system: System) -> tuple[Array, tuple[dict[str, Array], Any]]:
        seen, total, metrics = views(system), jnp.zeros(()), {}
        for name in turn:
            value, found = weighted(weights[name], system, name, seen, key, step)
            total, metrics = total + value, metrics | found
        return total, (metrics, nnx.to_pure_dict(nnx.state(system, Buffer)))

    groups = turns.groups
    if len(groups) == 1:
        return run(groups[0], system)
    graphdef, variables = nnx.split(system)

    def shapes(turn: Sequence[str]) -> dict[str, jax.ShapeDtypeStruct]:
        return jax.eval_shape(lambda v: run(turn, nnx.merge(graphdef, v))[1][0], variables)

    every = {name: shape for turn in groups for name, shape in shapes(turn).items()}
    nothing = {name: jnp.full(x.shape, jnp.nan, x.dtype) for name, x in every.items()}

    def branch(turn: Sequence[str]) -> Callable:
        def apply(variables: Any) -> tuple[Array, tuple[dict[str, Array], Any]]:
            total, (metrics, buffers) = run(turn, nnx.merge(graphdef, variables))
            return total, (nothing | metrics, buffers)

        return apply

    return jax.lax.switch(turns.index(step), [branch(turn) for turn in groups], variables)


def weighted(
    weight: Weight, system: System, name: str, views: Views, key: Array, step: Array
) -> tuple[Array, dict[str, Array]]:
    """The loss of one objective times its weight, and its metrics under its name."""
    objective: Objective = system.objectives[name]
    try:
        loss = objective(views, jax.random.fold_in(key, zlib.crc32(name.encode())))
    except BadInput as error:
        raise BadInput(f"config.objectives.{name}: {error}") from error
    metrics = {f"{name}/{metric}": value for metric, value in loss.metrics.items()}
    metrics[f"{name}/loss"] = loss.value
    if weight is None:
        spread = system.log_variances[name][...]
        metrics[f"{name}/weight"] = jnp.exp(-spread)
        return jnp.exp(-spread) * loss.value + spread, metrics
    if callable(weight):
        metrics[f"{name}/weight"] = weight = jnp.asarray(weight(step), jnp.float32)
    return weight * loss.value, metrics


def compare_gradients(gradients: Mapping[str, Any]) -> dict[str, Array]:
    """The norm of each objective's gradient and the cosine of each two, for the log.

    Over all parameters; a cosine below 0 says that two objectives pull apart (Yu et al. 2020).
    """
    norms = {name: optax.global_norm(tree) for name, tree in gradients.items()}
    found = {f"gradients/{name}/norm": norm for name, norm in norms.items()}
    for one, other in itertools.combinations(gradients, 2):
        product = optax.tree.vdot(gradients[one], gradients[other])
        both = jnp.maximum(norms[one] * norms[other], 1e-30)
        found[f"gradients/{one}/{other}/cosine"] = product / both
    return found
