import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mm.config import BadInput
from mm.models.encoder import Encoded
from mm.models.inputs import batch_spec
from mm.models.memory import append, nearest
from mm.objectives import Views
from mm.program import build_program
from mm.sharding.mesh import make_mesh
from mm.sharding.rules import find_rules, use_sharding
from tests.tiny import TOWER, get_config, model

CROSS = dict(name="cross", **TOWER)
ENTITIES = dict(count=10, max=3)


def unit(n, e=16, seed=0):
    z = np.random.default_rng(seed).standard_normal((n, e)).astype(np.float32)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


@pytest.fixture
def memory(tmp_path):
    """A memory of 20 entries of other lengths than 1; entry i is of example i // 2."""
    np.save(tmp_path / "z.npy", 3 * unit(20))
    np.save(tmp_path / "ids.npy", np.arange(20) // 2)
    return dict(path=str(tmp_path / "z.npy"), ids=str(tmp_path / "ids.npy"), neighbours=3)


def batch(n=4, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.standard_normal((n, 16, 16, 3)), jnp.float32),
        "text": jnp.asarray(rng.integers(3, 64, (n, 8)), jnp.int32),
        "text_mask": jnp.asarray(np.arange(8) < rng.integers(2, 9, (n, 1))),
        "group": jnp.arange(n, dtype=jnp.int32),
        "id": jnp.arange(n, dtype=jnp.uint32),
        "entities": jnp.asarray(rng.integers(-1, 10, (n, 3)), jnp.int32),
    }


