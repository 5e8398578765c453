"""From attention weights of many layers to how much each token counts."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


def rollout(weights: Sequence[Float[Array, "b h n n"]]) -> Float[Array, "b n n"]:
    """How much of each token, by row, comes from which of the first ones, by column.

    The product over layers of half the mean of the heads and half the identity, which stands for
    what the residual carries past (Abnar and Zuidema 2020, eqs. 1 and 2).
    """
    first = weights[0]
    whole = _identity(first.shape[0], first.shape[-1])
    for layer in weights:
        whole = (0.5 * layer.mean(1) + 0.5 * _identity(*layer.shape[::3])) @ whole
    return whole


class Step(NamedTuple):
    """An attention: its weights times their gradient, and the tokens that look and are looked at.

    The tokens are ranges of one row of all; the same for self-attention.
    """

    weights: Float[Array, "b n m"]
    queries: tuple[int, int]
    keys: tuple[int, int]


def positive(
    weights: Float[Array, "b h n m"], gradient: Float[Array, "b h n m"]
) -> Float[Array, "b n m"]:
    """The mean over heads of what raises the target (Chefer et al. 2021, eq. 5)."""
    return jnp.maximum(weights * gradient, 0).mean(1)


def relevance(steps: Sequence[Step], batch: int, count: int) -> Float[Array, "b t t"]:
    """How much each of `count` tokens, by row, owes to each, by column, after all steps.

    Of several modalities at once (Chefer et al. 2021, "Generic attention-model explainability"):
    self-attention by eqs. 6 and 7, attention to the other modality by eqs. 8 to 11.
    """
    found = _identity(batch, count)
    for step in steps:
        rows, columns = slice(*step.queries), slice(*step.keys)
        if step.queries == step.keys:
            found = found.at[:, rows].add(step.weights @ found[:, rows])
            continue
        own, others = (_normed(found[:, part, part]) for part in (rows, columns))
        passed = own.swapaxes(1, 2) @ step.weights @ others
        back = step.weights @ found[:, columns, rows]
        found = found.at[:, rows, columns].add(passed).at[:, rows, rows].add(back)
    return found


def _normed(found: Float[Array, "b n n"]) -> Float[Array, "b n n"]:
    """What is beside the identity, each row as a share, and the identity (eqs. 8 and 9)."""
    identity = _identity(*found.shape[:2])
    rest = found - identity
    total = rest.sum(-1, keepdims=True)
    return rest / jnp.where(total > 0, total, 1) + identity


def _identity(batch: int, count: int) -> Float[Array, "b n n"]:
    return jnp.broadcast_to(jnp.eye(count), (batch, count, count))


def share(values: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """What is positive, as shares of the sum; all alike where nothing is."""
    values = jax.nn.relu(values)
    total = values.sum(-1, keepdims=True)
    return jnp.where(total > 0, values / jnp.where(total > 0, total, 1), 1 / values.shape[-1])
