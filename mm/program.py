"""config + devices -> Program: the one place where model, objectives, optimizer and shardings meet.

Training, evaluation, planning and export all use the Program that is built here.
"""

import dataclasses
import zlib
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
from mm.models.keys import Keys, example_keys
from mm.models.multimodal import Multimodal
from mm.objectives.accumulate import accumulate, wanted_views
from mm.objectives.views import Views
from mm.optim.optimizer import hold
from mm.sharding.mesh import BATCH_AXES, check_batch_size, make_mesh
from mm.sharding.rules import ShardingRules, constrain, find_rules, shard_tree, use_sharding

Batch = Mapping[str, Array]
Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The keys of a config. Each group is checked by what it builds.

    pod: the topology that the recipe is meant for, such as "v5e:16x16"; planning takes it. init:
    parameters of another run to start from, see `mm.start`. accumulation_steps: in how many
    micro-batches a step computes its gradients, which are those of the whole batch.
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


class TrainState(NamedTuple):
    """All the arrays of a checkpoint; `extras` holds averages and queues, if there are any."""

    step: Array
    params: Any
    opt_state: Any
    extras: Any


class System(nnx.Module):
    """The model and its objectives under one root, so that one tree holds every parameter."""

    def __init__(self, model: Mapping, objectives: Mapping, *, rngs: nnx.Rngs):
        self.model = registry.call(Multimodal, model, "config.model", rngs=rngs)
        self.objectives = nnx.Dict(
            {
                name: registry.build(
                    "objective",
                    {key: value for key, value in spec.items() if key != "weight"},
                    f"config.objectives.{name}",
                    rngs=rngs,
                )
                for name, spec in objectives.items()
            }
        )


@dataclasses.dataclass(frozen=True)
class Program:
    """What runs: abstract state, shardings and jitted functions; see `build_program`.

    init(seed) -> TrainState; gradients(state, batch) -> ((loss, metrics), gradients);
    train_step(state, batch) -> (state, metrics), which donates the state; embed(params, batch) ->
    (zimg, ztxt), both [b, embed_dim] over the batch axes; training_flops() of the matmuls of a
    step on all devices, without what is computed twice to save memory.
    """

    recipe: Recipe
    mesh: Mesh
    batch_spec: dict[str, ShapeDtypeStruct]
    batch_sharding: NamedSharding
    state: TrainState  # ShapeDtypeStructs with shardings
    frozen: frozenset[str]  # paths of parameters that no step changes; their gradients are zero
    init: Callable[[int], TrainState]
    gradients: Callable[[TrainState, Batch], tuple[tuple[Array, Metrics], Any]]
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    embed: Callable[[Any, Batch], tuple[Array, Array]]
    training_flops: Callable[[], float]


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
    weights = check_weights(recipe.objectives)

    def make(key: Array) -> System:
        return System(recipe.model, recipe.objectives, rngs=nnx.Rngs(params=key))

    system = nnx.eval_shape(make, jax.random.key(0))
    graphdef, variables = nnx.split(system, nnx.Param)
    spec = batch_spec(system, batch_size)
    transform, learning_rate, frozen = registry.build(
        "optimizer",
        recipe.optimizer,
        "config.optimizer",
        params=nnx.to_pure_dict(variables),
        total_steps=recipe.total_steps,
    )

    def merge(params: Any) -> System:
        return nnx.merge(graphdef, hold(params, frozen))

    def init(key: Array) -> TrainState:
        params = nnx.to_pure_dict(nnx.split(make(key), nnx.Param)[1])
        return TrainState(jnp.zeros((), jnp.int32), params, transform.init(params), {})

    replicated, by_batch = NamedSharding(mesh, P()), NamedSharding(mesh, P(BATCH_AXES))
    abstract = jax.eval_shape(init, jax.random.key(0))
    axes = {"/".join(map(str, p)): v.get_metadata("axes") for p, v in variables.flat_state()}
    shardings = state_shardings(abstract, axes, transform, mesh, rules)
    state = jax.tree.map(
        lambda x, s: ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
    )

    loss = partial(total_loss, weights)
    differentiate = differentiated(merge, loss)
    if steps > 1:
        wanted = wanted_views(merge, abstract.params, spec, steps)
        differentiate = accumulate(merge, loss, wanted, steps, shardings.params)

    def gradients(state: TrainState, batch: Batch):
        # Keyed by seed, step and row of the global batch: what is drawn depends on no mesh.
        key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
        for_views, for_objectives = jax.random.split(key)
        with use_sharding(mesh, rules):
            keys = constrain(example_keys(for_views, batch_size), "batch")
            found, grads = differentiate(state.params, batch, keys, for_objectives)
        # Or XLA may keep whole gradients on every device inside of a step.
        return found, jax.lax.with_sharding_constraint(grads, shardings.params)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        (loss, metrics), grads = gradients(state, batch)
        updates, opt_state = transform.update(grads, state.opt_state, state.params)
        metrics |= {
            "loss": loss,
            "learning_rate": learning_rate(state.step),
            "gradient_norm": optax.global_norm(grads),
            "parameter_norm": optax.global_norm(state.params),
            "update_norm": optax.global_norm(updates),
            "batch_hash": hash_ids(batch["id"]),
        }
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state, state.extras), metrics

    def embed(params: Any, batch: Batch) -> tuple[Array, Array]:
        with use_sharding(mesh, rules):
            views = Views(merge(params).model, batch, None)
            return views.image_embedding().z, views.text_embedding().z

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
        gradients=jax.jit(
            gradients, in_shardings=step_in, out_shardings=(replicated, shardings.params)
        ),
        train_step=jax.jit(
            train_step, in_shardings=step_in, out_shardings=step_out, donate_argnums=0
        ),
        embed=jax.jit(embed, in_shardings=(shardings.params, by_batch), out_shardings=by_batch),
        training_flops=partial(
            count_training_flops, merge, loss, abstract.params, spec, frozen_towers(axes, frozen)
        ),
    )


