"""Classification and regression against numpy in float64, and what they can learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm import registry
from mm.config import BadInput
from mm.models.encoder import Encoded
from mm.objectives.views import IMAGE, TEXT, Views
from tests.fit import fit
from tests.objectives.test_combine import FUSION, build
from tests.test_program import batch
from tests.tiny import model

ROWS, CLASSES = 12, 5


@pytest.fixture(scope="module")
def a_model():
    return model(fusion=FUSION)


def made(name, a_model, **options):
    """With a head of random weights: the real one begins with zeros."""
    spec = dict(name=name, **options)
    objective = registry.build("objective", spec, "config.o", model=a_model, rngs=nnx.Rngs(0))
    shape = objective.head.linear.kernel.shape
    kernel = np.random.default_rng(1).standard_normal(shape)
    objective.head.linear.kernel[...] = jnp.asarray(kernel, jnp.float32)
    return objective


def seen(a_model, **arrays):
    """Views whose pooled vectors are random."""
    views = Views(a_model, {k: jnp.asarray(x) for k, x in arrays.items()}, None)
    for view in (IMAGE, TEXT):
        pooled = np.random.default_rng(len(view.tower)).standard_normal((ROWS, 16))
        views._encoded[view] = Encoded(None, jnp.asarray(pooled, jnp.float32), None)
    return views


def logits_of(objective, views):
    view = TEXT if objective.head.of == "text" else IMAGE
    pooled = np.asarray(views.encode(view).pooled, np.float64)
    return pooled @ np.asarray(objective.head.linear.kernel[...], np.float64)


@pytest.mark.parametrize("of, smoothing", [("image", 0.0), ("text", 0.1)])
def test_softmax_equals_numpy(a_model, of, smoothing):
    objective = made(
        "classification", a_model, of=of, num_classes=CLASSES, label_smoothing=smoothing
    )
    labels = np.random.default_rng(2).integers(0, CLASSES, ROWS).astype(np.int32)
    views = seen(a_model, label=labels)
    z = logits_of(objective, views)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    targets = (1 - smoothing) * np.eye(CLASSES)[labels] + smoothing / CLASSES
    loss = objective(views, jax.random.key(0))
    np.testing.assert_allclose(loss.value, -(targets * log_p).sum(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(loss.metrics["accuracy"], (z.argmax(1) == labels).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_sigmoid_equals_numpy_with_soft_labels_too(a_model, smoothing):
    objective = made(
        "classification", a_model, kind="sigmoid", num_classes=CLASSES, label_smoothing=smoothing
    )
    labels = np.random.default_rng(3).choice([0.0, 0.3, 1.0], (ROWS, CLASSES))
    views = seen(a_model, labels=labels.astype(np.float32))
    p = 1 / (1 + np.exp(-logits_of(objective, views)))
    targets = (1 - smoothing) * labels + smoothing / 2
    losses = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum(1)
    loss = objective(views, jax.random.key(0))
    np.testing.assert_allclose(loss.value, losses.mean(), rtol=1e-5)
    right = ((p > 0.5) == (labels > 0.5)).all(1).mean()
    np.testing.assert_allclose(loss.metrics["accuracy"], right)


@pytest.mark.parametrize("kind", ["squared", "huber"])
def test_regression_equals_numpy(a_model, kind):
    objective = made("regression", a_model, kind=kind, mean=40.0, deviation=5.0, size=2)
    targets = np.random.default_rng(4).normal(40, 10, (ROWS, 2)).astype(np.float32)
    views = seen(a_model, target=targets)
    error = logits_of(objective, views) - (targets - 40.0) / 5.0
    away = np.abs(error)
    losses = error**2 / 2 if kind == "squared" else np.where(away < 1, error**2 / 2, away - 0.5)
    loss = objective(views, jax.random.key(0))
    np.testing.assert_allclose(loss.value, losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(loss.metrics["absolute_error"], 5 * away.mean(), rtol=1e-5)


def test_the_fusion_answers_what_neither_tower_can(a_model):
    """The label is whether picture and text agree: exclusive or, of two kinds of each."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 2, (2, 32))
    tokens = np.where(kinds[1][:, None] == 1, 7, 9) + np.zeros((1, 8), np.int64)
    arrays = {
        "image": jnp.asarray(kinds[0][:, None, None, None] * np.ones((1, 16, 16, 3)), jnp.float32),
        "text": jnp.asarray(tokens, jnp.int32),
        "text_mask": jnp.ones((32, 8), bool),
        "label": jnp.asarray(kinds[0] ^ kinds[1], jnp.int32),
    }
    spec = dict(name="classification", num_classes=2, of="fused")
    objective = registry.build("objective", spec, "config.o", model=a_model, rngs=nnx.Rngs(0))
    assert objective.uses == ("fusion",)
    assert fit(a_model, objective, arrays, steps=60, learning_rate=1e-2).metrics["accuracy"] == 1


@pytest.mark.parametrize(
    "spec, message",
    [
        (dict(name="classification", num_classes=1), "num_classes=1: expected 2 at least"),
        (dict(name="classification", num_classes=0), "num_classes=0: expected at least 1"),
        (dict(name="classification", num_classes=2, of="fused"), "of='fused': needs .*fusion"),
        (dict(name="regression", deviation=0.0), "deviation=0.0: expected above 0"),
    ],
)
def test_what_cannot_work_is_refused(spec, message):
    with pytest.raises(BadInput, match=message):
        registry.build("objective", spec, "config.o", model=model(), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def a_program():
    return build({"c": dict(name="classification", num_classes=4, label_smoothing=0.1)})


def test_what_is_missing_or_of_another_number_is_said(a_program):
    a_program.need("config.evals.x", "classify", "classes=4", "image")
    with pytest.raises(BadInput, match="x: numbers 5 classes, but .* num_classes=4"):
        a_program.need("x", "classes=5")
    with pytest.raises(BadInput, match="x: needs an objective that tells numbers"):
        a_program.need("x", "estimate")


def test_a_head_begins_with_every_class_as_likely_and_learns(a_program):
    state = a_program.init(0)
    arrays = batch(a_program) | {"label": jnp.arange(a_program.recipe.global_batch_size) % 4}
    state, first = a_program.train_step(state, arrays)
    np.testing.assert_allclose(first["c/loss"], np.log(4), rtol=1e-6)
    _, second = a_program.train_step(state, arrays)
    assert second["c/loss"] < first["c/loss"]
