"""The state of a run, and the modules of a recipe: taken apart into arrays, and put together."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import mm.optim  # noqa: F401  (registers the optimizers)
from mm import registry
from mm.config import BadInput
from mm.models.keys import Keys
from mm.objectives.base import Buffer
from mm.objectives.combine import System
from mm.objectives.views import Views
from mm.optim.trained import join, trained
from mm.recipe import Recipe
from mm.sharding.rules import ShardingRules, shard_tree

Batch = Mapping[str, Array]


class TrainState(NamedTuple):
    """All the arrays of a checkpoint; `extras` are {"buffers": of the objectives, "teacher": its
    parameters}, where there are any."""

    step: Array
    params: Any
    opt_state: Any
    extras: Any


class Assembly:
    """Model, objectives, teacher and optimizer of a recipe.

    `system` and `abstract`, the first state, are shapes alone; `axes` are the logical axes of each
    parameter by its path, `added` the paths of what config.adapt adds. Raises BadInput for what
    cannot be built.
    """

    def __init__(self, recipe: Recipe):
        self.recipe, teacher, key = recipe, recipe.teacher, jax.random.key(0)
        self.teacher = teacher and registry.build("teacher", teacher, "config.teacher")
        self.system = nnx.eval_shape(self._make, key)
        self._graphdef, variables, _ = nnx.split(self.system, nnx.Param, Buffer)
        self.axes = parameter_axes(variables)
        self.added = frozenset(
            name for name, v in parameters(variables) if v.get_metadata("added", False)
        )
        if self._given:
            self._taught, variables_taught = nnx.split(nnx.eval_shape(self.teacher.make, key))
            self.axes |= parameter_axes(variables_taught)
        asked = any(objective.needs_teacher for objective in self.system.objectives.values())
        if self.teacher and not (asked or self.teacher.evaluate):
            raise BadInput(
                "config.teacher: no objective asks for it; leave it out, or of an average set "
                "evaluate=True"
            )
        self.optimizer = registry.build(
            "optimizer",
            recipe.optimizer,
            "config.optimizer",
            params=nnx.to_pure_dict(variables),
            added=self.added,
            total_steps=recipe.total_steps,
        )
        self.abstract = jax.eval_shape(self.init, key)

    def _make(self, key: Array) -> System:
        recipe, rngs = self.recipe, nnx.Rngs(params=key)
        return System(recipe.model, recipe.objectives, recipe.adapt or {}, rngs=rngs)

    @property
    def averages(self) -> bool:
        """Whether the teacher is an average of the parameters."""
        return bool(self.teacher and self.teacher.follows)

    @property
    def _given(self) -> bool:
        return bool(self.teacher and not self.teacher.follows)

    def init(self, key: Array) -> TrainState:
        """The first state."""
        _, params, buffers = map(pure, nnx.split(self._make(key), nnx.Param, Buffer))
        extras = {"buffers": buffers} if buffers else {}
        if self._given:
            extras["teacher"] = pure(nnx.state(self.teacher.make(key)))
        opt_state = self.optimizer.transform.init(trained(params, self.optimizer.frozen))
        return self.begin(TrainState(jnp.zeros((), jnp.int32), params, opt_state, extras), params)

    def begin(self, state: TrainState, params: Any) -> TrainState:
        """The state with other first parameters."""
        extras = state.extras
        if self.averages:
            extras = extras | {"teacher": jax.tree.map(jnp.copy, params)}
        return state._replace(params=params, extras=extras)

    def merge(self, state: TrainState) -> System:
        """The model and its objectives."""
        return nnx.merge(self._graphdef, state.params, state.extras.get("buffers", {}))

    def evaluated(self, state: TrainState) -> TrainState:
        """The state whose parameters are those to evaluate: the average, where it is asked for."""
        if self.teacher and self.teacher.evaluate:
            return state._replace(params=state.extras["teacher"])
        return state

    def part(self, state: TrainState) -> tuple[Any, Callable[[Any], System]]:
        """The parameters that are trained, and `merge` as a function of them."""

        def merge(params: Any) -> System:
            return self.merge(state._replace(params=join(params, state.params)))

        return trained(state.params, self.optimizer.frozen), merge

    def see(
        self, state: TrainState, system: System, batch: Batch, keys: Keys | None,
        kind: type = Views, **more: Any,
    ) -> Views:  # fmt: skip
        """What the system sees of a batch, and its teacher, if there is one."""
        if self.teacher:
            params = jax.lax.stop_gradient(state.extras["teacher"])
            if self.averages:
                average = self.merge(state._replace(params=params))
                more["averaged"], model = average.objectives, average.model
            else:
                model = nnx.merge(self._taught, params)
            more["teacher"] = Views(model, batch, keys, training=False)
        return kind(system.model, batch, keys, **more)

    def shardings(self, mesh: Mesh, rules: ShardingRules) -> TrainState:
        """Parameters by the rules, moments like them, everything else on every device."""
        abstract, replicated = self.abstract, NamedSharding(mesh, P())
        params = shard_tree(abstract.params, self.axes, mesh, rules)
        moments = optax.tree_utils.tree_map_params(
            self.optimizer.transform,
            lambda _, sharding: sharding,
            abstract.opt_state,
            trained(params, self.optimizer.frozen),
            transform_non_params=lambda _: replicated,
        )
        extras = jax.tree.map(lambda _: replicated, abstract.extras)
        if "teacher" in extras:
            extras["teacher"] = shard_tree(abstract.extras["teacher"], self.axes, mesh, rules)
        return TrainState(replicated, params, moments, extras)


def pure(tree: Any) -> Any:
    """An nnx state as plain dicts of arrays."""
    return nnx.to_pure_dict(tree) if isinstance(tree, nnx.State) else tree


def parameter_axes(variables: nnx.State) -> dict[str, tuple]:
    """The logical axes of each parameter by its path."""
    return {name: variable.get_metadata("axes") for name, variable in parameters(variables)}


def parameters(variables: nnx.State) -> Iterator[tuple[str, nnx.Param]]:
    """Each with its path."""
    for path, variable in variables.flat_state():
        yield "/".join(map(str, path)), variable
