"""config + devices -> Program: the one place where model, objectives, optimizer and shardings meet.

Training, evaluation, planning and export all use the Program that is built here, of the keys in
`mm.recipe`: its arrays are those of `mm.assembly`, its functions those of `mm.steps`.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, ShapeDtypeStruct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mm import registry
from mm.assembly import Assembly, Batch, TrainState
from mm.config import BadInput, plain
from mm.models.inputs import ID, batch_spec
from mm.objectives.combine import System, Turns, find_turns, find_weights
from mm.objectives.views import Views
from mm.recipe import Recipe
from mm.sharding.mesh import BATCH_AXES, check_batch_size, make_mesh
from mm.sharding.rules import ShardingRules, find_rules
from mm.steps import Metrics, Steps, find_gradients


@dataclasses.dataclass(frozen=True)
class Program:
    """What runs: abstract state, shardings and jitted functions; see `build_program`.

    init(seed) -> TrainState; begin(state, params) -> the state with other first parameters;
    gradients(state, batch) -> ((loss, (metrics, buffers)), gradients);
    train_step(state, batch) -> (state, metrics), which donates the state;
    losses(state, batch) -> metrics of the objectives without dropout, nothing is trained;
    compare(state, batch) -> norms and cosines of the objectives' gradients;
    apply(function) -> a jitted (state, batch) -> function(system, views), rows over the batch axes,
    the same for the same function;
    embed(state, batch) -> (zimg, ztxt), both [b, embed_dim]; match(state, batch) -> [b], the logit
    of the first objective that tells pairs from others;
    training_flops() of the matmuls of a step on all devices, without what is computed twice to save
    memory (but for the tiles of contrastive losses); need(what, part, ...) raises BadInput when the
    system lacks a part (`System.need`).
    """

    recipe: Recipe
    mesh: Mesh
    batch_spec: dict[str, ShapeDtypeStruct]  # with shardings, or a step would be traced twice
    batch_sharding: NamedSharding
    state: TrainState  # ShapeDtypeStructs with shardings
    frozen: frozenset[str]  # paths of parameters that no step changes; they have no gradient
    added: frozenset[str]  # paths of parameters that config.adapt adds to the model
    init: Callable[[int], TrainState]
    begin: Callable[[TrainState, Any], TrainState]
    gradients: Callable[[TrainState, Batch], tuple[tuple[Array, tuple[Metrics, Any]], Any]]
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    losses: Callable[[TrainState, Batch], Metrics]
    compare: Callable[[TrainState, Batch], Metrics]
    apply: Callable[[Callable[[System, Views], Any]], Callable[[Any, Batch], Any]]
    embed: Callable[[TrainState, Batch], tuple[Array, Array]]
    match: Callable[[TrainState, Batch], Array]
    turns: Turns
    training_flops: Callable[[], float]
    need: Callable[..., None]


def build_program(config: Mapping, devices: Sequence[jax.Device] | None = None) -> Program:
    """Builds and checks everything that a config says of the computation; compiles nothing yet.

    Raises BadInput on an unknown key, a wrong type or a value that cannot work.
    """
    recipe = registry.call(Recipe, plain(config), "config")
    mesh, rules = registry.call(make_sharding, recipe.sharding, "config.sharding", devices=devices)
    batch_size, steps = recipe.global_batch_size, recipe.accumulation_steps
    check_batch_size("config.global_batch_size", batch_size, mesh, steps)
    weights = find_weights(recipe.objectives, recipe.total_steps)
    turns = find_turns(recipe.alternate, recipe.objectives)

    assembly = Assembly(recipe)
    parts = assembly.system.model, *assembly.system.objectives.values()
    spec = batch_spec([ID, *(read for part in parts for read in part.reads)], batch_size)
    shardings = assembly.shardings(mesh, rules)
    does = Steps(
        assembly=assembly,
        spec=spec,
        mesh=mesh,
        rules=rules,
        shardings=shardings,
        weights=weights,
        turns=turns,
        differentiate=find_gradients(assembly, spec, shardings),
    )

    replicated, by_batch = NamedSharding(mesh, P()), NamedSharding(mesh, P(BATCH_AXES))
    jit_init = jax.jit(assembly.init, out_shardings=shardings)
    seed = np.asarray(jax.random.key_data(jax.random.key(recipe.seed)))

    def jit_step(function: Callable, **how: Any) -> Seeded:
        return Seeded(
            jax.jit(function, in_shardings=(shardings, by_batch, replicated), **how), seed
        )

    @lru_cache(maxsize=16)  # of those that an evaluator makes anew each time, the last
    def apply(function: Callable[[System, Views], Any]) -> Callable[[TrainState, Batch], Any]:
        return jit_step(partial(does.look, function), out_shardings=by_batch)

    return Program(
        recipe=recipe,
        mesh=mesh,
        batch_spec={
            name: ShapeDtypeStruct(x.shape, x.dtype, sharding=by_batch) for name, x in spec.items()
        },
        batch_sharding=by_batch,
        state=jax.tree.map(
            lambda x, s: ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            assembly.abstract,
            shardings,
        ),
        frozen=assembly.optimizer.frozen,
        added=assembly.added,
        init=lambda seed: jit_init(jax.random.key(seed)),
        begin=jax.jit(
            assembly.begin, in_shardings=(shardings, shardings.params), out_shardings=shardings
        ),
        gradients=jit_step(
            does.gradients, out_shardings=(replicated, does.trained(shardings.params))
        ),
        train_step=jit_step(
            does.train_step, out_shardings=(shardings, replicated), donate_argnums=0
        ),
        losses=jit_step(does.losses, out_shardings=replicated),
        compare=jit_step(does.compare, out_shardings=replicated),
        apply=apply,
        embed=apply(lambda _, views: (views.image_embedding().z, views.text_embedding().z)),
        match=apply(lambda system, views: system.first("match").match(views)),
        turns=turns,
        training_flops=does.training_flops,
        need=assembly.system.need,
    )


class Seeded(NamedTuple):
    """A jitted function of (state, batch, seed) as one of (state, batch)."""

    jitted: Any
    seed: np.ndarray  # key data [2]

    def __call__(self, state: TrainState, batch: Batch) -> Any:
        return self.jitted(state, batch, self.seed)

    def trace(self, state: TrainState, batch: Batch) -> Any:
        """As that of what `jax.jit` returns."""
        return self.jitted.trace(state, batch, self.seed)

    def lower(self, state: TrainState, batch: Batch) -> Any:
        """As that of what `jax.jit` returns."""
        return self.jitted.lower(state, batch, self.seed)


def make_sharding(
    *,
    mesh: Mapping,
    rules: str | Mapping,
    replicate: bool = False,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[Mesh, ShardingRules]:
    """config.sharding: the mesh's sizes by axis, and a preset of rules or rules of its own.

    replicate: allow large parameters that no rule splits.
    """
    found = find_rules(rules)
    return make_mesh(mesh, devices), dataclasses.replace(
        found, replicate=replicate or found.replicate
    )


def check_batch(
    program: Program,
    batch: Batch,
    where: str = "config.input.preprocess",
    names: Collection[str] | None = None,
    any_size: bool = False,
) -> None:
    """Raises BadInput when the input's arrays are not those that the model reads.

    Images may also be float32. names: only these, of any number of rows (for evaluation). any_size:
    pictures may be of another size, and texts shorter (for a while, in training).
    """
    rows = names is None
    for name, want in program.batch_spec.items():
        if not rows and name not in names:
            continue
        if name not in batch:
            have = sorted(batch)
            raise BadInput(f"{where}: makes no {name!r} (makes {have})")
        got, first = batch[name], 0 if rows else 1
        allowed = (want.dtype, jnp.float32) if name.startswith("image") else (want.dtype,)
        found, shape = got.shape[first:], want.shape[first:]
        if any_size and name.startswith("image") and len(found) == len(shape):
            shape = (*shape[:-3], *found[-3:-1], *shape[-1:])
        if any_size and name.startswith("text") and len(found) == len(shape):
            shape = (*shape[:-1], min(shape[-1], found[-1]))
        if found != shape or got.dtype not in allowed:
            raise BadInput(
                f"{where}: makes {name} {got.dtype}{list(got.shape[first:])}, the model reads "
                f"{want.dtype}{list(want.shape[first:])}; change one of the two"
            )
