import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm.config import BadInput
from mm.generation.cache import read
from mm.generation.generate import (
    Beam,
    Nucleus,
    Prompt,
    Seen,
    begin,
    feed,
    generate,
    nucleus,
    predict,
)
from mm.models.keys import example_keys
from mm.models.multimodal import Multimodal
from mm.objectives import Views
from mm.program import build_program
from tests.models.test_decoder import MEMORIES, OTHER, batch, model
from tests.tiny import TEXT, TOWER, get_config

END, SHORT = 2, jnp.zeros((4, 3), jnp.int32)


@partial(jax.jit, static_argnums=0, static_argnames=("method", "how"))
def write(graphdef, params, arrays, keys=None, *, method=None, how=()):
    """Generated ids and scores of a batch, and the log-probabilities of a full forward pass."""
    a_model = nnx.merge(graphdef, params)
    views = Views(a_model, arrays, None)
    memory, how = views.memory(source=OTHER), dict(how)
    if memory is None:
        how["batch_size"] = len(arrays["text"])
    prompt = Prompt(arrays["prompt"], arrays["prompt_mask"]) if "prompt" in arrays else None
    ids, scores = generate(a_model, memory, method, end_id=END, keys=keys, prompt=prompt, **how)
    text = jnp.pad(ids, ((0, 0), (0, 8 - ids.shape[1])))
    views.batch |= {"text": text, "text_mask": jnp.ones(text.shape, bool)}
    again = Views(a_model, views.batch, None)
    logits = again.decode(source=OTHER).whole().at[..., 0].set(-jnp.inf)
    return ids, scores, jax.nn.log_softmax(logits)


def written(a_model, method=None, keys=None, arrays=None, **how):
    arrays = batch() if arrays is None else arrays
    how = tuple(sorted(how.items()))
    found = write(*nnx.split(a_model), arrays, keys, method=method, how=how)
    return tuple(map(np.asarray, found))


@partial(jax.jit, static_argnums=0)
def both_ways(graphdef, params, arrays):
    """Logits [b, l, v] of one pass, and of a token after the other."""
    a_model = nnx.merge(graphdef, params)
    views, decoder = Views(a_model, arrays, None), a_model.decoder
    memory = views.memory(source=OTHER)
    seen = None if memory is None else Seen(read(decoder.encoder, memory), memory.mask)

    def one(progress, tokens):
        logits, progress = predict(a_model, progress, seen)
        return feed(a_model, progress, tokens), logits

    start = begin(a_model, len(arrays["text"]), decoder.length)
    _, logits = jax.lax.scan(one, start, arrays["text"].T)
    return views.decode(source=OTHER).whole(), logits.swapaxes(0, 1)


@pytest.mark.parametrize("inputs", ["words", "text_tower"])
@pytest.mark.parametrize("memory", MEMORIES)
def test_cached_logits_equal_those_of_a_full_pass(memory, inputs):
    # Kinds of blocks take turns, so that every two of all these options meet.
    number = MEMORIES.index(memory)
    block = dict(norm_placement="pre" if (number + (inputs == "words")) % 2 else "post", depth=2)
    block |= dict(qk_norm=True, layer_scale=0.5) if number in (0, 3) else {}
    a_model = model(memory=memory, inputs=inputs, text=block, **block)
    arrays = batch() | {"text_mask": jnp.ones((4, 8), bool)}
    want, got = both_ways(*nnx.split(a_model), arrays)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert np.asarray(want).std() > 0.1


def test_cached_logits_equal_those_of_a_full_pass_with_every_option_of_the_tower():
    text = dict(segments=2, pre_norm=True, position="none", norm="rms_norm")
    a_model = model(inputs="text_tower", head="tied", text=text, norm="rms_norm", unroll=2)
    want, got = both_ways(*nnx.split(a_model), batch() | {"text_mask": jnp.ones((4, 8), bool)})
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inputs", ["shared_words", "text_tower"])
def test_greedy_takes_the_most_likely_token_each_time(inputs):
    ids, scores, likely = written(model(inputs=inputs))
    total = np.zeros(4)
    for row in range(4):
        for place in range(8):
            assert ids[row, place] == likely[row, place].argmax()
            total[row] += likely[row, place, ids[row, place]]
            if ids[row, place] == END:
                break
        assert (ids[row, place + 1 :] == 0).all()  # padding after the end mark
    np.testing.assert_allclose(scores, total, rtol=1e-5)


