import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm import registry
from mm.config import BadInput
from mm.optim.paths import flatten, match_factors
from mm.optim.trained import find_frozen, join, trained

PARAMS = {"a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "b": {"kernel": jnp.ones(3)}}


def build(**changes):
    spec = dict(name="adamw", learning_rate=0.1, schedule=dict(name="constant"), **changes)
    return registry.build("optimizer", spec, "config.optimizer", params=PARAMS, total_steps=10)


def step(gradient=0.0, **changes):
    """The change of PARAMS by one step with every gradient equal to `gradient`."""
    transform, *_ = build(**changes)
    gradients = jax.tree.map(lambda p: jnp.full_like(p, gradient), PARAMS)
    return transform.update(gradients, transform.init(PARAMS), PARAMS)[0]


def rate(name, step, **kwargs):
    schedule = registry.build("schedule", dict(name=name, **kwargs), "s", total_steps=100)
    return float(schedule(step))


def test_adamw_equals_a_float64_reference_over_three_steps():
    transform, *_ = build(weight_decay=0.5, clip_norm=None, b1=0.8, b2=0.9)
    rng = np.random.default_rng(0)
    p, m, v = np.ones((2, 2)), 0.0, 0.0
    params, state = PARAMS, transform.init(PARAMS)
    for t in range(1, 4):
        g = rng.standard_normal((2, 2))
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        p = p - 0.1 * (m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.9**t)) + 1e-8) + 0.5 * p)
        gradients = jax.tree.map(jnp.zeros_like, PARAMS)
        gradients["a"]["kernel"] = jnp.asarray(g, jnp.float32)
        updates, state = transform.update(gradients, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    np.testing.assert_allclose(params["a"]["kernel"], p, rtol=1e-5)


def test_only_kernels_decay_by_default():
    change = step(weight_decay=0.5)
    np.testing.assert_allclose(change["a"]["kernel"], -0.05)
    np.testing.assert_allclose(change["a"]["bias"], 0.0)


def test_factors_take_the_first_match():
    factors = ((r"b/.*", 0.0), (r".*kernel", 0.5))
    change = step(gradient=1.0, learning_rate_factors=factors, clip_norm=None)
    np.testing.assert_allclose(change["b"]["kernel"], 0.0)
    np.testing.assert_allclose(change["a"]["kernel"], -0.05, rtol=1e-5)
    np.testing.assert_allclose(change["a"]["bias"], -0.1, rtol=1e-5)


@pytest.mark.parametrize(
    "entries, message",
    [
        (((r"c/.*", 1.0),), "'c/.*' matches no parameter"),
        (((r".*", 1.0), (r"a/.*", 2.0)), "'a/.*' matches no parameter that an earlier"),
        ((("a/bias",),), "is not a pair of a regex and a number"),
        (((".*", "half"),), "is not a pair of a regex and a number"),
        ((("a/(bias", 1.0),), "is not a regular expression: missing"),
    ],
)
def test_an_entry_that_does_nothing_is_refused(entries, message):
    with pytest.raises(BadInput, match=message):
        match_factors(PARAMS, entries, "config.x", 1.0)


def test_gradients_are_clipped_by_their_global_norm():
    # Adam hides a scale, so look at the first moment: b1 = 0.9 of a gradient of global norm 1.
    transform, *_ = build(clip_norm=1.0)
    gradients = jax.tree.map(lambda p: jnp.full_like(p, 5.0), PARAMS)
    state = transform.update(gradients, transform.init(PARAMS), PARAMS)[1]
    moments = jax.tree.leaves(state[1].mu)
    norm = np.sqrt(sum(float(jnp.sum(m**2)) for m in moments))
    np.testing.assert_allclose(norm, 0.1, rtol=1e-5)


def test_the_first_moment_can_be_bfloat16():
    transform, *_ = build(moment_dtype="bfloat16")
    state = transform.init(PARAMS)[1]
    assert {m.dtype for m in jax.tree.leaves(state.mu)} == {jnp.dtype(jnp.bfloat16)}
    assert {v.dtype for v in jax.tree.leaves(state.nu)} == {jnp.dtype(jnp.float32)}


def test_frozen_parameters_have_no_moments_and_do_not_move():
    transform, _, frozen = build(frozen=("a/.*",), weight_decay=0.5)
    own = trained(PARAMS, frozen)
    state = transform.init(own)
    moments = {name for name in flatten(state) if "/mu/" in name or "/nu/" in name}
    assert {name.split("u/")[1] for name in moments} == {"b/kernel"}
    change = transform.update(own, state, own)[0]
    assert frozen == {"a/kernel", "a/bias"} and list(flatten(change)) == ["b/kernel"]
    np.testing.assert_array_equal(change["b"]["kernel"], step(1.0, weight_decay=0.5)["b"]["kernel"])


def test_the_norm_that_is_clipped_leaves_frozen_gradients_out():
    transform, _, frozen = build(frozen=("a/.*",), clip_norm=1.0)
    own = trained(PARAMS, frozen)
    gradients = jax.tree.map(lambda p: jnp.full_like(p, 5.0), own)
    state = flatten(transform.update(gradients, transform.init(own), own)[1])
    (first,) = (moment for name, moment in state.items() if name.endswith("mu/b/kernel"))
    np.testing.assert_allclose(np.linalg.norm(first), 0.1, rtol=1e-5)


def test_what_is_trained_is_put_back_in_its_place():
    part = trained(PARAMS, {"a/kernel"})
    assert list(flatten(part)) == ["a/bias", "b/kernel"]
    whole = flatten(join(jax.tree.map(lambda p: p + 1, part), PARAMS))
    assert {name: float(x.max()) for name, x in whole.items()} == {
        "a/bias": 2,
        "a/kernel": 1,
        "b/kernel": 2,
    }


@pytest.mark.parametrize(
    "lists, added, frozen",
    [
        (dict(trainable=("b/.*",)), (), {"a/kernel", "a/bias"}),
        (dict(), ("model/new",), {"model/old"}),
        (dict(frozen=("a/.*",)), ("model/new",), {"a/kernel", "a/bias"}),
        (dict(trainable=("model/old",)), ("model/new",), {*flatten(PARAMS), "model/new"}),
    ],
)
def test_what_is_trained_is_listed_or_added_to_the_model(lists, added, frozen):
    model = {"new": jnp.ones(1), "old": jnp.ones(1)} if added else {}
    params = PARAMS | ({"model": model} if model else {})
    assert find_frozen(params, lists.get("trainable"), lists.get("frozen", ()), added) == frozen


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(frozen=("c/.*",)), r"config.optimizer: frozen: 'c/\.\*' matches no parameter"),
        (dict(frozen=("a/(bias",)), "is not a regular expression"),
        (dict(frozen=(".*",)), "leaves no parameter to train"),
        (dict(trainable=("a/.*", "c/.*")), r"trainable: 'c/\.\*' matches no parameter"),
        (dict(trainable=("a/.*",), frozen=("b/.*",)), "each says what the other leaves; set one"),
        (
            dict(trainable=("a/bias",), weight_decay=0.1),
            "weight_decay_factors: .* matches no parameter",
        ),
    ],
)
def test_lists_that_cannot_be_are_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        build(**changes)


