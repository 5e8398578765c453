"""Texts that a decoder writes: greedily, by beam search, or drawn from the likely tokens.

    views = Views(model, batch, keys)
    generate(model, views.memory(), Beam(width=4), end_id=2, keys=views.draws("generate"))

writes a text for each row of the batch. Under a mesh, `Program.apply` gives a function of views the
parameters of a Program.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from mm.config import BadInput
from mm.generation.cache import Cache, empty_cache, read, step
from mm.models.encoder import Encoded
from mm.models.keys import Keys, fold_in
from mm.models.multimodal import Multimodal
from mm.sharding.rules import constrain


class Generated(NamedTuple):
    """Token ids, padded after the end mark, and the sum of their log-probabilities.

    A text that reaches the length without an end mark is cut there, and scored by what it has. What
    was given as a prompt stands first, and is not scored.
    """

    ids: Int[Array, "b l"]
    scores: Float[Array, "b"]


class Prompt(NamedTuple):
    """What texts begin with; the places after it are free."""

    ids: Int[Array, "b l"]
    mask: Bool[Array, "b l"]  # True for the given ones


class Method:
    """Which `width` sequences of each example go on.

    Called with the scores of the sequences, the log-probabilities of their next tokens, their
    lengths with that token, and keys of the rows, it returns the parent and the token of each that
    goes on.
    """

    width: int = 1

    def __call__(
        self,
        scores: Float[Array, "b w"],
        tokens: Float[Array, "b w v"],
        lengths: Int[Array, "b w"],
        keys: Keys | None,
    ) -> tuple[Int[Array, "b w"], Int[Array, "b w"]]:
        raise NotImplementedError


def generate(
    model: Multimodal,
    memory: Encoded | None,
    method: Method | None = None,
    *,
    end_id: int,
    pad_id: int = 0,
    length: int | None = None,
    batch_size: int | None = None,
    keys: Keys | None = None,
    prompt: Prompt | None = None,
) -> Generated:
    """A text for each row of the memory (`Views.memory`), or `batch_size` texts without one.

    method: greedy by default. length: at most so many tokens, end mark and all, by default all that
    the decoder can write. Padding is never chosen. All shapes are fixed, so it can be compiled; it
    stops when every text has ended. keys: of the rows, for what is drawn. prompt: what each text
    begins with. Raises BadInput for a model without a decoder, a memory that it does not read or
    lacks, and lengths that it has not.
    """
    model.need("generate", "decoder")
    method, decoder = method or Greedy(), model.decoder
    length = decoder.length if length is None else length
    if not 1 <= length <= decoder.length:
        raise BadInput(f"generate: length={length}: expected 1 .. {decoder.length}, the decoder's")
    if (memory is None) != (decoder.memory == "none"):
        raise BadInput(f"generate: expected the views' memory, for memory={decoder.memory!r}")
    if (memory is None) != (batch_size is not None):
        raise BadInput("generate: give batch_size where there is no memory, and only there")
    batch, width = batch_size if memory is None else len(memory.tokens), method.width
    if prompt is not None and prompt.ids.shape != (batch, length):
        raise BadInput(f"generate: the prompt is {prompt.ids.shape}, expected {(batch, length)}")
    seen = None if memory is None else Seen(read(decoder.encoder, memory), memory.mask)
    only_pad = jnp.where(jnp.arange(decoder.vocab_size) == pad_id, 0.0, -jnp.inf)

    def live(state: State) -> Array:
        return ~state.ended & (state.scores > -jnp.inf)

    def goes_on(state: State) -> Array:
        return (state.progress.place < length) & live(state).any()

    def advance(state: State) -> State:
        place = state.progress.place
        logits, progress = predict(model, state.progress, seen)
        if pad_id != end_id:
            logits = logits.at[:, pad_id].set(-jnp.inf)
        found = jax.nn.log_softmax(logits).reshape(batch, width, -1)
        found = jnp.where(state.ended[..., None], only_pad, found)
        given = jnp.zeros((batch, 1), bool) if prompt is None else prompt.mask[:, place, None]
        lengths = state.lengths + ~(state.ended | given)
        draws = None if keys is None else fold_in(keys, place)
        parents, tokens = method(state.scores, found, lengths, draws)
        if prompt is not None:  # of an example's sequences only the first counts, as at the start
            parents = jnp.where(given, jnp.arange(width), parents)
            tokens = jnp.where(given, prompt.ids[:, place, None], tokens)

        def inherit(x: Array) -> Array:
            return jnp.take_along_axis(x, parents.reshape(*parents.shape, *(1,) * (x.ndim - 2)), 1)

        added = jnp.take_along_axis(inherit(found), tokens[..., None], 2)[..., 0]
        added = jnp.where(given, 0, added)
        if width > 1:
            progress = reorder(progress, parents)
        return State(
            feed(model, progress, tokens.reshape(-1)),
            inherit(state.ids).at[:, :, place].set(tokens),
            inherit(state.scores) + added,
            inherit(lengths),
            inherit(state.ended) | ((tokens == end_id) & ~given),
        )

    # All sequences of an example begin alike: only the first counts.
    scores = jnp.where(jnp.arange(width) == 0, jnp.zeros((batch, 1)), -jnp.inf)
    state = State(
        begin(model, batch * width, length),
        jnp.full((batch, width, length), pad_id, jnp.int32),
        scores,
        jnp.zeros((batch, width), jnp.int32),
        jnp.zeros((batch, width), bool),
    )
    state = jax.lax.while_loop(goes_on, advance, state)
    return Generated(state.ids[:, 0], state.scores[:, 0])


@dataclasses.dataclass(frozen=True)
class Greedy(Method):
    """The most likely token, each time."""

    def __call__(self, scores, tokens, lengths, keys):
        return jnp.zeros_like(lengths), tokens.argmax(-1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nucleus(Method):
    """Drawn from the fewest tokens that hold `p` of the probability (Holtzman et al. 2020, eq. 3).

    Logits are divided by `temperature` first. Rows draw from their own keys.
    """

    p: float
    temperature: float = 1.0

    def __post_init__(self):
        if not 0 < self.p <= 1 or self.temperature <= 0:
            raise BadInput(f"p={self.p} must lie in (0, 1], temperature={self.temperature} above 0")

    def __call__(self, scores, tokens, lengths, keys):
        if keys is None:
            raise BadInput("generate: a nucleus is drawn from; give keys of the rows")
        logits = jax.nn.log_softmax(tokens[:, 0] / self.temperature)
        logits = jnp.where(nucleus(jnp.exp(logits), self.p), logits, -jnp.inf)
        drawn = jax.vmap(jax.random.categorical)(keys, logits)
        return jnp.zeros_like(lengths), drawn[:, None].astype(jnp.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beam(Method):
    """The `width` best sequences so far, by log-probability / ((5 + length) / 6)^length_penalty.

    The penalty is that of Wu et al. 2016, eq. 14; 0 is none. A sequence that has ended keeps its
    place among them, until there are as many better ones. The best of the last is the result.
    """

    width: int
    length_penalty: float = 0.0

    def __post_init__(self):
        if self.width < 1 or self.length_penalty < 0:
            raise BadInput(f"width={self.width} must be at least 1, {self.length_penalty=} 0")

    def __call__(self, scores, tokens, lengths, keys):
        ranks = (scores[..., None] + tokens) / ((5 + lengths[..., None]) / 6) ** self.length_penalty
        _, places = jax.lax.top_k(ranks.reshape(len(ranks), -1), self.width)
        return places // tokens.shape[2], places % tokens.shape[2]


def nucleus(probabilities: Float[Array, "b v"], p: float) -> Bool[Array, "b v"]:
    """True for the fewest, most likely tokens that hold at least p; at least one."""
    order = jnp.argsort(-probabilities, axis=-1)
    likely = jnp.take_along_axis(probabilities, order, -1)
    kept = jnp.cumsum(likely, -1) - likely < p
    return jnp.take_along_axis(kept, jnp.argsort(order, axis=-1), -1)


class Seen(NamedTuple):
    """The memory's keys and values, and which of its tokens are real."""

    cache: Cache
    mask: Bool[Array, "b m"] | None


