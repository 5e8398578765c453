import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mm import registry
from mm.config import BadInput
from mm.models.multimodal import Embedding, normalize
from mm.objectives.alignment import Adversarial, Cycle, explained, reverse
from mm.objectives.views import IMAGE, TEXT, Views
from tests.tiny import model

EMBED = 16
MODEL = model()


def given(zimg, ztxt):
    """Views of embeddings that are given."""
    views = Views(MODEL, {}, None)
    for view, z in ((IMAGE, zimg), (TEXT, ztxt)):
        views.embeddings[view] = Embedding(z, jnp.ones(len(z)))
    return views


def embeddings(n=32, seed=0):
    x = np.random.default_rng(seed).standard_normal((2, n, EMBED))
    x[1] += 1.0  # a modality gap
    return tuple(normalize(jnp.asarray(z, jnp.float32)) for z in x)


def build(kind, **options):
    spec = dict(hidden=32) | options
    return registry.call(kind, spec, "o", model=MODEL, rngs=nnx.Rngs(2))


def train(objective, z, steps, rate=1e-2, learn=("heads",)):
    """Metrics after Adam on the objective's parameters, on the embeddings, or on both."""
    graphdef, heads = nnx.split(objective, nnx.Param)
    params, adam = {"heads": heads, "z": z}, optax.adam(rate)

    def loss(params):
        views = given(*map(normalize, params["z"]))
        found = nnx.merge(graphdef, params["heads"])(views, jax.random.key(0))
        return found.value, found.metrics

    def step(carry, _):
        params, state = carry
        (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        gradient = {
            k: g if k in learn else jax.tree.map(jnp.zeros_like, g) for k, g in gradient.items()
        }
        updates, state = adam.update(gradient, state)
        return (optax.apply_updates(params, updates), state), metrics

    (params, _), metrics = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=steps))(
        (params, adam.init(params))
    )
    return jax.tree.map(lambda x: float(x[-1]), metrics), params["z"]


def test_reversal_turns_the_gradient_round_and_scales_it():
    x = jnp.array([1.0, -2.0, 3.0])
    f = lambda x: jnp.sum(x**3)  # noqa: E731
    plain, turned = jax.grad(f)(x), jax.grad(lambda x: f(reverse(0.25, x)))(x)
    np.testing.assert_allclose(turned, -0.25 * plain)
    np.testing.assert_array_equal(reverse(0.25, x), x)


def test_the_discriminator_descends_where_the_towers_climb():
    z = embeddings()
    graphdef, heads = nnx.split(build(Adversarial, reversal=2.0), nnx.Param)

    def gradients(reversal):
        def loss(heads, z):
            adversarial = nnx.merge(graphdef, heads)
            adversarial.reversal = reversal
            return adversarial(given(*z), jax.random.key(0)).value

        return jax.grad(loss, (0, 1))(heads, z)

    (heads_one, z_one), (heads_two, z_two) = gradients(1.0), gradients(-1.0)  # -1: not turned
    jax.tree.map(np.testing.assert_array_equal, heads_one, heads_two)
    for turned, plain in zip(z_one, z_two, strict=True):
        np.testing.assert_allclose(turned, -plain, rtol=1e-6)
        assert np.abs(plain).max() > 0


def test_the_adversarial_loss_is_the_cross_entropy_of_the_modality():
    adversarial, z = build(Adversarial), embeddings()
    loss = adversarial(given(*z), jax.random.key(0))
    logits = np.float64([adversarial.discriminator(x)[:, 0] for x in z])
    p = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(
        loss.value, -(np.log(p[0]).mean() + np.log(1 - p[1]).mean()) / 2, rtol=1e-5
    )
    right = ((logits[0] > 0).mean() + (logits[1] < 0).mean()) / 2
    np.testing.assert_allclose(loss.metrics["discriminator_accuracy"], right, rtol=1e-6)
    gap = np.linalg.norm(np.float64(z[0]).mean(0) - np.float64(z[1]).mean(0))
    np.testing.assert_allclose(loss.metrics["modality_gap"], gap, rtol=1e-5)


