"""Matching: does a text belong to an image (ITM), or a sentence to the one before it?"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int, UInt32

from mm import registry
from mm.config import BadInput, Factor
from mm.models.inputs import GROUP, texts
from mm.models.keys import Keys
from mm.models.layers import Linear
from mm.models.multimodal import Multimodal
from mm.objectives.base import Loss, Objective
from mm.objectives.views import Views, view
from mm.sharding.ring import over_batch, pick, ring


@registry.register("objective", "matching")
class Matching(Objective):
    """Binary cross-entropy of fused pairs: each true one, and two hard negatives (ALBEF, eq. 3).

    An image's negative is a text of the global batch, drawn with the probability that the
    embeddings give it at that `temperature` (Li et al. 2021, section 3.2; 0 draws the most similar
    one, None any), and a text's an image likewise. A row of the same group is never a negative; of
    rows without any negative the true pairs alone count.
    """

    reads, uses = (GROUP,), ("fusion",)

    def __init__(self, *, temperature: Factor | None = 0.07, model: Multimodal, rngs: nnx.Rngs):
        model.need("matching", "fusion")
        if temperature is not None:
            model.need(f"matching with temperature={temperature}", "embed_dim")
        self.temperature = temperature
        self.head = matching_head(model.fusion.pooled_width, rngs)

    def __call__(self, views: Views, rng: Array) -> Loss:
        group, keys = views.batch["group"], views.draws("negatives")
        if self.temperature is None:  # all are equally hard
            sides, scale = (jnp.zeros((len(group), 1)),) * 2, 0.0
        else:
            sides = views.image_embedding().z, views.text_embedding().z
            scale = 1 / max(self.temperature, 1e-4)  # at 0 the noise decides nothing
        text_rows, image_rows, found = hard_negatives(*sides, group, scale, keys)
        logits = [self.head(fused.pooled) for fused in views.fuse_others(text_rows, image_rows)]
        return match_loss(logits, [jnp.ones_like(found[0]), *found])

    def match(self, views: Views) -> Float[Array, "b"]:
        """The logit of each row's pair being one, as retrieval ranks by."""
        logits = self.head(views.fuse().pooled).astype(jnp.float32)
        return logits[:, 1] - logits[:, 0]


@registry.register("objective", "next_text")
class NextText(Objective):
    """Does a second text follow the first (next sentence prediction: Devlin et al. 2019, 3.1)?

    The two, batch["text_first"] and ["text_second"], each half of the text tower's length, are read
    as one text of two segments; each first one also with another row's second, drawn at random.
    """

    def __init__(self, *, model: Multimodal, rngs: nnx.Rngs):
        model.need("next_text", "text")
        if model.text.length % 2 or model.text.segment_embedding is None:
            raise BadInput(
                "next_text: needs an even config.model.text.length and config.model.text.segments=2"
            )
        self.head = matching_head(model.text.pooled_width, rngs)
        self.length = model.text.length // 2
        self.reads = (GROUP, *texts(self.length, "text_first", "text_second"))

    def __call__(self, views: Views, rng: Array) -> Loss:
        batch, group = views.batch, views.batch["group"]
        nothing = jnp.zeros((len(group), 1))
        other, _, (found, _) = hard_negatives(nothing, nothing, group, 0.0, views.draws("next"))
        second = batch["text_second"], batch["text_second_mask"]
        for name, (text, mask) in (("next", second), ("other", pick(second, other))):
            pair = {
                f"text_{name}": jnp.concatenate([batch["text_first"], text], axis=1),
                f"text_{name}_mask": jnp.concatenate([batch["text_first_mask"], mask], axis=1),
                f"text_{name}_segments": jnp.repeat(jnp.arange(2), self.length)[None]
                + jnp.zeros_like(group)[:, None],
            }
            views.derive(f"text_{name}", lambda keys, pair=pair: pair)
        encoded = views.encode_all([view("text", name) for name in ("next", "other")])
        logits = [self.head(x.pooled) for x in encoded]
        return match_loss(logits, [jnp.ones_like(found), found])


