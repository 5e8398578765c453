"""config + devices -> Program: the one place where model, objectives, optimizer and shardings meet.

Training, evaluation, planning and export all use the Program that is built here.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array, ShapeDtypeStruct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import mm.optim  # noqa: F401  (registers the optimizers)
from mm import registry
from mm.config import BadInput, plain
from mm.models.inputs import ID, batch_spec
from mm.models.keys import Keys, example_keys
from mm.models.remat import count
from mm.objectives.accumulate import accumulate, wanted_views
from mm.objectives.base import Buffer
from mm.objectives.combine import (
    System,
    Turns,
    compare_gradients,
    find_turns,
    find_weights,
    total_loss,
    weighted,
)
from mm.objectives.views import Views
from mm.optim.optimizer import hold
from mm.planning.flops import count_flops
from mm.sharding.mesh import BATCH_AXES, check_batch_size, make_mesh
from mm.sharding.rules import ShardingRules, constrain, find_rules, shard_tree, use_sharding

Batch = Mapping[str, Array]
Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The keys of a config. Each group is checked by what it builds.

    pod: the topology that the recipe is meant for, such as "v5e:16x16"; planning takes it. init:
    parameters of another run to start from, see `mm.start`. accumulation_steps: in how many
    micro-batches a step computes its gradients, which are those of the whole batch. teacher: see
    `mm.objectives.teacher`. alternate: names of objectives, those of each step in turn.
    """

    seed: int
    total_steps: int
    global_batch_size: int
    accumulation_steps: int = 1
    model: Mapping
    objectives: Mapping
    optimizer: Mapping
    sharding: Mapping
    input: Mapping
    evals: Mapping
    checkpoint: Mapping
    log: Mapping
    pod: str | None = None
    init: Mapping | None = None
    teacher: Mapping | None = None
    alternate: tuple[tuple[str, ...], ...] = ()


class TrainState(NamedTuple):
    """All the arrays of a checkpoint; `extras` are {"buffers": of the objectives, "teacher": its
    parameters}, where there are any."""

    step: Array
    params: Any
    opt_state: Any
    extras: Any


@dataclasses.dataclass(frozen=True)
class Program:
    """What runs: abstract state, shardings and jitted functions; see `build_program`.

    init(seed) -> TrainState; begin(state, params) -> the state with other first parameters;
    gradients(state, batch) -> ((loss, (metrics, buffers)), gradients);
    train_step(state, batch) -> (state, metrics), which donates the state;
    losses(state, batch) -> metrics of the objectives without dropout, nothing is trained;
    compare(state, batch) -> norms and cosines of the objectives' gradients;
    apply(function) -> a jitted (state, batch) -> function(views), rows over the batch axes;
    embed(state, batch) -> (zimg, ztxt), both [b, embed_dim];
    training_flops() of the matmuls of a step on all devices, without what is computed twice to save
    memory (but for the tiles of contrastive losses); need(what, part, ...) raises BadInput when the
    model lacks a part (`Multimodal.need`).
    """

    recipe: Recipe
    mesh: Mesh
    batch_spec: dict[str, ShapeDtypeStruct]
    batch_sharding: NamedSharding
    state: TrainState  # ShapeDtypeStructs with shardings
    frozen: frozenset[str]  # paths of parameters that no step changes; their gradients are zero
    init: Callable[[int], TrainState]
    begin: Callable[[TrainState, Any], TrainState]
    gradients: Callable[[TrainState, Batch], tuple[tuple[Array, tuple[Metrics, Any]], Any]]
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    losses: Callable[[TrainState, Batch], Metrics]
    compare: Callable[[TrainState, Batch], Metrics]
    apply: Callable[[Callable[[Views], Any]], Callable[[Any, Batch], Any]]
    embed: Callable[[TrainState, Batch], tuple[Array, Array]]
    turns: Turns
    training_flops: Callable[[], float]
    need: Callable[..., None]