def differentiated(merge: Callable[[Any], System], loss: Callable) -> Callable:
    """Value, metrics and gradients of loss(system, views, key) over a whole batch at once.

    Takes (params, batch, keys of the rows, key of the objectives), as what `accumulate` returns.
    """

    def function(params: Any, batch: Batch, keys: Keys, key: Array) -> tuple[Array, Metrics]:
        system = merge(params)
        return loss(system, Views(system.model, batch, keys), key)

    return jax.value_and_grad(function, has_aux=True)


def count_training_flops(
    merge: Callable[[Any], System],
    loss: Callable,
    params: Any,
    batch: Mapping[str, ShapeDtypeStruct],
    frozen: Collection[str],
) -> float:
    """Of the matmuls of a step: what the loss asks of the towers, and the objectives' own.

    Shapes suffice. frozen: towers that have no backward pass.
    """
    found = []

    def ask(params: Any, batch: Batch) -> None:
        system, key, size = merge(params), jax.random.key(0), len(batch["id"])
        views = Views(system.model, batch, example_keys(key, size))
        loss(system, views, key)
        found.append(size * views.training_flops(frozen))
        found.extend(
            objective.training_flops(size, system.model.embed_dim)
            for objective in system.objectives.values()
        )

    jax.eval_shape(ask, params, batch)
    return sum(found)


def total_loss(
    weights: Mapping[str, float], system: System, views: Views, key: Array
) -> tuple[Array, Metrics]:
    """The weighted sum of the objectives over views that they share, and all their metrics."""
    total, metrics = jnp.zeros(()), {}
    for name, objective in system.objectives.items():
        loss = objective(views, jax.random.fold_in(key, zlib.crc32(name.encode())))
        total = total + weights[name] * loss.value
        metrics |= {f"{name}/{metric}": value for metric, value in loss.metrics.items()}
        metrics[f"{name}/loss"] = loss.value
    return total, metrics


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
    return TrainState(replicated, params, moments, {})


def frozen_towers(names: Collection[str], frozen: Collection[str]) -> set[str]:
    """Which towers have no parameter that is trained."""
    trained = {name.split("/")[1] for name in names if name not in frozen}
    return {"image", "text"} - trained


def batch_spec(system: System, batch_size: int) -> dict[str, ShapeDtypeStruct]:
    """All that a step reads of a batch: for the towers, for the objectives, and for the log."""
    spec = system.model.batch_spec(batch_size)
    for objective in system.objectives.values():
        spec |= objective.batch_spec(batch_size)
    return spec | {"id": ShapeDtypeStruct((batch_size,), jnp.uint32)}


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


def check_weights(objectives: Mapping) -> dict[str, float]:
    """The weight of each objective (default 1)."""
    if not objectives:
        raise BadInput(f"config.objectives: is empty; name one of {registry.names('objective')}")
    weights = {name: spec.get("weight", 1.0) for name, spec in objectives.items()}
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise BadInput(f"config.objectives.{name}.weight={weight!r}: expected a number")
    return weights


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
    rows: bool = True,
) -> None:
    """Raises BadInput when the input's arrays are not those that the model reads.

    Images may also be float32. rows=False: of any number of rows, and only what the towers read
    (for evaluation).
    """
    for name, want in program.batch_spec.items():
        if not rows and name not in ("image", "text", "text_mask"):
            continue
        if name not in batch:
            have = sorted(batch)
            raise BadInput(f"{where}: makes no {name!r} (makes {have})")
        got, first = batch[name], 0 if rows else 1
        allowed = (want.dtype, jnp.float32) if name == "image" else (want.dtype,)
        if got.shape[first:] != want.shape[first:] or got.dtype not in allowed:
            raise BadInput(
                f"{where}: makes {name} {got.dtype}{list(got.shape[first:])}, the model reads "
                f"{want.dtype}{list(want.shape[first:])}; change one of the two"
            )
