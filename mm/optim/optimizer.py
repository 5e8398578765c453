"""The optimizer: one optax chain, its parts chosen by the config."""

from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mm import registry
from mm.config import BadInput, Keep
from mm.optim.layers import layer_factors
from mm.optim.paths import flatten, map_paths, match_factors
from mm.optim.trained import find_frozen, trained

# Matrices decay; biases, norms, scales, position and token embeddings do not.
DECAY = ((r".*/kernel", 1.0),)


class Optimizer(NamedTuple):
    """The gradient transformation, the learning rate by step, and the paths that it leaves alone.

    The trees of the transformation are those of what is trained: see `mm.optim.trained`.
    """

    transform: optax.GradientTransformation
    learning_rate: optax.Schedule
    frozen: frozenset[str]


@registry.register("optimizer", "adamw")
def adamw(
    *,
    learning_rate: float,
    schedule: Mapping,
    weight_decay: float = 0.0,
    weight_decay_factors: tuple[tuple, ...] = DECAY,
    learning_rate_factors: tuple[tuple, ...] = (),
    layer_decay: Keep = 1.0,
    trainable: tuple[str, ...] = (),
    frozen: tuple[str, ...] = (),
    clip_norm: float | None = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-8,
    moment_dtype: Literal["float32", "bfloat16"] = "float32",
    params: Any,
    added: Collection[str] = (),
    total_steps: int,
) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019).

    Gradients are clipped to a global norm of `clip_norm` (None: not at all). A parameter's learning
    rate and decay are multiplied by the factor of the first (regex, factor) that matches its path;
    without a match the rate's factor is 1 and the decay's 0. The decay is multiplied by the
    learning rate. `layer_decay` < 1 lowers the rate from a tower's last layer to its first
    (`mm.optim.layers.layer_factors`). `moment_dtype` is that of the first moment. `trainable` or
    `frozen`, regexes of paths, say what is trained (`mm.optim.trained.find_frozen`); the rest stays
    as it is: no moments, no decay, no gradient. `params` may be abstract; of them config.adapt
    `added` some.
    """
    if learning_rate <= 0 or weight_decay < 0:
        raise BadInput(
            f"learning_rate={learning_rate} must be > 0, weight_decay={weight_decay} >= 0"
        )
    shape = registry.build("schedule", schedule, "schedule", total_steps=total_steps)
    held = find_frozen(params, trainable, frozen, added)
    own = flatten(trained(params, held))
    # Without decay it does not matter that, say, prompts alone have no kernel.
    unused = weight_decay == 0 and weight_decay_factors == DECAY
    factors = () if unused else weight_decay_factors
    decay = match_factors(own, factors, "weight_decay_factors", 0.0)
    rates = match_factors(own, learning_rate_factors, "learning_rate_factors", 1.0)
    layers = layer_factors(params, layer_decay, held)
    rates = {name: factor * layers.get(name, 1.0) for name, factor in rates.items()}

    def rate(step):
        return learning_rate * shape(step)

    transform = optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optax.scale_by_adam(b1, b2, epsilon, mu_dtype=jnp.dtype(moment_dtype)),
        _add(lambda name, update, param: update + weight_decay * decay[name] * param),
        _add(lambda name, update, param: update * rates[name]),
        optax.scale_by_learning_rate(rate),
    )
    return Optimizer(transform, rate, held)


def _add(function) -> optax.GradientTransformation:
    """A stateless link of the chain: update = function(path name, update, parameter)."""

    def update(updates, params):
        named = map_paths(lambda name, _: name, params)
        return jax.tree.map(function, named, updates, params)

    return optax.stateless(update)