def build_program(config: Mapping, devices: Sequence[jax.Device] | None = None) -> Program:
    """Builds and checks everything that a config says of the computation; compiles nothing yet.

    Raises BadInput on an unknown key, a wrong type or a value that cannot work.
    """
    recipe = Recipe(**registry.check(Recipe, plain(config), "config"))
    batch_size, steps = recipe.global_batch_size, recipe.accumulation_steps
    for key in ("total_steps", "accumulation_steps"):
        if (value := getattr(recipe, key)) < 1:
            raise BadInput(f"config.{key}={value}: must be at least 1")
    mesh, rules = registry.call(make_sharding, recipe.sharding, "config.sharding", devices=devices)
    check_batch_size("config.global_batch_size", batch_size, mesh, steps)
    weights = find_weights(recipe.objectives, recipe.total_steps)
    turns = find_turns(recipe.alternate, recipe.objectives)
    teacher = recipe.teacher and registry.build("teacher", recipe.teacher, "config.teacher")

    def make(key: Array) -> System:
        return System(recipe.model, recipe.objectives, rngs=nnx.Rngs(params=key))

    system = nnx.eval_shape(make, jax.random.key(0))
    graphdef, variables, _ = nnx.split(system, nnx.Param, Buffer)
    parts = system.model, *system.objectives.values()
    spec = batch_spec([ID, *(read for part in parts for read in part.reads)], batch_size)
    transform, learning_rate, frozen = registry.build(
        "optimizer",
        recipe.optimizer,
        "config.optimizer",
        params=nnx.to_pure_dict(variables),
        total_steps=recipe.total_steps,
    )
    axes = parameter_axes(variables)
    if teacher and not teacher.follows:
        taught, taught_variables = nnx.split(nnx.eval_shape(teacher.make, jax.random.key(0)))
        axes |= parameter_axes(taught_variables)

    def merge(state: TrainState) -> System:
        buffers = state.extras.get("buffers", {})
        return nnx.merge(graphdef, hold(state.params, frozen), buffers)

    def see(
        state: TrainState, system: System, batch: Batch, keys: Keys | None,
        kind: type = Views, **more: Any,
    ) -> Views:  # fmt: skip
        """What the system sees of a batch, and its teacher, if there is one."""
        if teacher:
            params = jax.lax.stop_gradient(state.extras["teacher"])
            if teacher.follows:
                average = merge(state._replace(params=params))
                more["averaged"], model = average.objectives, average.model
            else:
                model = nnx.merge(taught, params)
            more["teacher"] = Views(model, batch, keys, training=False)
        return kind(system.model, batch, keys, **more)

    def init(key: Array) -> TrainState:
        _, params, buffers = map(pure, nnx.split(make(key), nnx.Param, Buffer))
        extras = {"buffers": buffers} if buffers else {}
        if teacher and not teacher.follows:
            extras["teacher"] = pure(nnx.state(teacher.make(key)))
        state = TrainState(jnp.zeros((), jnp.int32), params, transform.init(params), extras)
        return begin(state, params)

    def begin(state: TrainState, params: Any) -> TrainState:
        extras = state.extras
        if teacher and teacher.follows:
            extras = extras | {"teacher": jax.tree.map(jnp.copy, params)}
        return state._replace(params=params, extras=extras)

    replicated, by_batch = NamedSharding(mesh, P()), NamedSharding(mesh, P(BATCH_AXES))
    abstract = jax.eval_shape(init, jax.random.key(0))
    shardings = state_shardings(abstract, axes, transform, mesh, rules)
    state = jax.tree.map(
        lambda x, s: ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
    )

    differentiate = differentiated(merge, see)
    if steps > 1:
        wanted = wanted_views(merge, see, abstract, spec, steps)
        differentiate = accumulate(merge, see, wanted, steps, shardings.params)

    def keyed(state: TrainState) -> tuple[Keys, Array]:
        # By seed, step and row of the global batch: what is drawn depends on no mesh.
        key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
        for_views, for_objectives = jax.random.split(key)
        return constrain(example_keys(for_views, batch_size), "batch"), for_objectives

    def gradients(state: TrainState, batch: Batch):
        with use_sharding(mesh, rules):
            keys, key = keyed(state)
            loss = partial(total_loss, weights, turns, key, state.step)
            found, grads = differentiate(loss, state, batch, keys)
        # Or XLA may keep whole gradients on every device inside of a step.
        return found, jax.lax.with_sharding_constraint(grads, shardings.params)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        (loss, (metrics, buffers)), grads = gradients(state, batch)
        updates, opt_state = transform.update(grads, state.opt_state, state.params)
        updates = turns.hold_idle(updates, state.step)
        metrics |= {
            "loss": loss,
            "learning_rate": learning_rate(state.step),
            "gradient_norm": optax.global_norm(grads),
            "parameter_norm": optax.global_norm(state.params),
            "update_norm": optax.global_norm(updates),
            "batch_hash": hash_ids(batch["id"]),
        }
        params = optax.apply_updates(state.params, updates)
        extras = state.extras | ({"buffers": buffers} if buffers else {})
        if teacher and teacher.follows:
            extras["teacher"] = teacher.update(state.extras["teacher"], params)
        return TrainState(state.step + 1, params, opt_state, extras), metrics

    def losses(state: TrainState, batch: Batch) -> Metrics:
        with use_sharding(mesh, rules):
            # Any number of rows, and the same draws whatever the step: to compare checkpoints by.
            keys = example_keys(jax.random.key(recipe.seed), len(batch["id"]))
            system = merge(state)
            found = {}
            for name in system.objectives:
                views = see(state, system, batch, constrain(keys, "batch"), training=False)
                key = jax.random.key(recipe.seed)
                found |= weighted(weights[name], system, name, views, key, state.step)[1]
        return found

    def compare(state: TrainState, batch: Batch) -> Metrics:
        found = {}
        with use_sharding(mesh, rules):
            keys, key = keyed(state)
            for name in recipe.objectives:
                loss = partial(total_loss, weights, Turns(((0, ((name,),)),)), key, state.step)
                found[name] = differentiated(merge, see)(loss, state, batch, keys)[1]
        return compare_gradients(found)

    def apply(function: Callable[[Views], Any]) -> Callable[[Any, Batch], Any]:
        def run(state: TrainState, batch: Batch) -> Any:
            with use_sharding(mesh, rules):
                rows = len(jax.tree.leaves(batch)[0])
                keys = constrain(example_keys(jax.random.key(recipe.seed), rows), "batch")
                return function(Views(merge(state).model, batch, keys, training=False))

        return jax.jit(run, in_shardings=(shardings, by_batch), out_shardings=by_batch)

    def training_flops() -> float:
        def step(state: TrainState, batch: Batch, keys: Keys, key: Array) -> Any:
            loss = partial(total_loss, weights, turns, key, state.step)
            return differentiated(merge, see)(loss, state, batch, keys)

        key = jax.random.key(0)
        with count():
            traced = jax.make_jaxpr(step)(abstract, spec, example_keys(key, batch_size), key)
        return count_flops(traced)

    jit_init = jax.jit(init, out_shardings=shardings)
    step_in, step_out = (shardings, by_batch), (shardings, replicated)
    return Program(
        recipe=recipe,
        mesh=mesh,
        batch_spec=spec,
        batch_sharding=by_batch,
        state=state,
        frozen=frozen,
        init=lambda seed: jit_init(jax.random.key(seed)),
        begin=jax.jit(begin, in_shardings=(shardings, shardings.params), out_shardings=shardings),
        gradients=jax.jit(
            gradients, in_shardings=step_in, out_shardings=(replicated, shardings.params)
        ),
        train_step=jax.jit(
            train_step, in_shardings=step_in, out_shardings=step_out, donate_argnums=0
        ),
        losses=jax.jit(losses, in_shardings=step_in, out_shardings=replicated),
        compare=jax.jit(compare, in_shardings=step_in, out_shardings=replicated),
        apply=apply,
        embed=apply(lambda views: (views.image_embedding().z, views.text_embedding().z)),
        turns=turns,
        training_flops=training_flops,
        need=system.model.need,
    )


