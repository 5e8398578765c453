"""The losses against a dense float64 numpy reference, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mm.config import BadInput
from mm.objectives.contrastive import (
    Contrastive,
    clamp_from_above,
    sigmoid_loss,
    softmax_loss,
)
from mm.objectives.views import Views
from mm.sharding.mesh import BATCH_AXES, make_mesh
from mm.sharding.rules import find_rules, use_sharding
from tests.tiny import model

GROUPS = {
    "all different": np.arange(12),
    "duplicates": np.array([0, 1, 1, 2, 3, 3, 3, 4, 5, 6, 7, 0]),
    "all the same": np.zeros(12, int),
}


def inputs(seed=0, n=12, d=8):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True), y / np.linalg.norm(
        y, axis=1, keepdims=True
    )


def softmax(z, axis):
    e = np.exp(z - z.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def reference_softmax(x, y, group, scale):
    """UniCL's bidirectional loss and its gradients by x, y, scale, by hand."""
    n = len(x)
    z = scale * x @ y.T
    hits = (group[:, None] == group[None]).astype(float)
    t = hits / hits.sum(1, keepdims=True)
    rows, columns = softmax(z, 1), softmax(z, 0)
    loss = -(t * np.log(rows)).sum() / (2 * n) - (t.T * np.log(columns.T)).sum() / (2 * n)
    dz = (rows - t + columns - t.T) / (2 * n)
    return loss, (scale * dz @ y, scale * dz.T @ x, (dz * (x @ y.T)).sum())


def reference_sigmoid(x, y, group, scale, bias):
    """SigLIP's eq. 1 and its gradients by x, y, scale, bias, by hand."""
    n = len(x)
    z = scale * x @ y.T + bias
    sign = np.where(group[:, None] == group[None], 1.0, -1.0)
    loss = np.log1p(np.exp(-sign * z)).sum() / n
    dz = -sign / (1 + np.exp(sign * z)) / n
    return loss, (scale * dz @ y, scale * dz.T @ x, (dz * (x @ y.T)).sum(), dz.sum())


def relative(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-7)


@pytest.mark.parametrize("x64, tolerance", [(True, 1e-9), (False, 1e-5)])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_loss_and_gradients_equal_the_dense_reference(kind, groups, x64, tolerance):
    group = GROUPS[groups]
    numbers = (*inputs(), group, 7.0) if kind == "softmax" else (*inputs(), group, 7.0, -3.0)
    function = softmax_loss if kind == "softmax" else sigmoid_loss
    reference = reference_softmax if kind == "softmax" else reference_sigmoid
    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        arrays = [jnp.asarray(a, jnp.int32 if a is group else dtype) for a in numbers]
        differentiable = (0, 1, 3) if kind == "softmax" else (0, 1, 3, 4)
        (loss, _), gradients = jax.value_and_grad(function, differentiable, has_aux=True)(*arrays)
    want, want_gradients = reference(*numbers)
    assert relative(loss, want) < tolerance
    for got, want in zip(gradients, want_gradients, strict=True):
        assert relative(got, want) < tolerance


MESHES = [dict(fsdp=2), dict(replica=2, fsdp=2), dict(fsdp=4, tensor=2), dict(replica=8)]


@pytest.mark.parametrize("x64, tolerance", [(True, 1e-9), (False, 1e-5)])
@pytest.mark.parametrize("shape", MESHES, ids=str)
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_ring_of_devices_computes_the_dense_reference(kind, shape, x64, tolerance, monkeypatch):
    monkeypatch.setattr("mm.sharding.ring.BLOCK", 2)  # several tiles on a device, too
    numbers = (*inputs(n=32), np.arange(32) % 27, 7.0, -3.0)
    numbers = numbers[:4] if kind == "softmax" else numbers
    reference = reference_softmax if kind == "softmax" else reference_sigmoid
    mesh = make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])
    split, same = NamedSharding(mesh, P(BATCH_AXES)), NamedSharding(mesh, P())
    with jax.enable_x64(x64), use_sharding(mesh, find_rules("dp")):
        dtype = jnp.float64 if x64 else jnp.float32
        arrays = [jnp.asarray(a, jnp.int32 if i == 2 else dtype) for i, a in enumerate(numbers)]
        arrays = [jax.device_put(a, split if a.ndim else same) for a in arrays]
        function = softmax_loss if kind == "softmax" else sigmoid_loss
        differentiable = tuple(i for i in range(len(arrays)) if i != 2)
        compute = jax.jit(jax.value_and_grad(function, differentiable, has_aux=True))
        (loss, accuracy), gradients = compute(*arrays)
    want, want_gradients = reference(*numbers)
    assert relative(loss, want) < tolerance
    for got, want in zip(gradients, want_gradients, strict=True):
        assert relative(got, want) < tolerance
    z = numbers[0] @ numbers[1].T
    same = numbers[2][:, None] == numbers[2][None]
    best = [(np.where(same, z, -9).max(i) > np.where(same, -9, z).max(i)).mean() for i in (1, 0)]
    np.testing.assert_allclose(accuracy, best, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=6, max_size=6), st.permutations(range(6)))
