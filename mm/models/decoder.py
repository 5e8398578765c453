"""Text decoder: causal blocks that go on from words or from a text tower, and read a memory."""

from functools import partial
from typing import Annotated, Any, Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from mm import registry
from mm.config import BadInput
from mm.models.block import EncoderSpec
from mm.models.encoder import Encoded, Encoder
from mm.models.fusion.base import Adapter, Fused, join
from mm.models.keys import Keys, split
from mm.models.layers import Linear, add_table, dropout, lookup, vectors
from mm.models.logits import Logits
from mm.sharding.rules import constrain

_VOCAB = ("vocab", "embed")


@registry.register("decoder", "transformer")
class Decoder(nnx.Module):
    """Logits of each token of a text, given those before it and a memory.

    Place i reads what stands for token i - 1, place 0 a learned start embedding: no start mark is
    needed, and the tokenizer's end mark is the last target. `inputs` is what stands for a token:
    "words" is an embedding of the decoder's own with learned positions, "shared_words" the same
    with the text tower's table, and "text_tower" the text tower's own token, which has to be
    causal: it is computed once for a contrastive loss and for this (CoCa: Yu et al. 2022, section
    3.2). `memory` is what cross-attention reads: "image" tokens, "text" tokens of the tower
    (encoder-decoder), "fused" (all tokens that the fusion returns), or "none" (a language model).
    `head` is "own", or "tied" to the table of words (Press and Wolf 2017). `mask_token`: a learned
    input that can stand for all tokens (CapPa). `vocab_size` and `length` are the text tower's, and
    given where there is none. The other keys are those of `EncoderSpec`.
    """

    def __init__(
        self,
        *,
        memory: Literal["image", "text", "fused", "none"] = "image",
        inputs: Literal["words", "shared_words", "text_tower"] = "words",
        head: Literal["own", "tied"] = "own",
        mask_token: bool = False,
        vocab_size: int | None = None,
        length: int | None = None,
        model: nnx.Module,
        rngs: nnx.Rngs,
        **encoder: Annotated[Any, EncoderSpec],
    ):
        spec, text = EncoderSpec(**encoder), model.text
        part = {"fused": "fusion", "none": None}.get(memory, memory)
        if part is not None:
            model.need(f"config.model.decoder.memory={memory!r}", part)
        if inputs != "words":
            model.need(f"config.model.decoder.inputs={inputs!r}", "text")
        if memory == "fused" and not model.fusion.fuses:
            raise BadInput("memory='fused': config.model.fusion returns one vector and no tokens")
        for name, value in (("vocab_size", vocab_size), ("length", length)):
            if (value is None) == (text is None):
                raise BadInput(f"{name}={value}: give it where there is no text tower, only there")
        if inputs == "text_tower":
            if not (text.causal and text.encoder.depth):
                raise BadInput("inputs='text_tower' needs a tower of causal blocks: causal=True")
            if mask_token:
                raise BadInput("mask_token=True stands for words; inputs='text_tower' reads none")
        table_width = spec.width if inputs == "words" else text.width
        if head == "tied" and table_width != spec.width:
            raise BadInput(f"head='tied': width={spec.width} is not the words' {table_width}")
        if spec.depth < 1:
            raise BadInput(f"depth={spec.depth}: expected at least one block")
        self.memory, self.inputs, self.width = memory, inputs, spec.width
        self.vocab_size = vocab_size or text.vocab_size
        self.length = length or text.length
        self.dropout_rate, self.dtype = spec.dropout, jnp.dtype(spec.dtype)
        table = partial(vectors, rngs, width=spec.width)
        self.embedding = table(self.vocab_size, axis="vocab") if inputs == "words" else None
        self.adapt = Adapter(spec, table_width, rngs=rngs)
        self.start = table(1)
        self.mask_token = table(1) if mask_token else None
        # The tower's tokens know their places.
        words = inputs != "text_tower"
        places = partial(table, self.length, axis="tokens", deviation=0.01)
        self.position_embedding = places() if words else None
        memory_width = None if part is None else getattr(model, part).width
        self.encoder = Encoder(spec, causal=True, memory_width=memory_width, rngs=rngs)
        sizes, axes = ((spec.width,), (self.vocab_size,)), _VOCAB[::-1]
        own = head == "own"
        self.head = Linear(*sizes, axes, dtype="float32", rngs=rngs) if own else None

    def __call__(
        self,
        text: Int[Array, "b l"] | Float[Array, "b l e"],
        memory: Encoded | None,
        words: Float[Array, "v e2"],
        *,
        reach: Int[Array, "b"] | None = None,
        hidden: Bool[Array, "b"] | None = None,
        rng: Keys | None = None,
    ) -> Logits:
        """Logits i are those of token i.

        `text` are ids, or the tower's tokens where it goes on from them. `words` is their table.
        Place i sees places up to max(i, reach), by default up to i. Of examples in `hidden` all
        inputs are the mask token. Padding on the right changes nothing before it.
        """
        keys = split(rng)
        x = self.embed(text, words)
        first = jnp.broadcast_to(self.start[...], (len(x), 1, self.width)).astype(x.dtype)
        x = jnp.concatenate([first, x[:, :-1]], axis=1)
        if hidden is not None:
            if self.mask_token is None:
                raise BadInput("config.model.decoder: has no mask token; set mask_token=True")
            x = jnp.where(hidden[:, None, None], self.mask_token[...].astype(x.dtype), x)
        if self.position_embedding is not None:
            x = add_table(("tokens", "embed"), x, self.position_embedding[...])
        x = constrain(dropout(x, self.dropout_rate, keys[0]), "batch", "tokens", "width")
        mask = None
        if reach is not None:
            places = jnp.arange(x.shape[1])
            mask = places[None, None] <= jnp.maximum(places[None, :, None], reach[:, None, None])
        x = self.encoder(x, mask, keys[1], memory=memory, causal=reach is None)
        return self.logits(x, words)

    def embed(
        self, text: Int[Array, "b l"] | Float[Array, "b l e"], words: Float[Array, "v e2"]
    ) -> Float[Array, "b l d"]:
        """What stands for each token, without its place."""
        if self.inputs != "text_tower":
            text = lookup(_VOCAB, self.dtype, words, text)
        return self.adapt(text)

    def logits(self, x: Float[Array, "... d"], words: Float[Array, "v e"]) -> Logits:
        """Of tokens after the last norm; products are in the dtype that the blocks compute in."""
        if self.head is None:
            return Logits(x, words.T)
        return Logits(x, self.head.kernel[...], self.head.bias[...])


def fused_memory(fused: Fused, image: Encoded, text: Encoded) -> Encoded:
    """All tokens that a fusion returned, of the image before those of the text."""
    both = (fused.image, image.mask), (fused.text, text.mask)
    tokens, mask = join([(x, mask) for x, mask in both if x is not None], len(fused.pooled))
    return Encoded(tokens, fused.pooled, mask)