@pytest.mark.parametrize("name", ["constant", "cosine", "rsqrt"])
def test_warm_up_is_linear_and_reaches_one(name):
    found = [rate(name, s, warmup_steps=10) for s in (0, 4, 9)]
    np.testing.assert_allclose(found, [0.1, 0.5, 1.0], rtol=1e-5)


def test_cosine_is_half_way_at_the_middle_and_ends_at_final():
    np.testing.assert_allclose(rate("cosine", 55, warmup_steps=10, final=0.2), 0.6, rtol=1e-5)
    np.testing.assert_allclose(rate("cosine", 100, warmup_steps=10, final=0.2), 0.2, rtol=1e-5)


def test_rsqrt_halves_after_three_timescales():
    np.testing.assert_allclose(rate("rsqrt", 40, warmup_steps=10, timescale=10), 0.5, rtol=1e-5)


@pytest.mark.parametrize("name", ["constant", "rsqrt"])
def test_cooldown_ends_at_zero(name):
    assert rate(name, 100, cooldown_steps=20) == 0.0
    half = rate(name, 90, cooldown_steps=20) / rate(name, 90)
    np.testing.assert_allclose(half, 0.5, rtol=1e-5)


def test_a_schedule_longer_than_the_run_is_refused():
    with pytest.raises(BadInput, match="do not fit into total_steps=10"):
        registry.build(
            "schedule",
            dict(name="cosine", warmup_steps=8, cooldown_steps=8),
            "config.optimizer.schedule",
            total_steps=10,
        )