def test_the_order_of_a_batch_does_not_matter(group, order):
    x, y = (jnp.asarray(a, jnp.float32) for a in inputs(n=6))
    group, order = jnp.asarray(group, jnp.int32), jnp.asarray(order)
    for function, extra in ((softmax_loss, ()), (sigmoid_loss, (jnp.float32(-2.0),))):
        scale = jnp.float32(5.0)
        before = function(x, y, group, scale, *extra)[0]
        after = function(x[order], y[order], group[order], scale, *extra)[0]
        np.testing.assert_allclose(before, after, rtol=2e-6)


def test_a_repeated_picture_is_no_false_negative():
    x = jnp.asarray(inputs(n=1)[0], jnp.float32).repeat(2, axis=0)  # a perfect pair, twice
    loss, _ = sigmoid_loss(x, x, jnp.array([3, 3]), jnp.float32(20.0), jnp.float32(0.0))
    assert loss < 1e-6


def test_accuracy_counts_a_tie_as_a_miss():
    x = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    accuracy = softmax_loss(x, x, jnp.array([0, 1, 2]), jnp.float32(5.0))[1]
    np.testing.assert_allclose(accuracy, [1 / 3, 1 / 3])


def test_the_scale_is_clamped_but_can_come_back():
    value = jax.value_and_grad(lambda t: clamp_from_above(t, 2.0))
    assert value(5.0) == (2.0, 1.0)  # descent lowers t
    down = jax.grad(lambda t: -clamp_from_above(t, 2.0))
    assert down(5.0) == 0.0 and down(1.0) == -1.0  # above the limit nothing pushes it up


@pytest.mark.parametrize("kind, scale, bias", [("softmax", 1 / 0.07, None), ("sigmoid", 10, -10)])
def test_starts_at_the_scale_and_bias_of_the_paper(kind, scale, bias):
    objective = Contrastive(kind=kind, model=model(), rngs=nnx.Rngs(0))
    np.testing.assert_allclose(np.exp(objective.log_scale[...]), scale, rtol=1e-6)
    assert (objective.bias is None) == (bias is None)
    if bias is not None:
        assert objective.bias[...] == bias


@pytest.mark.parametrize("kind, most", [("softmax", 100.0), ("sigmoid", None)])
def test_the_scale_of_softmax_is_clamped_and_that_of_sigmoid_is_not(kind, most):
    """Released SigLIP models have scales above 100."""
    a_model = model()
    objective = Contrastive(kind=kind, model=a_model, rngs=nnx.Rngs(0))
    objective.log_scale[...] = jnp.log(150.0)
    rows = {
        "image": jnp.ones((4, 16, 16, 3)),
        "text": jnp.ones((4, 8), jnp.int32),
        "text_mask": jnp.ones((4, 8), bool),
        "group": jnp.arange(4),
    }
    found = objective(Views(a_model, rows, None), jax.random.key(0)).metrics["logit_scale"]
    np.testing.assert_allclose(found, most or 150.0, rtol=1e-5)


def test_a_scale_beyond_its_clamp_is_refused():
    with pytest.raises(BadInput, match="max_scale"):
        Contrastive(kind="softmax", init_scale=200.0, model=model(), rngs=nnx.Rngs(0))
