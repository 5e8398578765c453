"""Soft targets against the whole matrices in float64, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm.config import BadInput
from mm.models.multimodal import Embedding
from mm.objectives import Views
from mm.objectives.distillation import (
    FeatureDistillation,
    ResponseDistillation,
    soft_cross_entropy,
)
from mm.objectives.views import IMAGE, TEXT
from mm.sharding.mesh import make_mesh
from mm.sharding.rules import find_rules, use_sharding
from tests import tiny


def inputs(n=16):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((n, width)) for width in (4, 4, 6, 6)]


def reference(x, y, taught_x, taught_y):
    own, taught = x @ y.T, taught_x @ taught_y.T
    log = own - np.log(np.exp(own).sum(1, keepdims=True))
    target = np.exp(taught) / np.exp(taught).sum(1, keepdims=True)
    slope = (np.exp(log) - target) / len(x)
    entropy = -(target * np.log(target)).sum(1).mean()
    return -(target * log).sum(1).mean(), entropy, slope @ y, slope.T @ x


@pytest.mark.parametrize("shape", [dict(fsdp=1), dict(replica=2, fsdp=2, tensor=2)])
def test_values_and_gradients_are_those_of_the_whole_matrix(shape):
    arrays = inputs()
    loss, entropy, dx, dy = reference(*arrays)
    mesh = make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])
    with use_sharding(mesh, find_rules("dp")):
        function = jax.jit(jax.value_and_grad(lambda *a: soft_cross_entropy(*a)[0], (0, 1, 2)))
        given = [jnp.asarray(a, jnp.float32) for a in arrays]
        value, gradients = function(*given)
        np.testing.assert_allclose(jax.jit(soft_cross_entropy)(*given)[1], entropy, rtol=1e-5)
    np.testing.assert_allclose(value, loss, rtol=1e-5)
    for found, want in zip(gradients, (dx, dy, np.zeros((16, 6))), strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-6)


def test_a_student_that_says_what_the_teacher_says_is_at_the_minimum():
    x, y, *_ = (jnp.asarray(a, jnp.float32) for a in inputs())
    value, slope = jax.value_and_grad(lambda x: soft_cross_entropy(x, y, x, y)[0])(x)
    np.testing.assert_allclose(value, soft_cross_entropy(x, y, x, y)[1], rtol=1e-5)
    assert jnp.abs(slope).max() < 1e-6


def test_a_width_that_is_not_the_teachers_is_refused():
    a_model = tiny.model()
    given = Views(a_model, {}, None, teacher=Views(a_model, {}, None))
    for views in (given, given.teacher):
        views.embeddings |= {
            view: Embedding(jnp.ones((2, 16)), jnp.ones(2)) for view in (IMAGE, TEXT)
        }
    for kind in (ResponseDistillation, FeatureDistillation):
        with pytest.raises(BadInput, match="width=8: the teacher's embeddings are 16 wide"):
            kind(width=8, model=a_model, rngs=nnx.Rngs(0))(given, jax.random.key(0))
        assert jnp.isfinite(kind(model=a_model, rngs=nnx.Rngs(0))(given, jax.random.key(0)).value)
