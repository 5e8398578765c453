"""Learned words around those of a text (context optimisation, CoOp: Zhou et al. 2022)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from mm import registry
from mm.adapt.prompts import Prompts, fold_prompts
from mm.config import BadInput, Count, Positive
from mm.models.encoder import Encoded
from mm.models.inputs import texts
from mm.models.multimodal import Multimodal
from mm.models.text import TextTransformer

_PATH = "model/text/context/prompts"


@registry.register("adaptation", "text_context")
def text_context(
    *,
    count: Positive = 4,
    around: bool = False,
    starts: Count = 0,
    ends: Count = 0,
    hidden: Positive | None = None,
    model: Multimodal,
    rngs: nnx.Rngs,
    whole: bool,
) -> None:
    """`count` learned word vectors before the words of every text (eq. 2).

    They stand behind the first `starts` tokens, as many as the tokenizer puts before a text (CLIP
    and BERT: 1). around: half of them follow the words, before the last `ends` tokens. The tower
    returns its words alone, and pools all. With learned positions, which are as many as before,
    texts must be `count` tokens shorter: config.model.text.length - count. hidden: see `Prompts`.
    """
    text = model.text
    if not isinstance(text, TextTransformer):
        raise BadInput("needs config.model.text of name='transformer', which the config lacks")
    if text.context is not None:
        raise BadInput("config.model.text has a context already; keep one of the two")
    if model.decoder is not None:
        raise BadInput("config.model.decoder writes texts without a context; leave one of them out")
    if text.pool == "first" and not starts:
        raise BadInput(
            "starts=0: config.model.text.pool='first' reads the first token; set it to 1"
        )
    if text.pool == "last" and around and not ends:
        raise BadInput(
            "ends=0: config.model.text.pool='last' reads the last token, the tokenizer's end mark; "
            "set it to 1, or around=False"
        )
    if text.position_embedding is not None:
        if text.length <= count:
            raise BadInput(f"count={count}: config.model.text.length={text.length} leaves no words")
        before, after = (texts(n, "text") for n in (text.length, text.length - count))
        model.reads = tuple(dict(zip(before, after, strict=True)).get(x, x) for x in model.reads)
        text.length -= count
    prompts = Prompts(count, text.width, hidden=hidden, rngs=rngs)
    context = Context(prompts, text.vocab_size + 1, around, starts, ends)
    text.context = nnx.data(context)


registry.register("fold", "text_context")(lambda params, spec: fold_prompts(params, _PATH, spec))


class Context(nnx.Module):
    """The vectors as words, whose ids are `first_id` and those after it."""

    def __init__(self, prompts: Prompts, first_id: int, around: bool, starts: int, ends: int):
        self.prompts, self.first_id, self.starts, self.ends = prompts, first_id, starts, ends
        self.after = prompts.count // 2 if around else 0

    def places(self, mask: Bool[Array, "b l"]) -> Int[Array, "b m"]:
        """Where each token of the text goes, then where each vector goes."""
        count, token = self.prompts.count, jnp.arange(mask.shape[1])
        before = count - self.after
        length = jnp.max(jnp.where(mask, token + 1, 0), axis=1, keepdims=True)
        end = jnp.maximum(length - self.ends, self.starts)
        moved = jnp.where(token < self.starts, token, token + before)
        moved = jnp.where(token >= end, token + count, moved) if self.after else moved
        vector = jnp.arange(count)
        added = jnp.where(vector < before, self.starts + vector, end + vector)
        return jnp.concatenate([jnp.broadcast_to(moved, mask.shape), added], axis=1)

    def add(
        self, text: Int[Array, "b l"], mask: Bool[Array, "b l"], segments: Int[Array, "b l"] | None
    ) -> tuple[Int[Array, "b l"], tuple[Array, Array, Array | None]]:
        """Where the tokens went, and ids, mask and segments with those of the vectors [b, m]."""
        places, ids = self.places(mask), self.first_id + jnp.arange(self.prompts.count)
        order = jnp.argsort(places, axis=1)

        def insert(x: Array, added: Array) -> Array:
            added = jnp.broadcast_to(added.astype(x.dtype), (len(x), self.prompts.count))
            return jnp.take_along_axis(jnp.concatenate([x, added], axis=1), order, axis=1)

        segments = None if segments is None else insert(segments, jnp.zeros(1))
        added = insert(text, ids), insert(mask, jnp.ones(1)), segments
        return places[:, : text.shape[1]], added

    def remove(self, encoded: Encoded, words: Int[Array, "b l"]) -> Encoded:
        """The tokens of the text alone, from where they went."""

        def take(x: Array) -> Array:
            return jnp.take_along_axis(x, words.reshape(*words.shape, *(1,) * (x.ndim - 2)), axis=1)

        read = encoded._replace(pooled=None)
        return jax.tree.map(take, read)._replace(pooled=encoded.pooled)

    def fill(self, x: Float[Array, "b l d"], text: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        """The vectors where their ids are."""
        number = text - self.first_id
        vectors = self.prompts()[jnp.clip(number, 0)]
        return jnp.where((number >= 0)[..., None], vectors.astype(x.dtype), x)