@pytest.mark.parametrize("method", [None, Beam(width=3)])
def test_a_prompt_is_gone_on_from(method):
    """By the logits of its own past; it is neither changed nor scored, even an end mark in it."""
    arrays, given = batch(), np.arange(8) < np.array([0, 2, 5, 8])[:, None]
    prompt = np.array(arrays["text"])
    prompt[2, 1] = END
    arrays |= {"prompt": jnp.asarray(prompt), "prompt_mask": jnp.asarray(given)}
    ids, scores, likely = written(model(inputs="text_tower"), method, arrays=arrays)
    np.testing.assert_array_equal(ids[given], prompt[given])
    chosen = np.take_along_axis(likely, ids[..., None], 2)[..., 0]
    ended = np.cumsum((ids == END) & ~given, 1) - ((ids == END) & ~given) > 0
    np.testing.assert_allclose(scores, np.where(ended | given, 0, chosen).sum(1), atol=1e-5)
    if method is None:
        free = ~given & ~ended
        np.testing.assert_array_equal(ids[free], likely.argmax(-1)[free])


@pytest.mark.parametrize("memory, penalty", [("image", 1.0), ("none", 0.0)])
def test_a_beam_of_width_one_is_greedy(memory, penalty):
    a_model = model(memory=memory, inputs="text_tower")
    one, greedy = written(a_model, Beam(width=1, length_penalty=penalty)), written(a_model)
    np.testing.assert_array_equal(one[0], greedy[0])
    np.testing.assert_allclose(one[1], greedy[1], rtol=1e-6)


def bigrams(table, length=6):
    """A language model: row i of `table` are log-probabilities after token i, 0 at the start."""
    size = len(table)
    spec = dict(TOWER, width=size, num_heads=1, norm="rms_norm")
    a_model = Multimodal(
        decoder=dict(name="transformer", memory="none", vocab_size=size, length=length, **spec),
        rngs=nnx.Rngs(0),
    )
    decoder = a_model.decoder
    blocks = nnx.state(decoder.encoder.blocks)
    nnx.update(decoder.encoder.blocks, jax.tree.map(jnp.zeros_like, blocks))
    decoder.position_embedding[...] = jnp.zeros((length, size))
    decoder.start[...], decoder.embedding[...] = jnp.eye(size)[:1], jnp.eye(size)
    # The final norm makes sqrt(size) of the one.
    decoder.head.kernel[...] = jnp.asarray(table, jnp.float32) / size**0.5
    return a_model


def test_a_beam_finds_what_greedy_passes_by():
    # 3 is likelier than 4 at first, but what follows 3 is anyone's guess.
    table = np.full((7, 7), 1e-6)
    table[0, [3, 4]] = 0.6, 0.4
    table[3, [2, 3, 4, 5, 6]] = 0.2
    table[4:, END] = 1.0
    a_model = bigrams(np.log(table))
    ids, scores = generate(a_model, None, end_id=END, batch_size=2)
    assert ids[0, 0] == 3 and float(scores[0]) < np.log(0.15)
    ids, scores = generate(a_model, None, Beam(width=2), end_id=END, batch_size=2)
    np.testing.assert_array_equal(ids, [[4, END, 0, 0, 0, 0]] * 2)
    np.testing.assert_allclose(scores, np.log(0.4), rtol=1e-4)


