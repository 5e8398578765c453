"""Queues and soft targets against whole matrices in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm.objectives import momentum
from mm.objectives.momentum import queue_loss
from tests.test_program import batch, program

QUEUE = dict(name="momentum", queue_size=32, alpha=0.4)


def reference(z, slow, queue, group, groups, scale, alpha):
    def softmax(x):
        return np.exp(x) / np.exp(x).sum(1, keepdims=True)

    logits, same = scale * z @ queue.T, group[:, None] == groups[None]
    target = alpha * softmax(scale * slow @ queue.T) + (1 - alpha) * same / same.sum(1)[:, None]
    slope = softmax(logits) - target
    loss = -(target * np.log(softmax(logits))).sum(1).mean()
    return loss, scale * slope @ queue / len(z), (slope * (z @ queue.T)).sum(1).mean()


@pytest.mark.parametrize("chunk", [4, 64])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_the_loss_and_its_gradients_are_those_of_the_whole_matrix(chunk, alpha, monkeypatch):
    monkeypatch.setattr(momentum, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    z, slow, queue = (rng.standard_normal((n, 5)) for n in (4, 4, 12))
    group, groups = np.array([0, 1, 2, 2]), np.array([0, 1, 2, 2, *[-1] * 7, 1])
    want = reference(z, slow, queue, group, groups, 2.0, alpha)

    def loss(z, scale):
        arrays = [jnp.asarray(a, jnp.float32) for a in (slow, queue)]
        return queue_loss(z, *arrays, jnp.asarray(group), jnp.asarray(groups), scale, alpha)[0]

    given = jnp.asarray(z, jnp.float32), jnp.float32(2.0)
    value, gradients = jax.value_and_grad(loss, (0, 1))(*given)
    for found, wanted in zip((value, *gradients), want, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def run():
    """A program, its first state, and the state after a step."""
    a_program = program(objectives={"momentum": QUEUE}, teacher=dict(name="average", decay=0.75))
    before = a_program.init(0)
    data = batch(a_program)
    copy = jax.tree.map(jnp.copy, before)
    return a_program, copy, a_program.train_step(before, data)[0], data


def test_the_teacher_follows_as_an_average(run):
    _, before, after, _ = run
    want = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, before.extras["teacher"], after.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        after.extras["teacher"],
        want,
    )


def test_a_step_puts_its_embeddings_into_the_queue_and_keeps_the_rest(run):
    a_program, before, after, data = run
    old, new = (state.extras["buffers"]["objectives"]["momentum"] for state in (before, after))
    zimg, ztxt = a_program.embed(before, data)
    for name, z in (("images", zimg), ("texts", ztxt)):
        np.testing.assert_allclose(new[name][:16], z, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(new[name][16:], old[name][16:])
    np.testing.assert_array_equal(new["groups"][:16], data["group"])
    assert int(new["step"]) == 1


def test_the_queue_turns(run):
    a_program, _, after, data = run
    state = jax.tree.map(jnp.copy, after)
    for _ in range(2):  # the third batch overwrites the first
        state, _ = a_program.train_step(state, data)
    groups = state.extras["buffers"]["objectives"]["momentum"]["groups"]
    np.testing.assert_array_equal(groups, np.tile(data["group"], 2))


def test_evaluation_leaves_the_queue_alone(run):
    a_program, _, after, data = run
    first, second = (a_program.losses(after, data) for _ in range(2))
    assert first == second


def test_the_place_in_the_queue_is_right_after_billions_of_examples(run):
    a_program, _, after, data = run
    state = jax.tree.map(jnp.copy, after)
    buffers = state.extras["buffers"]["objectives"]["momentum"]
    buffers["step"] = jnp.int32(2**28 + 1)  # times the batch of 16 is beyond an int32
    buffers["groups"] = jnp.full(32, -7, jnp.int32)
    state, _ = a_program.train_step(state, data)
    groups = state.extras["buffers"]["objectives"]["momentum"]["groups"]
    np.testing.assert_array_equal(groups, [-7] * 16 + np.asarray(data["group"]).tolist())
