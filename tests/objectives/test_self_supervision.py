import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mm import registry
from mm.config import BadInput
from mm.models.keys import example_keys
from mm.objectives import Views
from mm.objectives.contrastive import nt_xent
from mm.objectives.heads import Projector
from mm.objectives.self_supervision import SimCLR, choose_spans, feature_std
from mm.program import build_program
from mm.sharding.mesh import BATCH_AXES, make_mesh
from mm.sharding.rules import find_rules, use_sharding
from tests.tiny import IMAGE, TEXT, get_config, model

SMALL = dict(hidden=16, out=8, layers=2)


def reference(z, group, scale):
    """NT-Xent by the definition, row by row, and its gradient by z."""
    n, loss, dz = len(z), 0.0, np.zeros_like(z)
    for i in range(n):
        others = [k for k in range(n) if k != i]
        positives = [k for k in others if group[k] == group[i]]
        logits = np.array([scale * z[i] @ z[k] for k in others])
        share = np.exp(logits - logits.max())
        share /= share.sum()
        loss -= sum(np.log(share[others.index(p)]) for p in positives) / len(positives)
        for k, s in zip(others, share, strict=True):
            slope = scale * (s - (k in positives) / len(positives))
            dz[i] += slope * z[k]
            dz[k] += slope * z[i]
    return loss / n, dz / n


def unit(n, e=8, seed=0):
    z = np.random.default_rng(seed).standard_normal((n, e))
    return z / np.linalg.norm(z, axis=1, keepdims=True)