@pytest.mark.parametrize("inputs, penalty", [("words", 2.0), ("text_tower", 0.0)])
def test_a_beam_that_holds_every_sequence_finds_the_best(inputs, penalty):
    text = dict(vocab_size=4, length=4)
    a_model = model(inputs=inputs, text=text)
    arrays = {k: x[:, :4] % 4 if k.startswith("text") else x for k, x in batch().items()}
    arrays |= {k: x.astype(bool) for k, x in arrays.items() if k.endswith("mask")}
    if inputs == "words":  # a random model ends late
        a_model.decoder.head.bias[...] = jnp.array([0.0, 0.0, 0.3, 0.0])
    # All texts of the tokens 1, 2 (the end) and 3.
    texts = set()
    for text in itertools.product((1, END, 3), repeat=4):
        stop = text.index(END) + 1 if END in text else 4
        texts.add(text[:stop] + (0,) * (4 - stop))
    texts = np.array(sorted(texts))
    graphdef, params = nnx.split(a_model)

    @jax.jit
    def likely(image):
        arrays = {"image": jnp.broadcast_to(image, (len(texts), *image.shape))}
        arrays |= {"text": jnp.asarray(texts), "text_mask": jnp.ones(texts.shape, bool)}
        logits = Views(nnx.merge(graphdef, params), arrays, None).decode().whole()
        return jax.nn.log_softmax(logits.at[..., 0].set(-jnp.inf))

    method, real = Beam(width=81, length_penalty=penalty), texts > 0

    @jax.jit
    def best(arrays):
        a_model = nnx.merge(graphdef, params)
        return generate(a_model, Views(a_model, arrays, None).memory(), method, end_id=END)

    ids, scores = best(arrays)
    for row in range(4):
        found = np.asarray(likely(arrays["image"][row]), np.float64)
        found = np.take_along_axis(found, texts[..., None], 2)[..., 0]
        totals = np.where(real, found, 0).sum(1)
        ranks = totals / ((5 + real.sum(1)) / 6) ** penalty
        np.testing.assert_array_equal(ids[row], texts[ranks.argmax()])
        np.testing.assert_allclose(scores[row], totals[ranks.argmax()], rtol=1e-5)


def test_a_beam_scores_by_the_logits_of_its_own_past():
    ids, scores, likely = written(model(inputs="text_tower", memory="fused"), Beam(width=4))
    chosen = np.take_along_axis(likely, ids[..., None], 2)[..., 0]
    ended = np.cumsum(ids == END, 1) - (ids == END) > 0
    np.testing.assert_allclose(scores, np.where(ended, 0, chosen).sum(1), rtol=1e-5)
    assert (scores >= written(model(inputs="text_tower", memory="fused"))[1] - 1e-5).all()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1.0])
def test_the_nucleus_is_the_smallest_set_with_that_mass(p):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(9, 0.5), 20)
    got = np.asarray(nucleus(jnp.asarray(probabilities, jnp.float32), p))
    for row, kept in zip(probabilities, got, strict=True):
        order = np.argsort(-row)
        count = next(k for k in range(1, 10) if row[order[:k]].sum() >= p - 1e-6)
        assert set(np.flatnonzero(kept)) == set(order[:count])


def test_of_equally_likely_tokens_the_nucleus_takes_as_few_as_it_needs():
    assert nucleus(jnp.full((1, 4), 0.25), 0.5).sum() == 2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_from_the_nucleus_in_proportion(temperature):
    probabilities = np.array([0.05, 0.4, 0.3, 0.2, 0.05])
    count = 4000
    tokens = jnp.broadcast_to(jnp.log(jnp.asarray(probabilities, jnp.float32)), (count, 1, 5))
    zeros, keys = jnp.zeros((count, 1)), example_keys(jax.random.key(0), count)
    method = Nucleus(p=0.85, temperature=temperature)
    parents, drawn = method(zeros, tokens, zeros.astype(int), keys)
    warm = probabilities ** (1 / temperature) / (probabilities ** (1 / temperature)).sum()
    order = np.argsort(-warm, kind="stable")
    kept = order[: np.searchsorted(np.cumsum(warm[order]), 0.85) + 1]
    want = np.where(np.isin(np.arange(5), kept), warm, 0)
    want /= want.sum()
    got = np.bincount(np.asarray(drawn)[:, 0], minlength=5) / count
    assert not parents.any() and not got[want == 0].any()
    np.testing.assert_allclose(got, want, atol=0.03)


