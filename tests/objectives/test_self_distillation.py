import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm import registry
from mm.config import BadInput
from mm.models.keys import example_keys
from mm.objectives import Views
from mm.objectives.self_distillation import SelfDistillation
from tests.tiny import IMAGE, model

SMALL = dict(prototypes=16, hidden=16, bottleneck=8)
VIEWS = dict(views=("one", "two", "three"), view_size=8)


def a_model(seed=0):
    return model(image=dict(IMAGE, mask_token=True), text=None, seed=seed)


def batch(n=4):
    rng = np.random.default_rng(0)
    sizes = {"image": 16, "image_one": 8, "image_two": 8, "image_three": 8}
    return {
        name: jnp.asarray(rng.standard_normal((n, size, size, 3)), jnp.float32)
        for name, size in sizes.items()
    }


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return (
        x
        - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - x.max(-1, keepdims=True)
    )


def cross_entropy(center, taught, said, temperature, teacher_temperature):
    """DINO's eq. 1 and 4, of [..., k] and [..., k]."""
    p = np.exp(log_softmax((np.asarray(taught, np.float64) - center) / teacher_temperature))
    return -(p * log_softmax(np.asarray(said, np.float64) / temperature)).sum(-1)


def loss_and_parts(**changes):
    """The loss, the objective before it, its average, and the views that it saw."""
    student, average = a_model(), a_model(seed=1)
    made, slow = (
        SelfDistillation(**SMALL, **changes, model=m, rngs=nnx.Rngs(s))
        for m, s in ((student, 2), (average, 3))
    )
    made.key = "o"
    centers = jnp.linspace(-0.1, 0.1, 16), jnp.linspace(0.1, -0.1, 16)
    made.center[...], made.patch_center[...] = centers
    keys = example_keys(jax.random.key(0), 4)
    teacher = Views(average, batch(), None)
    seen = Views(student, batch(), keys, teacher=teacher, averaged={"o": slow})
    return made(seen, jax.random.key(1)), made, slow, seen, [np.asarray(x) for x in centers]


def test_views_learn_what_the_average_says_of_the_whole_picture():
    loss, made, slow, seen, (center, _) = loss_and_parts(**VIEWS, temperature=0.2)
    taught = slow.head(seen.teacher.image().pooled)
    said = [made.head(seen.image(name).pooled) for name in VIEWS["views"]]
    each = [cross_entropy(center, taught, x, 0.2, 0.04) for x in said]
    np.testing.assert_allclose(loss.value, np.mean(each), rtol=1e-4)
    moved = 0.9 * center + 0.1 * np.asarray(taught, np.float64).mean(0)
    np.testing.assert_allclose(made.center[...], moved, rtol=1e-4, atol=1e-6)


def test_hidden_patches_learn_what_the_average_says_of_them():
    loss, made, slow, seen, (_, center) = loss_and_parts(replace=0.5, patch_weight=0.25)
    masked = seen.image(replace=0.5)
    taught = slow.patch_head(seen.teacher.image().tokens)
    said = made.patch_head(masked.tokens)
    each = cross_entropy(center, taught, said, 0.1, 0.04)[np.asarray(masked.replaced)]
    assert each.size == 8  # half of 4 patches of 4 pictures
    np.testing.assert_allclose(loss.metrics["patch_loss"], each.mean(), rtol=1e-4)
    np.testing.assert_allclose(loss.value, 0.25 * each.mean(), rtol=1e-4)


def test_both_losses_add_up():
    loss, *_ = loss_and_parts(**VIEWS, replace=0.5, patch_weight=0.25)
    parts = loss.metrics["view_loss"] + 0.25 * loss.metrics["patch_loss"]
    np.testing.assert_allclose(loss.value, parts, rtol=1e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, "expected views with their size"),
        (dict(views=("one",)), "expected views with their size"),
        (dict(replace=0.5, patch_weight=0.0), "o.patch_weight=0.0: expected above 0"),
        (dict(views=("clean",), view_size=8), "'clean' is what the teacher sees"),
        (dict(views=("one",), view_size=9), "view_size=9: expected a multiple of patch_size=8"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        spec = SMALL | changes
        registry.call(SelfDistillation, spec, "o", model=a_model(), rngs=nnx.Rngs(0))
