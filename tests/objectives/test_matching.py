"""Hard negatives against the distribution that they are drawn from; the loss against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm.config import BadInput
from mm.models.keys import example_keys
from mm.objectives.matching import hard_negatives, match_loss, pair_gumbel
from mm.sharding.mesh import make_mesh
from mm.sharding.rules import find_rules, use_sharding
from tests.objectives.test_combine import build
from tests.test_program import batch
from tests.tiny import TEXT


def embeddings(n, seed=0):
    z = np.random.default_rng(seed).standard_normal((2, n, 4))
    return jnp.asarray(z / np.linalg.norm(z, axis=-1, keepdims=True), jnp.float32)


@settings(max_examples=30, deadline=None)
@given(
    group=st.lists(st.integers(0, 4), min_size=8, max_size=8),
    seed=st.integers(0, 99),
    scale=st.sampled_from([0.0, 5.0, 1e4]),
)
def test_a_true_pair_is_never_a_negative(group, seed, scale):
    group = jnp.asarray(group, jnp.int32)
    keys = example_keys(jax.random.key(seed), 8)
    text, image, found = hard_negatives(*embeddings(8, seed), group, scale, keys)
    there_is = (group[:, None] != group[None]).any(1)
    for rows, has in zip((text, image), found, strict=True):
        np.testing.assert_array_equal(has, there_is)
        assert (group[rows] != group)[has].all()


@pytest.mark.parametrize("shape", [dict(replica=2, fsdp=4), dict(fsdp=4, tensor=2)])
def test_the_negatives_of_many_devices_are_those_of_one(shape):
    group, keys = jnp.arange(16, dtype=jnp.int32) // 2, example_keys(jax.random.key(0), 16)
    want = hard_negatives(*embeddings(16), group, 5.0, keys)
    with use_sharding(make_mesh(shape, jax.devices()), find_rules("dp")):
        found = jax.jit(lambda z: hard_negatives(*z, group, 5.0, keys))(embeddings(16))
    jax.tree.map(np.testing.assert_array_equal, found, want)


def test_negatives_are_drawn_by_their_similarity():
    n, draws, scale = 6, 4000, 3.0
    zimg, ztxt = embeddings(n)
    group = jnp.array([0, 1, 2, 2, 3, 4], jnp.int32)

    def draw(key):
        return hard_negatives(zimg, ztxt, group, scale, example_keys(key, n))[:2]

    text, image = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), draws))
    logits = np.asarray(scale * zimg @ ztxt.T, np.float64)
    logits[np.asarray(group)[:, None] == np.asarray(group)[None]] = -np.inf
    for rows, scores in ((text, logits), (image, logits.T)):
        want = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        shares = (np.asarray(rows)[:, :, None] == np.arange(n)).mean(0)
        assert np.abs(shares - want).max() < 5 * 0.5 / np.sqrt(draws)


def test_at_a_high_scale_the_most_similar_one_is_drawn():
    zimg, ztxt = embeddings(8)
    group = jnp.arange(8, dtype=jnp.int32)
    text, _, _ = hard_negatives(zimg, ztxt, group, 1e4, example_keys(jax.random.key(0), 8))
    scores = np.array(zimg @ ztxt.T)
    np.fill_diagonal(scores, -9)
    np.testing.assert_array_equal(text, scores.argmax(1))


def test_the_loss_is_the_mean_over_the_pairs_that_count():
    logits = np.random.default_rng(0).standard_normal((3, 4, 2))
    counts = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 1, 1]], bool)
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    want = -np.concatenate([log[0, :, 1], log[1, counts[1], 0], log[2, counts[2], 0]]).mean()
    loss = match_loss(list(jnp.asarray(logits, jnp.float32)), list(jnp.asarray(counts)))
    np.testing.assert_allclose(loss.value, want, rtol=1e-6)
    hits = [logits.argmax(-1)[0].mean(), (logits.argmax(-1)[1:] == 0)[counts[1:]].mean()]
    np.testing.assert_allclose(loss.metrics["balanced_accuracy"], np.mean(hits), rtol=1e-6)


def next_text(**changes):
    return build({"n": dict(name="next_text")}, model__text=dict(TEXT, segments=2, **changes))


def test_a_second_text_is_read_after_the_first_as_another_segment():
    """Both sides see it: changing a word of the second text changes the loss, padding does not."""
    a_program = next_text()
    data = dict(batch(a_program)) | {
        "text_first": np.full((16, 4), 3, np.int32),
        "text_first_mask": np.ones((16, 4), bool),
        "text_second": np.tile(np.arange(16, dtype=np.int32)[:, None], (1, 4)) + 5,
        "text_second_mask": np.tile(np.arange(4) < 2, (16, 1)),
    }
    state = a_program.init(0)

    def loss(**changes):
        return float(a_program.gradients(state, data | changes)[0][0])

    second = data["text_second"].copy()
    second[:, 3] = 1
    assert loss(text_second=second) == loss()
    second[:, 0] = 1
    assert loss(text_second=second) != loss()
    metrics = a_program.gradients(state, data)[0][1][0]
    assert metrics["n/with_negative"] == 1


def test_next_text_needs_two_segments():
    with pytest.raises(BadInput, match="config.model.text.segments=2"):
        build({"n": dict(name="next_text")})


def test_noise_is_finite_at_the_ends_of_its_range():
    """The largest and the least number that a hash can give."""
    rows = jnp.arange(4096, dtype=jnp.uint32)
    assert jnp.isfinite(pair_gumbel(rows, rows)).all()
    for bits in (0, 2**23 - 1):
        uniform = np.float32(bits) * np.float32(2.0**-23) + np.float32(2.0**-24)
        assert 0 < uniform < 1
