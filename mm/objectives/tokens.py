"""Predicting tokens of a vocabulary, of words or of codes, at some places of each example."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from mm.models.layers import ACTIVATIONS, Activation, Dtype, LayerNorm, Linear, affine, param


class TokenHead(nnx.Module):
    """Logits from tokens: a layer, an activation and a norm, then one embedding a word, and biases.

    BERT's head (Devlin et al. 2019, as in its released code). `tied`: the embeddings
    [vocab_size, table_width] are given with each call, those that the words are read with;
    otherwise they are the head's own.
    """

    def __init__(
        self,
        width: int,
        vocab_size: int,
        *,
        table_width: int | None = None,
        tied: bool = False,
        activation: Activation = "gelu",
        norm_epsilon: float = 1e-6,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        out, normal = table_width or width, jax.nn.initializers.normal
        self.transform = Linear((width,), (out,), (None, "embed"), dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(out, epsilon=norm_epsilon, rngs=rngs)
        shape = (vocab_size, out)
        self.table = None if tied else param(rngs, normal(0.02), shape, ("vocab", "embed"))
        self.bias = param(rngs, jax.nn.initializers.zeros, (vocab_size,), ("vocab",))
        self.activation = activation

    def __call__(
        self, tokens: Float[Array, "b n d"], table: Float[Array, "v e"] | None = None
    ) -> Float[Array, "b n v"]:
        """Logits, in float32 at least; `table` are the embeddings of a tied head."""
        table = self.table[...] if table is None else table
        x = self.norm(ACTIVATIONS[self.activation](self.transform(tokens)))
        rows = x.reshape(-1, x.shape[-1])
        logits = affine(("embed", "vocab"), rows, table.T, self.bias[...])
        wide = jnp.promote_types(logits.dtype, jnp.float32)
        return logits.astype(wide).reshape(*x.shape[:2], -1)


def predict(
    head: TokenHead,
    tokens: Float[Array, "b n d"],
    labels: Int[Array, "b n"],
    chosen: Bool[Array, "b n"],
    count: int,
    table: Float[Array, "v e"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The mean cross-entropy over the chosen places of the global batch, and how good it is.

    Logits are made at the first `count` chosen places of each example, and nowhere else: of all
    places they would be the largest array of a step. With none chosen the loss is 0.
    """
    places = jnp.argsort(~chosen, axis=1)[:, :count]  # stable: the chosen ones in their order
    weights = jnp.take_along_axis(chosen, places, axis=1).astype(jnp.float32)
    labels = jnp.take_along_axis(labels, places, axis=1)
    logits = head(jnp.take_along_axis(tokens, places[..., None], axis=1), table)
    # By a comparison: the vocabulary may be split over devices, where a lookup would gather it.
    true = jnp.arange(logits.shape[-1]) == labels[..., None]
    losses = jax.nn.logsumexp(logits, -1) - jnp.where(true, logits, 0).sum(-1)
    total = jnp.maximum(weights.sum(), 1)
    loss = (losses * weights).sum() / total
    hits = (logits.argmax(-1) == labels) * weights
    return loss, {"accuracy": hits.sum() / total, "perplexity": jnp.exp(loss)}
