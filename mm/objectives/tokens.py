"""Predicting tokens of a vocabulary, of words or of codes, at some places of each example."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from mm.models.layers import ACTIVATIONS, Activation, Dtype, LayerNorm, Linear, param, vectors
from mm.models.logits import AXES, Logits, multiply
from mm.sharding.parameters import gather_and_sum

# Of a device at once: 1 GiB in float32. With fewer the kernel's gradient is read and written more
# often, which takes less time than the products as long as it is some 300 rows or more (v5e).
MOST_LOGITS = 2**28


class TokenHead(nnx.Module):
    """Logits from tokens: a layer, an activation and a norm, then one embedding a word, and biases.

    BERT's head (Devlin et al. 2019, as in its released code). With a `table_width` the embeddings
    [vocab_size, table_width] are given with each call, those that the words are read with;
    otherwise they are the head's own.
    """

    def __init__(
        self,
        width: int,
        vocab_size: int,
        *,
        table_width: int | None = None,
        activation: Activation = "gelu",
        norm_epsilon: float = 1e-6,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        out = table_width or width
        self.transform = Linear((width,), (out,), (None, "embed"), dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(out, epsilon=norm_epsilon, rngs=rngs)
        self.table = None if table_width else vectors(rngs, vocab_size, out, axis="vocab")
        self.bias = param(rngs, 0.0, (vocab_size,), ("vocab",))
        self.activation = activation

    def __call__(
        self, tokens: Float[Array, "b n d"], table: Float[Array, "v e"] | None = None
    ) -> Logits:
        """`table` are the embeddings of a tied head."""
        table = self.table[...] if table is None else table
        x = self.norm(ACTIVATIONS[self.activation](self.transform(tokens)))
        return Logits(x, table.T, self.bias[...])


def predict(
    head: TokenHead,
    tokens: Float[Array, "b n d"],
    labels: Int[Array, "b n"],
    chosen: Bool[Array, "b n"],
    count: int,
    table: Float[Array, "v e"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """`cross_entropy` of the chosen places, of each example the first `count` of them.

    Nothing is computed of the others.
    """
    places = jnp.argsort(~chosen, axis=1)[:, :count]  # stable: the chosen ones in their order
    tokens = jnp.take_along_axis(tokens, places[..., None], axis=1)
    labels, chosen = (jnp.take_along_axis(x, places, axis=1) for x in (labels, chosen))
    return cross_entropy(head(tokens, table), labels, chosen)


def cross_entropy(
    logits: Logits,
    targets: Int[Array, "b l"],
    scored: Bool[Array, "b l"],
    smoothing: float = 0.0,
    *,
    most: int = MOST_LOGITS,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """-log p(target), the mean over what is `scored` in the global batch, and how good it is.

    `smoothing`: the target is so much of the uniform distribution, and the rest of the token
    (Szegedy et al. 2016, section 7). Where nothing is scored the loss is 0. Metrics: accuracy, how
    often no other logit is larger, and perplexity, exp of the loss without smoothing.

    A device makes at most `most` logits at once, some rows of its share of the batch, and with them
    what they add to the gradients: these are known as soon as the logits are, but for the factor
    that the loss is multiplied with. So neither logits nor their gradient are ever whole, nothing
    is computed twice, and the kernel is gathered once for both passes.
    """
    total = jnp.maximum(scored.sum(), 1)
    rows = logits._replace(x=logits.x.reshape(-1, logits.x.shape[-1]))
    sums = _sums(smoothing, most, rows, targets.reshape(-1), scored.reshape(-1) / total)
    loss, unsmoothed, hits = sums[0], *jax.lax.stop_gradient(sums[1:])
    return loss, {"accuracy": hits, "perplexity": jnp.exp(unsmoothed)}


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sums(smoothing, most, logits, targets, weights):
    """Weighted sums over rows: loss, loss without smoothing, hits. Only the first has a slope."""
    return _sums_and_slopes(smoothing, most, logits, targets, weights)[0]


def _sums_and_slopes(smoothing, most, logits, targets, weights):
    parameters = [logits.kernel.astype(logits.x.dtype)]
    parameters += [] if logits.bias is None else [logits.bias]
    axes = [AXES, AXES[1:]][: len(parameters)]
    vocab_size, dtype = logits.kernel.shape[1], logits.kernel.dtype

    def local(parameters, *arrays):
        """Of a device's rows, some at a time."""
        kernel, bias = (*parameters, None)[:2]

        def some(slopes, rows):
            x, targets, weights = rows
            y = multiply(x, kernel, bias)
            # A sum over the vocabulary, since that may be split over devices.
            is_target = jnp.arange(vocab_size) == targets[:, None]
            chosen = jnp.where(is_target, y, 0).sum(-1)
            norm = jax.nn.logsumexp(y, -1)
            aim = chosen if not smoothing else (1 - smoothing) * chosen + smoothing * y.mean(-1)
            hits = chosen >= y.max(-1)  # argmax would read all of y once more
            aims = (1 - smoothing) * is_target + smoothing / vocab_size
            slope = (jnp.exp(y - norm[:, None]) - aims) * weights[:, None]
            narrow = slope.astype(x.dtype)
            product = jax.lax.dot_general(
                x, narrow, (((0,), (0,)), ((), ())), preferred_element_type=dtype
            )
            more = [product, slope.sum(0)]
            slopes = [a + b.astype(a.dtype) for a, b in zip(slopes, more, strict=False)]
            values = (x * weights for x in (norm - aim, norm - chosen, hits))
            return slopes, (*values, narrow @ kernel.T)

        zeros = [jnp.zeros(x.shape, dtype) for x in parameters]
        length = len(arrays[0])
        least = min(-(-length * vocab_size // most), length)
        pieces = next(n for n in range(least, length + 1) if length % n == 0)
        cut = (x.reshape(pieces, length // pieces, *x.shape[1:]) for x in arrays)
        slopes, rows = jax.lax.scan(some, zeros, tuple(cut))
        return [x.reshape(length, *x.shape[2:]) for x in rows], slopes

    (*values, dx), slopes = gather_and_sum(local, parameters, axes, logits.x, targets, weights)
    slopes = Logits(dx, *slopes)
    return tuple(x.sum() for x in values), slopes


def _backward(smoothing, most, slopes, gradients):
    scaled = jax.tree.map(lambda x: (gradients[0] * x).astype(x.dtype), slopes)
    return scaled, None, None


_sums.defvjp(_sums_and_slopes, _backward)