def matching_head(width: int, rngs: nnx.Rngs) -> Linear:
    """Logits of "other" and "own"."""
    return Linear((width,), (2,), ("embed", None), rngs=rngs)


def match_loss(logits: list[Float[Array, "b 2"]], counts: list[Bool[Array, "b"]]) -> Loss:
    """Mean cross-entropy over the pairs that count: the first own, the others not."""
    losses, hits = [], []
    for i, x in enumerate(logits):
        own = int(i == 0)
        losses.append(-jax.nn.log_softmax(x.astype(jnp.float32))[:, own])
        hits.append(x.argmax(-1) == own)

    def mean(values: list[Array], counts: list[Array]) -> Array:
        total = sum(jnp.where(n, v, 0).sum() for v, n in zip(values, counts, strict=True))
        return total / jnp.maximum(sum(n.sum() for n in counts), 1)

    accuracies = mean(hits[:1], counts[:1]), mean(hits[1:], counts[1:])
    metrics = {
        "own_accuracy": accuracies[0],
        "other_accuracy": accuracies[1],
        "balanced_accuracy": sum(accuracies) / 2,  # 0.5 is chance, whoever is more often
        "with_negative": jnp.stack(counts[1:]).mean(),
    }
    return Loss(mean(losses, counts), jax.lax.stop_gradient(metrics))


def hard_negatives(
    zimg: Float[Array, "b e"],
    ztxt: Float[Array, "b e"],
    group: Int[Array, "b"],
    scale: float,
    keys: Keys,
) -> tuple[Int[Array, "b"], Int[Array, "b"], list[Bool[Array, "b"]]]:
    """A text for each image and an image for each text, of other groups: rows of the global batch.

    Drawn with probability softmax(scale * similarity), by the largest similarity with Gumbel noise
    (Maddison et al. 2014, section 2), a tile at a time. Also returns for which rows there is one;
    the others' row is 0.
    """
    bits = jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(keys)
    zimg, ztxt = jax.lax.stop_gradient((zimg, ztxt))

    def local(arrays, scalars):
        zimg, ztxt, group, bits, number = arrays

        def tile(rows, row_best, columns, column_best):
            logits = scale * (rows["z"] @ columns["z"].T).astype(jnp.float32)
            same = rows["group"][:, None] == columns["group"][None]

            def better(best, axis, numbers):
                noise = pair_gumbel(rows["bits"][:, axis], columns["bits"][:, axis])
                scores = jnp.where(same, -jnp.inf, logits + noise)
                top, at = scores.max(1 - axis), numbers[scores.argmax(1 - axis)]
                value, row = best
                return jnp.maximum(top, value), jnp.where(top > value, at, row)

            row_best = better(row_best, 0, columns["number"])
            return row_best, better(column_best, 1, rows["number"])

        none = jnp.full(len(group), -jnp.inf), jnp.zeros(len(group), jnp.int32)
        both = {"group": group, "bits": bits, "number": number}
        found = ring(tile, both | {"z": zimg}, none, both | {"z": ztxt}, none)
        return found, ()

    number = jnp.arange(len(group), dtype=jnp.int32)
    best, _ = over_batch(local, (zimg, ztxt, group, bits, number), ())
    (text_value, text_row), (image_value, image_row) = best
    return text_row, image_row, [text_value > -jnp.inf, image_value > -jnp.inf]


def pair_gumbel(rows: UInt32[Array, "r"], columns: UInt32[Array, "c"]) -> Float[Array, "r c"]:
    """Gumbel noise of every pair, a function of the two numbers, so the same on any mesh."""

    def mix(x: Array) -> Array:  # the finalizer of MurmurHash3
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        return x ^ (x >> 16)

    mixed = mix(rows[:, None] + mix(columns)[None])
    uniform = (mixed >> 9).astype(jnp.float32) * 2.0**-23 + 2.0**-24  # never 0 nor, rounded, 1
    return -jnp.log(-jnp.log(uniform))