def differentiated(merge: Callable[[TrainState], System], see: Callable[..., Views]) -> Callable:
    """A function (loss, state, batch, keys of the rows) -> ((value, aux), gradients).

    Of loss(system, views of a system) over a whole batch at once; what `accumulate` returns is its
    like.
    """

    def gradients(loss: Callable, state: TrainState, batch: Batch, keys: Keys):
        def function(params: Any):
            system = merge(state._replace(params=params))
            return loss(system, lambda system: see(state, system, batch, keys))

        return jax.value_and_grad(function, has_aux=True)(state.params)

    return gradients


def pure(tree: Any) -> Any:
    """An nnx state as plain dicts of arrays."""
    return nnx.to_pure_dict(tree) if isinstance(tree, nnx.State) else tree


def parameter_axes(variables: nnx.State) -> dict[str, tuple]:
    """The logical axes of each parameter by its path."""
    return {"/".join(map(str, p)): v.get_metadata("axes") for p, v in variables.flat_state()}


def state_shardings(
    abstract: TrainState,
    axes: Mapping[str, tuple],
    transform: optax.GradientTransformation,
    mesh: Mesh,
    rules: ShardingRules,
) -> TrainState:
    """Parameters by the rules, moments like their parameters, everything else on every device."""
    params = shard_tree(abstract.params, axes, mesh, rules)
    replicated = NamedSharding(mesh, P())

    def hollow(moment: Any) -> bool:  # in the place of a frozen parameter's
        return isinstance(moment, optax.MaskedNode)

    moments = optax.tree_utils.tree_map_params(
        transform,
        lambda moment, sharding: moment if hollow(moment) else sharding,
        abstract.opt_state,
        params,
        transform_non_params=lambda _: replicated,
        is_leaf=hollow,
    )
    extras = jax.tree.map(lambda _: replicated, abstract.extras)
    if "teacher" in extras:
        extras["teacher"] = shard_tree(abstract.extras["teacher"], axes, mesh, rules)
    return TrainState(replicated, params, moments, extras)


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


def hash_ids(ids: Array) -> Array:
    """31 bits that tell one ordered batch of example ids from another, for logs."""
    position = jnp.arange(len(ids), dtype=jnp.uint32)
    mixed = (ids.astype(jnp.uint32) + position * jnp.uint32(0x9E3779B9)) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
    return (mixed.sum(dtype=jnp.uint32) >> 1).astype(jnp.int32)


def check_batch(
    program: Program,
    batch: Batch,
    where: str = "config.input.preprocess",
    names: Collection[str] | None = None,
) -> None:
    """Raises BadInput when the input's arrays are not those that the model reads.

    Images may also be float32. names: only these, of any number of rows (for evaluation).
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
        if got.shape[first:] != want.shape[first:] or got.dtype not in allowed:
            raise BadInput(
                f"{where}: makes {name} {got.dtype}{list(got.shape[first:])}, the model reads "
                f"{want.dtype}{list(want.shape[first:])}; change one of the two"
            )