def test_a_drawn_text_does_not_depend_on_the_other_rows():
    a_model, keys = model(), example_keys(jax.random.key(0), 4)
    method = Nucleus(p=0.95, temperature=2.0)
    arrays = batch() | {"image": jnp.broadcast_to(batch()["image"][:1], (4, 16, 16, 3))}
    whole = written(a_model, method, keys, arrays)[0]
    part = written(a_model, method, keys[1:3], {k: x[1:3] for k, x in arrays.items()})[0]
    np.testing.assert_array_equal(part, whole[1:3])
    assert len(np.unique(whole, axis=0)) == 4  # of one image, each with its own key
    again = written(a_model, method, example_keys(jax.random.key(1), 4), arrays)[0]
    assert not np.array_equal(again, whole)


def test_the_tokens_of_a_text_are_drawn_apart():
    flat = bigrams(np.log(np.full((16, 16), 1 / 16)), length=12)
    keys = example_keys(jax.random.key(0), 2)
    ids = generate(flat, None, Nucleus(p=1.0), end_id=END, batch_size=2, keys=keys).ids
    assert len(np.unique(ids[0])) > 3


def test_a_text_that_does_not_end_is_cut_at_the_length():
    a_model = model()
    a_model.decoder.head.bias[...] = jnp.zeros(64).at[END].set(-100.0).at[0].set(100.0)
    long, short = written(a_model), written(a_model, length=5)
    assert (long[0] != END).all() and (long[0] != 0).all()  # nor is padding ever chosen
    np.testing.assert_array_equal(short[0], long[0][:, :5])
    chosen = np.take_along_axis(long[2], long[0][..., None], 2)[:, :5, 0]
    np.testing.assert_allclose(short[1], chosen.sum(1), rtol=1e-5)


def test_padding_and_end_may_be_one_id():
    a_model = model()
    a_model.decoder.head.bias[...] = jnp.zeros(64).at[END].set(100.0)
    assert (written(a_model, pad_id=END)[0] == END).all()


@pytest.mark.parametrize("rules, method", [("dp", Beam(width=3)), ("fsdp", Nucleus(p=0.9))])
def test_a_program_writes_the_same_on_eight_devices_as_on_one(rules, method):
    config = get_config()
    config.model.text.update(causal=True, width=64)
    config.model.decoder = dict(name="transformer", inputs="text_tower", **TOWER | dict(width=64))
    config.objectives = dict(captioning=dict(name="captioning"))

    def run(sharding, devices):
        config.sharding = sharding
        program = build_program(config, devices)
        arrays = {"image": np.concatenate([batch(seed)["image"] for seed in range(4)])}
        arrays = jax.device_put(arrays, program.batch_sharding)

        def function(_, views):
            keys = views.draws("generate")
            return generate(views.model, views.memory(), method, end_id=END, keys=keys)

        return program.apply(function)(program.init(0), arrays)

    got = run(dict(mesh=dict(fsdp=8), rules=rules), None)
    want = run(dict(mesh=dict(fsdp=1), rules="dp"), jax.devices()[:1])
    assert len(got.ids.sharding.device_set) == 8
    np.testing.assert_array_equal(got.ids, want.ids)
    np.testing.assert_allclose(got.scores, want.scores, rtol=1e-5)
    assert len(np.unique(want.ids, axis=0)) > 4


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: generate(m, None, end_id=END), "expected the views' memory"),
        (lambda m: written(m, length=9), "length=9: expected 1 .. 8"),
        (lambda m: written(m, batch_size=4), "give batch_size where there is no memory"),
        (lambda m: written(m, Nucleus(p=0.5)), "give keys of the rows"),
        (
            lambda m: written(m, arrays=batch() | dict.fromkeys(("prompt", "prompt_mask"), SHORT)),
            r"the prompt is \(4, 3\), expected \(4, 8\)",
        ),
        (lambda m: Nucleus(p=0.0), r"p=0.0 must lie in \(0, 1\]"),
        (lambda m: Beam(width=0), "width=0 must be at least 1"),
        (lambda m: generate(Multimodal(text=TEXT, rngs=nnx.Rngs(0)), None, end_id=2), "decoder"),
    ],
)
def test_what_cannot_work_is_refused(call, message):
    with pytest.raises(BadInput, match=message):
        call(model())
