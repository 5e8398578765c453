"""Trains one objective on one batch, for tests of what it can learn."""

import jax
import optax
from flax import nnx

from mm.models.keys import example_keys
from mm.objectives import Buffer, Loss, Views


def fit(model, objective, batch, *, steps: int, learning_rate: float = 3e-3) -> Loss:
    """The loss and metrics of the last of so many steps of Adam, each with draws of its own."""
    graphdef, *variables = nnx.split((model, objective), nnx.Param, Buffer)
    params, buffers = map(nnx.to_pure_dict, variables)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    @jax.jit
    def run(params, buffers, batch):
        def step(carry, key):
            params, buffers, moments = carry

            def loss(params):
                model, objective = nnx.merge(graphdef, params, buffers)
                views = Views(model, batch, example_keys(key, len(batch["image"])))
                found = objective(views, jax.random.fold_in(key, 1))
                return found.value, (found, nnx.to_pure_dict(nnx.state((model, objective), Buffer)))

            gradients, (found, buffers) = jax.grad(loss, has_aux=True)(params)
            updates, moments = optimizer.update(gradients, moments)
            return (optax.apply_updates(params, updates), buffers, moments), found

        keys = jax.random.split(jax.random.key(0), steps)
        return jax.lax.scan(step, (params, buffers, optimizer.init(params)), keys)[1]

    return jax.tree.map(lambda x: float(x[-1]), run(params, buffers, batch))