@given(st.integers(1, 5), st.integers(1, 30), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_neighbours_are_those_of_argsort_in_chunks_of_any_size(count, chunk, seed):
    z, query = unit(23, seed=seed), unit(6, seed=seed + 1)
    ids, own = np.arange(23) % 9, np.arange(6)
    found, real = nearest(
        *map(jnp.asarray, (query, own.astype(np.uint32), z, ids.astype(np.uint32))),
        count=count, chunk=chunk,
    )  # fmt: skip
    scores = np.where(ids[None] == own[:, None], -9, query @ z.T)
    want = z[np.argsort(-scores, axis=1)[:, :count]]
    np.testing.assert_array_equal(found, want)
    assert real.all()


def test_a_row_never_gets_its_own_entry():
    z = unit(6)
    query, ids = jnp.asarray(z), jnp.arange(6, dtype=jnp.uint32)
    how = dict(count=1, chunk=4)
    free, _ = nearest(query, None, query, None, **how)
    np.testing.assert_array_equal(free[:, 0], z)
    other, real = nearest(query, ids, query, ids, **how)
    assert real.all() and not (other[:, 0] == z).all(1).any()
    _, real = nearest(query, ids * 0, query, ids * 0, **how)
    assert not real.any()


def test_devices_find_for_their_rows_what_one_finds():
    z, query, own = unit(23), jnp.asarray(unit(16, seed=1)), jnp.arange(16, dtype=jnp.uint32)
    how = dict(count=3, chunk=8)
    rest = own, jnp.asarray(z), jnp.arange(23, dtype=jnp.uint32) // 2
    want = nearest(query, *rest, **how)
    with use_sharding(make_mesh(dict(replica=2, fsdp=2, tensor=2)), find_rules("dp")):
        found = jax.jit(lambda *arrays: nearest(*arrays, **how))(query, *rest)
    jax.tree.map(np.testing.assert_array_equal, found, want)


def test_only_a_chunk_of_scores_is_held():
    shapes = [(64, 8), (64,), (4096, 8), (4096,)]
    kinds = [jnp.float32, jnp.uint32] * 2
    arguments = [jax.ShapeDtypeStruct(s, k) for s, k in zip(shapes, kinds, strict=True)]

    def compiled(chunk):
        run = jax.jit(lambda *arrays: nearest(*arrays, count=2, chunk=chunk))
        return run.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    assert compiled(64) < 4 * 64 * 4096 / 4 < compiled(4096)


def test_a_memory_is_read_at_unit_length_and_is_no_parameter(memory):
    a_model = model(fusion=CROSS, memory=memory)
    np.testing.assert_allclose(a_model.memory.embeddings[...], unit(20), rtol=1e-5)
    paths = ["/".join(map(str, p)) for p, _ in nnx.state(a_model, nnx.Param).flat_state()]
    assert "memory/project/kernel" in paths and "memory/embeddings" not in paths


@pytest.mark.parametrize("query", ["image", "text"])
def test_the_fusion_reads_the_neighbours_of_the_embedding(memory, query):
    a_model = model(fusion=CROSS, memory=memory | dict(query=query))
    rows, views = batch(), None
    views = Views(a_model, rows, None)
    z = np.float64(getattr(views, f"{query}_embedding")().z)
    scores = z @ unit(20).T
    scores = np.where(np.arange(20)[None] // 2 == np.arange(4)[:, None], -9, scores)
    want = unit(20)[np.argsort(-scores, axis=1)[:, :3]] @ np.asarray(
        a_model.memory.project.kernel[...]
    )
    encoded = getattr(views, query)()
    extended = a_model.extend(query, encoded, rows)
    np.testing.assert_allclose(extended.tokens[:, -3:], want, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(extended.tokens[:, :-3], encoded.tokens)
    assert extended.mask[:, -3:].all()
    other = "text" if query == "image" else "image"
    assert a_model.extend(other, getattr(views, other)(), rows) is getattr(views, other)()


def test_extra_tokens_are_cut_off_behind_the_fusion(memory):
    for queries in ("text", "image"):
        fusion = dict(CROSS, queries=queries)
        a_model = model(fusion=fusion, memory=memory, entities=ENTITIES)
        fused = Views(a_model, batch(), None).fuse()
        assert getattr(fused, queries).shape == (4, 8 if queries == "text" else 4, 16)


def test_what_the_fusion_returns_depends_on_the_neighbours(memory):
    a_model = model(fusion=CROSS, memory=memory)
    before = Views(a_model, batch(), None).fuse().text
    a_model.memory.embeddings[...] = jnp.asarray(unit(20, seed=5))
    assert np.abs(Views(a_model, batch(), None).fuse().text - before).max(axis=(1, 2)).min() > 1e-4


def test_rows_that_find_nothing_fuse_as_without_a_memory(memory):
    plain, a_model = model(fusion=CROSS), model(fusion=CROSS, memory=memory)
    a_model.memory.ids[...] = jnp.zeros(20, jnp.uint32)
    rows = batch() | {"id": jnp.array([0, 0, 1, 1], jnp.uint32)}
    want, got = (Views(m, rows, None).fuse().text for m in (plain, a_model))
    np.testing.assert_allclose(got[:2], want[:2], rtol=1e-5, atol=1e-6)
    assert np.abs(got[2:] - want[2:]).max() > 1e-4


def test_neighbours_go_with_the_picture_that_is_picked(memory):
    a_model, rows = model(fusion=CROSS, memory=memory, entities=ENTITIES), batch()
    turned = jnp.array([1, 2, 3, 0])
    got = Views(a_model, rows, None).fuse_others(turned[::-1], turned)[2].text
    text = ("text", "text_mask", "entities")
    rows = {name: x if name in text else x[turned] for name, x in rows.items()}
    np.testing.assert_allclose(got, Views(a_model, rows, None).fuse().text, rtol=1e-5, atol=1e-6)


def test_a_memory_gives_the_embedding_no_gradient(memory):
    a_model = model(fusion=CROSS, memory=memory)

    def loss(z):
        tokens, _ = a_model.memory(lambda: z, {"id": jnp.arange(4, dtype=jnp.uint32)})
        return jnp.sum(tokens**3)

    np.testing.assert_array_equal(jax.grad(loss)(jnp.asarray(unit(4))), jnp.zeros((4, 16)))


def test_entities_follow_the_text_and_minus_one_is_none():
    a_model, rows = model(fusion=CROSS, entities=ENTITIES), batch()
    rows["entities"] = jnp.array([[4, -1, 2], [-1, -1, -1], [0, 1, 9], [4, 4, -1]], jnp.int32)
    views = Views(a_model, rows, None)
    extended = a_model.extend("text", views.text(), rows)
    np.testing.assert_array_equal(extended.mask[:, :8], rows["text_mask"])
    np.testing.assert_array_equal(extended.mask[:, 8:], rows["entities"] >= 0)
    table = a_model.entities.table[...]
    np.testing.assert_array_equal(extended.tokens[0, 8], table[4])
    plain = Views(model(fusion=CROSS), rows, None).fuse()
    np.testing.assert_allclose(views.fuse().text[1], plain.text[1], rtol=1e-5, atol=1e-6)
    assert np.abs(views.fuse().text[0] - plain.text[0]).max() > 1e-4
    assert batch_spec(a_model.reads, 4)["entities"].shape == (4, 3)


def test_levels_get_the_extra_tokens_too():
    x = jnp.ones((2, 5, 4))
    encoded = append(
        Encoded(x, x[:, 0], None, levels=(x, x)), jnp.zeros((2, 3, 4)), jnp.zeros((2, 3), bool)
    )
    assert [level.shape for level in encoded.levels] == [(2, 8, 4)] * 2
    assert encoded.mask[:, :5].all() and not encoded.mask[:, 5:].any()


@pytest.mark.parametrize("extra", ["memory", "entities"])
def test_32_labels_that_only_the_extra_tokens_tell_are_learned(memory, tmp_path, extra):
    """Texts are all the same, and so are pictures but for the memory: what is found tells."""
    n, rows = 32, batch(32)
    if extra == "memory":
        np.save(tmp_path / "z.npy", unit(n))
        spec = dict(memory=dict(path=str(tmp_path / "z.npy"), ids=None, neighbours=1))
    else:
        rows["image"], spec = rows["image"] * 0, dict(entities=dict(count=n, max=1))
        rows["entities"] = jnp.arange(n, dtype=jnp.int32)[:, None]
    rows["text"], rows["text_mask"] = rows["text"] * 0 + 3, jnp.ones((n, 8), bool)
    a_model = model(fusion=CROSS, **spec)
    label = jnp.arange(n) % 4
    if extra == "memory":  # each picture is its own entry's query
        a_model.memory.embeddings[...] = Views(a_model, rows, None).image_embedding().z
    graphdef, params, rest = nnx.split(a_model, nnx.Param, ...)
    head = 0.1 * jax.random.normal(jax.random.key(0), (16, 4))

    def loss(params):
        params, head = params
        fused = Views(nnx.merge(graphdef, params, rest), rows, None).fuse()
        logits = fused.pooled @ head
        found = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
        return found, (logits.argmax(1) == label).mean()

    adam, start = optax.adam(1e-2), (params, head)

    def step(carry, _):
        params, state = carry
        (_, accuracy), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = adam.update(gradient, state)
        return (optax.apply_updates(params, updates), state), accuracy

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=100))
    _, accuracy = run((start, adam.init(start)))
    assert accuracy[0] < 0.6 and accuracy[-1] == 1


@pytest.mark.slow
def test_a_program_takes_a_step_with_the_memory_in_its_state(memory):
    config, found = get_config(), []
    config.model.update(fusion=CROSS, memory=memory, entities=ENTITIES)
    config.model.image.depth = config.model.text.depth = 1
    config.objectives = dict(matching=dict(name="matching"))
    for devices in (1, 8):
        program = build_program(config, jax.devices()[:devices])
        assert program.batch_spec["entities"].shape == (16, 3)
        rows = jax.device_put(batch(16), program.batch_sharding)
        state, metrics = program.train_step(program.init(0), rows)
        found.append([float(metrics[name]) for name in ("loss", "gradient_norm")])
        held = state.extras["buffers"]["model"]["memory"]
        np.testing.assert_allclose(held["embeddings"], unit(20), rtol=1e-5)
        np.testing.assert_array_equal(held["ids"], np.arange(20) // 2)
    np.testing.assert_allclose(*found, rtol=2e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(fusion=None), "config.model.memory: needs config.model.fusion"),
        (dict(memory=dict(neighbours=21)), "neighbours=21.*at most the 20 entries"),
        (dict(memory=dict(path="nix.npy")), "path='nix.npy': is no .npy file"),
        (dict(embed_dim=8), r"has shape \[20, 16\], expected \[n, 8\]"),
        (dict(memory=dict(query="text"), fusion=dict(CROSS, causal=True)), "use causal=False"),
        (dict(memory=dict(query="text"), fusion=dict(CROSS, pool="last")), "another pool"),
        (dict(entities=dict(count=0, max=1)), "count=0"),
    ],
)
def test_what_cannot_work_is_refused(memory, changes, message):
    spec = dict(fusion=CROSS, memory=memory) | changes
    spec["memory"] = memory | changes.get("memory", {})
    with pytest.raises(BadInput, match=message):
        model(**spec)