class Progress(NamedTuple):
    """Sequences so far: what the next place reads, [r, d], and the caches; of the tower if read."""

    place: Array
    x: Array
    cache: Cache
    tower: Cache | None


class State(NamedTuple):
    """`Progress` of b * w sequences; ids [b, w, l]; scores, lengths and what has ended, [b, w]."""

    progress: Progress
    ids: Array
    scores: Array
    lengths: Array
    ended: Array


def begin(model: Multimodal, rows: int, length: int) -> Progress:
    """Before the first token."""
    decoder = model.decoder
    x = jnp.broadcast_to(decoder.start[...], (rows, decoder.width)).astype(decoder.dtype)
    tower = None
    if decoder.inputs == "text_tower":
        tower = empty_cache(model.text.encoder, rows, length)
    cache = empty_cache(decoder.encoder, rows, length)
    return Progress(jnp.zeros((), jnp.int32), constrain(x, "batch"), cache, tower)


def predict(
    model: Multimodal, progress: Progress, seen: Seen | None
) -> tuple[Float[Array, "r v"], Progress]:
    """Logits of the next token of each sequence: those of `Multimodal.decode` at that place."""
    decoder, x = model.decoder, progress.x
    if decoder.position_embedding is not None:
        x = x + decoder.position_embedding[...][progress.place].astype(x.dtype)
    x, cache = step(decoder.encoder, x, progress.cache, progress.place, *(seen or ()))
    return decoder.logits(x, model.words).whole(), progress._replace(cache=cache)


def feed(model: Multimodal, progress: Progress, tokens: Int[Array, "r"]) -> Progress:
    """After the next token of each sequence is known."""
    text, tower = tokens[:, None], progress.tower
    if tower is not None:
        x = model.text.embed(text, place=progress.place)[:, 0]
        x, tower = step(model.text.encoder, x, tower, progress.place)
        text = x[:, None]
    x = model.decoder.embed(text, model.words)[:, 0]
    return Progress(progress.place + 1, x, progress.cache, tower)


def reorder(progress: Progress, parents: Int[Array, "b w"]) -> Progress:
    """The caches of the sequences that go on."""
    batch, width = parents.shape

    def take(x: Array) -> Array:
        by_example = x.reshape(len(x), batch, width, *x.shape[2:])
        return jnp.take_along_axis(by_example, parents[None, :, :, None, None], 2).reshape(x.shape)

    cache, tower = jax.tree.map(take, (progress.cache, progress.tower))
    return progress._replace(cache=cache, tower=tower)