def test_a_discriminator_tells_32_pairs_apart_until_the_embeddings_hide_it():
    z = embeddings()
    alone, _ = train(build(Adversarial), z, 100)
    assert alone["discriminator_accuracy"] == 1 and alone["modality_gap"] > 0.5
    both, moved = train(build(Adversarial), z, 400, learn=("heads", "z"))
    assert both["modality_gap"] < 0.5 * alone["modality_gap"]
    assert both["discriminator_accuracy"] < 0.8


def test_the_parts_of_a_cycle_equal_their_definitions():
    cycle, (x, y) = build(Cycle, cycle_weight=0.5), embeddings()
    loss = cycle(given(x, y), jax.random.key(0))

    def unit(z):
        return z / jnp.linalg.norm(z, axis=1, keepdims=True)

    f, g = (lambda z: unit(cycle.to_text(z))), (lambda z: unit(cycle.to_image(z)))
    found = {
        "image_to_text": (f(x), y),
        "text_to_image": (g(y), x),
        "image_cycle": (g(f(x)), x),
        "text_cycle": (f(g(y)), y),
    }
    errors = {}
    for name, (a, b) in found.items():
        a, b = np.float64(a), np.float64(b)
        errors[name] = ((a - b) ** 2).sum(1).mean()
        np.testing.assert_allclose(loss.metrics[name], errors[name], rtol=1e-5)
        share = 1 - errors[name] / b.var(0).sum()
        np.testing.assert_allclose(loss.metrics[f"{name}_explained"], share, rtol=1e-4, atol=1e-5)
    one, two, three, four = errors.values()
    np.testing.assert_allclose(loss.value, one + two + 0.5 * (three + four), rtol=1e-5)


def test_a_fresh_cycle_errs_by_no_more_than_unit_vectors_can():
    loss = build(Cycle, cycle_weight=1.0)(given(*embeddings()), jax.random.key(0))
    assert loss.value < 16  # four errors, each at most the square of a diameter


def test_targets_of_a_cycle_have_no_gradient():
    cycle, (x, y) = build(Cycle, cycle_weight=0.0), embeddings()
    cycle.to_text.layers[-1].kernel[...] *= 0  # then nothing of x reaches f(x)
    cycle.to_text.layers[-1].bias[...] += 1.0

    def loss(x):
        return cycle(given(x, y), jax.random.key(0)).value

    np.testing.assert_array_equal(jax.grad(loss)(x), jnp.zeros_like(x))


def test_32_pairs_lead_to_each_other_and_back():
    found, _ = train(build(Cycle, layers=3), embeddings(), 600)
    explained = [value for name, value in found.items() if name.endswith("explained")]
    assert len(explained) == 4 and min(explained) > 0.95


def test_a_collapse_explains_nothing():
    constant = jnp.ones((8, EMBED)) / 4
    assert explained(jnp.float32(0.0), constant) == 0
    z = embeddings()[0]
    mean_alone = jnp.square(z.mean(0) - z).sum(1).mean()
    np.testing.assert_allclose(explained(mean_alone, z), 0, atol=1e-5)


@pytest.mark.parametrize(
    "kind, options, message",
    [
        (Adversarial, dict(reversal=-1.0), "reversal=-1.0"),
        (Cycle, dict(cycle_weight=-1.0), "cycle_weight=-1.0"),
        (Cycle, dict(layers=0), "layers=0"),
    ],
)
def test_what_cannot_work_is_refused(kind, options, message):
    with pytest.raises(BadInput, match=message):
        build(kind, **options)


@pytest.mark.parametrize("kind", [Adversarial, Cycle])
def test_a_model_without_a_shared_space_is_refused(kind):
    with pytest.raises(BadInput, match="needs config.model.embed_dim"):
        kind(model=model(embed_dim=None), rngs=nnx.Rngs(0))
