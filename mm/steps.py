"""What a Program does to a state and a batch, before it is jitted."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, ShapeDtypeStruct
from jax.sharding import Mesh

from mm.accumulate import accumulate, wanted_views
from mm.assembly import Assembly, Batch, TrainState
from mm.models.keys import Keys, example_keys
from mm.models.remat import count
from mm.objectives.combine import (
    System,
    Turns,
    Weight,
    compare_gradients,
    total_loss,
    weighted,
)
from mm.objectives.views import Views
from mm.optim.trained import join, trained
from mm.planning.flops import count_flops
from mm.sharding.rules import ShardingRules, constrain, use_sharding

Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Steps:
    """Functions of (state, batch, seed); `mm.program.Program` says what each returns.

    The seed is an argument, the key data [2] of config.seed, and no constant: all seeds of a config
    share one compiled program.
    """

    assembly: Assembly
    spec: Mapping[str, ShapeDtypeStruct]  # of the batch of a training step
    mesh: Mesh
    rules: ShardingRules
    shardings: TrainState
    weights: Mapping[str, Weight]
    turns: Turns
    differentiate: Callable  # what `differentiated` or `accumulate` returns

    def _keys(self, state: TrainState, seed: Array) -> tuple[Keys, Array]:
        # By seed, step and row of the global batch: what is drawn depends on no mesh.
        key = jax.random.fold_in(jax.random.wrap_key_data(seed), state.step)
        for_views, for_objectives = jax.random.split(key)
        keys = example_keys(for_views, self.assembly.recipe.global_batch_size)
        return constrain(keys, "batch"), for_objectives

    def _fixed_keys(self, seed: Array, rows: int) -> Keys:
        # The same draws whatever the step, for any number of rows: to compare checkpoints by.
        return constrain(example_keys(jax.random.wrap_key_data(seed), rows), "batch")

    def gradients(self, state: TrainState, batch: Batch, seed: Array):
        """Of the weighted sum of the objectives whose turn it is."""
        with use_sharding(self.mesh, self.rules):
            keys, key = self._keys(state, seed)
            loss = partial(total_loss, self.weights, self.turns, key, state.step)
            found, grads = self.differentiate(loss, state, batch, keys)
        # Or XLA may keep whole gradients on every device inside of a step.
        return found, jax.lax.with_sharding_constraint(grads, self.trained(self.shardings.params))

    def trained(self, params: Any) -> Any:
        """What of a tree like the parameters is trained."""
        return trained(params, self.assembly.optimizer.frozen)

    def train_step(
        self, state: TrainState, batch: Batch, seed: Array
    ) -> tuple[TrainState, Metrics]:
        """Gradients, optimizer, averages, and what is logged of them."""
        (loss, (metrics, buffers)), grads = self.gradients(state, batch, seed)
        transform, learning_rate, _ = self.assembly.optimizer
        own = self.trained(state.params)
        updates, opt_state = transform.update(grads, state.opt_state, own)
        updates = self.turns.hold_idle(updates, state.step)
        metrics |= {
            "loss": loss,
            "learning_rate": learning_rate(state.step),
            "gradient_norm": optax.global_norm(grads),
            "parameter_norm": optax.global_norm(state.params),
            "update_norm": optax.global_norm(updates),
            "batch_hash": hash_ids(batch["id"]),
        }
        params = join(optax.apply_updates(own, updates), state.params)
        extras = state.extras | ({"buffers": buffers} if buffers else {})
        if self.assembly.averages:
            extras["teacher"] = self.assembly.teacher.update(state.extras["teacher"], params)
        return TrainState(state.step + 1, params, opt_state, extras), metrics

    def losses(self, state: TrainState, batch: Batch, seed: Array) -> Metrics:
        """Each objective by itself, without dropout."""
        with use_sharding(self.mesh, self.rules):
            keys = self._fixed_keys(seed, len(batch["id"]))
            state = self.assembly.evaluated(state)
            system, found = self.assembly.merge(state), {}
            for name, weight in self.weights.items():
                views = self.assembly.see(state, system, batch, keys, training=False)
                key = jax.random.wrap_key_data(seed)
                found |= weighted(weight, system, name, views, key, state.step)[1]
        return found

    def compare(self, state: TrainState, batch: Batch, seed: Array) -> Metrics:
        """The gradients of each objective by itself."""
        found, gradients = {}, differentiated(self.assembly.part, self.assembly.see)
        with use_sharding(self.mesh, self.rules):
            keys, key = self._keys(state, seed)
            for name in self.weights:
                alone = Turns(((0, ((name,),)),))
                loss = partial(total_loss, self.weights, alone, key, state.step)
                found[name] = gradients(loss, state, batch, keys)[1]
        return compare_gradients(found)

    def look(
        self, function: Callable[[System, Views], Any], state: TrainState, batch: Batch, seed: Array
    ) -> Any:
        """function(system, views) of a batch of any size."""
        with use_sharding(self.mesh, self.rules):
            keys = self._fixed_keys(seed, len(jax.tree.leaves(batch)[0]))
            system = self.assembly.merge(self.assembly.evaluated(state))
            return function(system, Views(system.model, batch, keys, training=False))

    def training_flops(self) -> float:
        """Of the matmuls of a step, nothing computed twice."""
        gradients = differentiated(self.assembly.part, self.assembly.see)

        def step(state: TrainState, batch: Batch, keys: Keys, key: Array) -> Any:
            loss = partial(total_loss, self.weights, self.turns, key, state.step)
            return gradients(loss, state, batch, keys)

        key, rows = jax.random.key(0), self.assembly.recipe.global_batch_size
        with count():
            state = self.assembly.abstract
            traced = jax.make_jaxpr(step)(state, self.spec, example_keys(key, rows), key)
        return count_flops(traced)


def find_gradients(
    assembly: Assembly, spec: Mapping[str, ShapeDtypeStruct], shardings: TrainState
) -> Callable:
    """How a step makes its gradients: at once, or from config.accumulation_steps micro-batches.

    Raises BadInput for objectives that micro-batches do not suffice.
    """
    steps = assembly.recipe.accumulation_steps
    if steps == 1:
        return differentiated(assembly.part, assembly.see)
    wanted = wanted_views(assembly.merge, assembly.see, assembly.abstract, spec, steps)
    shardings = trained(shardings.params, assembly.optimizer.frozen)
    return accumulate(assembly.part, assembly.see, wanted, steps, shardings)


def differentiated(part: Callable, see: Callable[..., Views]) -> Callable:
    """A function (loss, state, batch, keys of the rows) -> ((value, aux), gradients).

    Of loss(system, views of a system) over a whole batch at once, with respect to what is trained;
    what `accumulate` returns is its like.
    """

    def gradients(loss: Callable, state: TrainState, batch: Batch, keys: Keys):
        params, merge = part(state)

        def function(params: Any):
            return loss(merge(params), lambda system: see(state, system, batch, keys))

        return jax.value_and_grad(function, has_aux=True)(params)

    return gradients


def hash_ids(ids: Array) -> Array:
    """31 bits that tell one ordered batch of example ids from another, for logs."""
    position = jnp.arange(len(ids), dtype=jnp.uint32)
    mixed = (ids.astype(jnp.uint32) + position * jnp.uint32(0x9E3779B9)) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
    return (mixed.sum(dtype=jnp.uint32) >> 1).astype(jnp.int32)