PAIRS = {"pairs": np.arange(16) // 2}
PAIRS["the same twice"] = np.array([0, 0, 1, 1, 0, 0, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6])


@pytest.mark.parametrize("group", PAIRS)
@pytest.mark.parametrize("devices", [1, 8])
def test_nt_xent_and_its_gradient_equal_the_definition(group, devices, monkeypatch):
    monkeypatch.setattr("mm.sharding.ring.BLOCK", 4 if devices == 1 else 1)
    z, group = unit(16), PAIRS[group]
    mesh = make_mesh(dict(fsdp=devices), jax.devices()[:devices])
    split = NamedSharding(mesh, P(BATCH_AXES))
    with jax.enable_x64(True), use_sharding(mesh, find_rules("dp")):
        rows = (jax.device_put(jnp.asarray(x), split) for x in (z, group.astype(np.int32)))
        compute = jax.jit(jax.value_and_grad(nt_xent, has_aux=True))
        (loss, accuracy), dz = compute(*rows, jnp.float64(5.0))
    want, want_dz = reference(z, group, 5.0)
    np.testing.assert_allclose(loss, want, rtol=1e-9)
    np.testing.assert_allclose(dz, want_dz, rtol=1e-7, atol=1e-12)
    products = z @ z.T
    np.fill_diagonal(products, -9)
    hits = group[products.argmax(1)] == group
    np.testing.assert_allclose(accuracy, hits.mean())


def test_a_picture_that_is_there_twice_is_no_negative():
    z = np.repeat(np.eye(4, 8), 4, axis=0)  # four pictures, each in two rows of two views
    scale = jnp.float32(50.0)
    apart, _ = nt_xent(jnp.float32(z), jnp.arange(16, dtype=jnp.int32) // 2, scale)
    known, accuracy = nt_xent(jnp.float32(z), jnp.arange(16, dtype=jnp.int32) // 4, scale)
    np.testing.assert_allclose(known, np.log(3), rtol=1e-4)  # uniform over three positives
    np.testing.assert_allclose(apart, np.log(3), rtol=1e-4)
    gradient = jax.grad(lambda z, g: nt_xent(z, g, scale)[0])
    z = jnp.float32(z) + 0.05 * jnp.float32(unit(16))
    pushed, kept = (gradient(z, jnp.arange(16, dtype=jnp.int32) // k) for k in (2, 4))
    away = lambda g: float((g[0] * z[2]).sum())  # noqa: E731
    assert away(pushed) > 0 > away(kept) and accuracy == 1


def batch(n=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.standard_normal((n, 16, 16, 3)), jnp.float32),
        "image_one": jnp.asarray(rng.standard_normal((n, 16, 16, 3)), jnp.float32),
        "image_two": jnp.asarray(rng.standard_normal((n, 16, 16, 3)), jnp.float32),
        "text": jnp.asarray(rng.integers(3, 64, (n, 8)), jnp.int32),
        "text_mask": jnp.asarray(np.arange(8) < rng.integers(3, 9, (n, 1))),
        "group": jnp.arange(n, dtype=jnp.int32),
        "id": jnp.arange(n, dtype=jnp.uint32),
    }


def objective(a_model=None, **changes):
    given = dict(model=a_model or model(), rngs=nnx.Rngs(1))
    return registry.call(SimCLR, SMALL | changes, "simclr", **given)


def test_the_loss_is_nt_xent_of_the_projected_views():
    a_model = model()
    simclr, rows = objective(a_model, temperature=0.2), batch()
    rows["id"] = rows["id"].at[5].set(0)
    loss = simclr(Views(a_model, rows, None), jax.random.key(0))
    z = []
    for name in ("image_one", "image_two"):
        x = np.asarray(simclr.projector(a_model.encode_image(rows[name]).pooled), np.float64)
        z.append(x / np.linalg.norm(x, axis=1, keepdims=True))
    z, ids = np.concatenate(z), np.tile(np.asarray(rows["id"]), 2)
    np.testing.assert_allclose(loss.value, reference(z, ids, 5.0)[0], rtol=1e-5)
    np.testing.assert_allclose(loss.metrics["feature_std"], np.sqrt(8) * z.std(0).mean(), rtol=1e-4)


def test_feature_std_tells_a_full_sphere_from_a_collapse():
    np.testing.assert_allclose(feature_std(jnp.float32(unit(4000))), 1.0, atol=0.03)
    assert feature_std(jnp.ones((8, 4)) / 2) < 1e-6


@given(st.integers(0, 2**30), st.integers(1, 24), st.floats(0.05, 0.95), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_spans_hide_their_share_and_never_all_nor_what_is_not_free(seed, count, share, marks):
    free = jnp.zeros((3, 24), bool).at[:, marks : marks + count].set(True)
    hidden = choose_spans(example_keys(jax.random.key(seed), 3), free, share)
    number = int(free[0].sum())
    want = min(max(int(np.round(np.float32(share) * number)), 1), number - 1)
    assert not (hidden & ~free).any() and (hidden.sum(1) == want).all()


def test_hidden_tokens_stand_in_spans_as_long_as_spanberts():
    free = jnp.ones((400, 64), bool)
    hidden = np.asarray(choose_spans(example_keys(jax.random.key(0), 400), free, 0.15))
    starts = np.diff(hidden, axis=1, prepend=False) & hidden
    mean = hidden.sum() / starts.sum()  # 3.8 but for the last, which is cut; alone it would be 1.2
    assert 2.6 < mean < 4.2
    assert (hidden.any(0)).all()  # wherever


def test_one_span_is_one_run():
    free = jnp.ones((200, 24), bool)
    keys = example_keys(jax.random.key(0), 200)
    hidden = np.asarray(choose_spans(keys, free, 2 / 24, stop=1e-6, longest=2))
    assert ((np.diff(hidden, axis=1, prepend=False) & hidden).sum(1) == 1).mean() > 0.9


def test_spans_of_a_row_depend_on_no_neighbour_and_differ_between_rows():
    keys, free = example_keys(jax.random.key(0), 8), jnp.ones((8, 24), bool)
    whole = choose_spans(keys, free, 0.3)
    np.testing.assert_array_equal(choose_spans(keys[3:5], free[3:5], 0.3), whole[3:5])
    assert len(np.unique(whole, axis=0)) == 8


def test_text_views_hide_other_words_of_the_same_text_and_no_special_one():
    a_model, rows = model(), batch()
    simclr = objective(a_model, tower="text", spans=0.5, special=(5,))
    rows["text"] = rows["text"].at[:, 1].set(5)
    views = Views(a_model, rows, example_keys(jax.random.key(0), 8))
    simclr.key = "words"
    simclr(views, jax.random.key(0))
    one, two = (views.batch[f"text_words_{name}_mask"] for name in ("one", "two"))
    np.testing.assert_array_equal(views.batch["text_words_one"], rows["text"])
    assert not (one & ~rows["text_mask"]).any() and not (two & ~rows["text_mask"]).any()
    assert one[:, 1].all() and two[:, 1].all() and (one != two).any(1).sum() > 4
    assert (one.sum(1) < rows["text_mask"].sum(1)).all() and one.any(1).all()


def test_the_last_word_that_is_seen_is_pooled():
    a_model = model(text=dict(TEXT, pool="last"))
    text = jnp.arange(8)[None] + 3
    mask = jnp.array([[True, False, True, True, False, False, False, False]])
    encoded = a_model.encode_text(text, mask=mask)
    np.testing.assert_array_equal(encoded.pooled, encoded.tokens[:, 3])


def overfit(simclr, a_model, rows, steps=60, rate=3e-3):
    """Metrics of the last of some steps of Adam on the same rows."""
    graphdef, params = nnx.split((a_model, simclr), nnx.Param)
    adam = optax.adam(rate)

    def loss(params, key):
        a_model, simclr = nnx.merge(graphdef, params)
        found = simclr(Views(a_model, rows, example_keys(key, len(rows["id"]))), key)
        return found.value, found.metrics

    @jax.jit
    def step(carry, key):
        params, state = carry
        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params, key)
        updates, state = adam.update(gradient, state)
        return (optax.apply_updates(params, updates), state), metrics | {"loss": value}

    keys = jax.random.split(jax.random.key(0), steps)
    carry, metrics = jax.jit(lambda c: jax.lax.scan(step, c, keys))((params, adam.init(params)))
    return jax.tree.map(lambda x: float(x[-1]), metrics)


def test_32_pictures_find_their_other_view():
    rows, noise = batch(32), batch(32, seed=1)
    for name in ("one", "two"):
        rows[f"image_{name}"] = rows["image"] + 0.1 * noise[f"image_{name}"]
    a_model = model(text=None, image=dict(IMAGE, pool="mean"))
    found = overfit(objective(a_model), a_model, rows)
    assert found["accuracy"] == 1 and found["feature_std"] > 0.7 and found["loss"] < 0.3


def test_32_texts_find_their_other_half():
    rows = batch(32)
    a_model = model(image=None, text=dict(TEXT, pool="mean"))
    found = overfit(objective(a_model, tower="text", spans=0.3), a_model, rows, steps=150)
    assert found["accuracy"] > 0.95 and found["feature_std"] > 0.7


@pytest.mark.slow
def test_the_losses_of_a_program_are_the_same_on_one_device_and_on_eight():
    config, found = get_config(), []
    config.objectives = dict(
        pictures=dict(name="simclr", **SMALL),
        words=dict(name="simclr", tower="text", spans=0.3, same="group", **SMALL),
    )
    for devices in (1, 8):
        program = build_program(config, jax.devices()[:devices])
        assert {"image_one", "image_two", "group"} <= program.batch_spec.keys()
        assert "text_one" not in program.batch_spec
        rows = {name: batch(16)[name] for name in program.batch_spec}
        metrics = program.losses(program.init(0), jax.device_put(rows, program.batch_sharding))
        assert {"pictures/accuracy", "words/feature_std"} <= metrics.keys()
        found.append(jax.tree.map(float, metrics))
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=2e-5, err_msg=name)


@pytest.mark.parametrize("tower, names", [("image", {"image"}), ("text", {"text", "text_mask"})])
def test_a_view_may_be_the_clean_one(tower, names):
    a_model = model()
    an_objective = objective(a_model, tower=tower, views=("clean", "two"))
    read = {read.name for read in an_objective.reads}
    assert names <= read and not any("clean" in name for name in read)
    rows = batch(4) | {"text_two": batch(4, 1)["text"], "text_two_mask": batch(4, 1)["text_mask"]}
    rows = {name: x for name, x in rows.items() if name in {*read, "id"}}
    views = Views(a_model, rows, example_keys(jax.random.key(0), 4))
    assert jnp.isfinite(an_objective(views, jax.random.key(0)).value)


def test_a_projector_has_so_many_layers():
    projector = Projector(4, 6, 3, layers=3, rngs=nnx.Rngs(0))
    assert [layer.kernel.shape for layer in projector.layers] == [(4, 6), (6, 6), (6, 3)]
    assert projector(jnp.ones((2, 4))).shape == (2, 3)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(views=("one", "one")), "expected the names of two views"),
        (dict(spans=0.3), "are of tower='text'"),
        (dict(temperature=0.0), "expected above 0"),
        (dict(tower="text", spans=1.0), "spans=1.0"),
        (dict(tower="text", a_model=model(text=None)), "needs config.model.text"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        objective(**changes)
