import collections
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm.config import BadInput, override
from mm.optim.paths import flatten
from mm.program import build_program, check_batch
from mm.steps import Steps, hash_ids
from tests.tiny import get_config

MESHES = {
    "dp": ("dp", dict(fsdp=8)),
    "fsdp": ("fsdp", dict(fsdp=8)),
    "replica x fsdp": ("fsdp", dict(replica=2, fsdp=4)),
    "hsdp": ("hsdp", dict(replica=2, fsdp=4)),
    "fsdp x tensor": ("fsdp_tp", dict(fsdp=4, tensor=2)),
}


def program(rules="dp", mesh=None, devices=None, width=64, frozen=(), **overrides):
    """Wide enough that fsdp and tensor really split something; unlike its moments nothing is."""
    config = get_config()
    config.sharding = dict(mesh=mesh or dict(fsdp=-1), rules=rules)
    for tower in ("image", "text"):
        config.model[tower].update(width=width, num_heads=4)
    config.optimizer.frozen = frozen
    override(config, [(key.replace("__", "."), str(value)) for key, value in overrides.items()])
    return build_program(config, devices)


def batch(a_program, seed=0):
    rng = np.random.default_rng(seed)
    size = a_program.recipe.global_batch_size
    values = {
        "image": rng.standard_normal(a_program.batch_spec["image"].shape).astype(np.float32),
        "text": rng.integers(1, 64, (size, 8)).astype(np.int32),
        "text_mask": np.arange(8) < rng.integers(1, 9, (size, 1)),
        "group": np.minimum(np.arange(size), size - 3).astype(np.int32),  # the last three are one
        "id": np.arange(size, dtype=np.uint32),
    }
    return jax.device_put(values, a_program.batch_sharding)


def error(a, b):
    """||a - b|| in units of what is allowed: 1e-5 of ||b||, or 2e-7 where b is zero but for
    rounding, as the gradient of a key's bias."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / max(1e-5 * np.linalg.norm(b), 2e-7)


@pytest.fixture(scope="module")
def alone():
    """On one device, dropout and token dropping on."""
    return program(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def one_device(alone):
    """Loss and gradients on one device."""
    (loss, _), gradients = alone.gradients(alone.init(0), batch(alone))
    return float(loss), jax.device_get(gradients)


@pytest.mark.parametrize("layout", MESHES)
def test_loss_and_every_gradient_agree_with_one_device(layout, one_device):
    rules, mesh = MESHES[layout]
    sharded = program(rules, mesh)
    (loss, _), gradients = sharded.gradients(sharded.init(0), batch(sharded))
    assert error(loss, one_device[0]) < 1
    want = flatten(one_device[1])
    errors = {name: error(g, want[name]) for name, g in flatten(gradients).items()}
    assert max(errors.values()) < 1, max(errors.items(), key=lambda item: item[1])


@pytest.mark.parametrize("layout", MESHES)
def test_moments_are_split_like_their_parameters(layout):
    rules, mesh = MESHES[layout]
    state = program(rules, mesh).state
    params = flatten(state.params)
    for name, moment in flatten(state.opt_state).items():
        mirrored = [p for p in params if name.endswith(f"/{p}")]
        for path in mirrored:
            assert moment.sharding == params[path].sharding
        assert mirrored or moment.shape == ()
    split = [p for p in params.values() if any(p.sharding.spec)]
    assert bool(split) == (rules != "dp")


@pytest.mark.parametrize("layout", MESHES)
def test_gradients_inside_of_a_step_are_split_like_their_parameters(layout):
    a_program = program(*MESHES[layout])
    batch_of = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in a_program.batch_spec.items()}
    jaxpr = jax.make_jaxpr(a_program.train_step)(a_program.state, batch_of)
    (step,) = jaxpr.eqns  # of jit
    found = collections.Counter(
        (eqn.outvars[0].aval.shape, eqn.params["sharding"].spec)
        for eqn in step.params["jaxpr"].eqns
        if eqn.primitive.name == "sharding_constraint"
    )
    leaves = jax.tree.leaves(a_program.state.params)
    assert collections.Counter((leaf.shape, leaf.sharding.spec) for leaf in leaves) <= found


FROZEN = ("model/image/.*", "model/image_projection/.*")


def test_frozen_parameters_stay_and_have_no_moments():
    frozen = program(*MESHES["fsdp x tensor"], frozen=FROZEN)
    state, data = frozen.init(0), batch(frozen)
    before = jax.device_get(state.params)
    for _ in range(2):
        state, metrics = frozen.train_step(state, data)
    assert float(metrics["gradient_norm"]) > 0
    after, before = flatten(jax.device_get(state.params)), flatten(before)
    same = {name for name in before if np.array_equal(before[name], after[name])}
    locked = {name for name in before if name.startswith("model/image")}
    assert same == locked == frozen.frozen
    assert not [name for name in flatten(state.opt_state) if "model/image" in name]
    assert any("mu/model/text" in name for name in flatten(state.opt_state))
    for name, moment in flatten(frozen.state.opt_state).items():
        for path, leaf in flatten(frozen.state.params).items():
            assert not name.endswith(f"u/{path}") or moment.sharding == leaf.sharding


def test_nothing_is_computed_for_the_gradients_of_frozen_parameters():
    def flops(**changes):
        one = program(devices=jax.devices()[:1], **changes)
        return one.gradients.lower(one.state, one.batch_spec).cost_analysis()["flops"]

    # The text tower has no blocks, and of a matmul two thirds are the backward pass.
    assert flops(model__text__depth=0, frozen=FROZEN) < 0.45 * flops(model__text__depth=0)


def test_a_function_of_the_system_is_jitted_once(alone):
    def pool(_, views):
        return views.image().pooled

    assert alone.apply(pool) is alone.apply(pool)


def test_steps_lower_the_loss_of_their_batch(alone):
    state, data = alone.init(0), batch(alone)
    losses = []
    for _ in range(8):
        state, metrics = alone.train_step(state, data)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] and int(state.step) == 8


def test_all_seeds_share_one_program_and_draw_each_their_own():
    """So the persistent compilation cache serves all seeds of an ablation."""
    first, second = (program(devices=jax.devices()[:1], seed=seed) for seed in (0, 1))
    state, data = first.init(0), batch(first)
    for name in ("train_step", "gradients", "losses", "compare"):
        texts = [
            getattr(one, name).lower(one.state, one.batch_spec).as_text() for one in (first, second)
        ]
        assert texts[0] == texts[1], name
    found = [float(one.gradients(state, data)[0][0]) for one in (first, second)]
    assert found[0] != found[1]


def test_a_step_is_traced_once(monkeypatch):
    """By the check before anything is opened, for all steps of the run."""
    traced = []
    step = Steps.train_step

    def count(*arguments):
        traced.append(arguments)
        return step(*arguments)

    monkeypatch.setattr(Steps, "train_step", count)
    a_program = program()
    jax.eval_shape(a_program.train_step, a_program.state, a_program.batch_spec)
    zeros = {name: np.zeros(x.shape, x.dtype) for name, x in a_program.batch_spec.items()}
    a_program.train_step.trace(a_program.init(0), jax.device_put(zeros, a_program.batch_sharding))
    assert len(traced) == 1


def test_the_randomness_is_keyed_by_the_step(alone):
    state, data = alone.init(0), batch(alone)
    first, again, later = (
        float(alone.gradients(state._replace(step=jnp.int32(step)), data)[0][0])
        for step in (0, 0, 1)
    )
    assert first == again and first != later


def test_the_randomness_is_keyed_by_the_seed(alone):
    other = program(devices=jax.devices()[:1], seed=1)
    state, data = alone.init(0), batch(alone)
    assert alone.gradients(state, data)[0][0] != other.gradients(state, data)[0][0]


def test_embeddings_are_normalized_and_need_no_key(alone):
    state = alone.init(0)
    first, second = (alone.embed(state, batch(alone)) for _ in range(2))
    for z, again in zip(first, second, strict=True):
        np.testing.assert_allclose(np.linalg.norm(z, axis=-1), 1.0, rtol=1e-5)
        assert (z == again).all()


def test_evaluations_are_of_the_average_where_that_is_asked_for(alone):
    teacher = dict(name="average", decay=0.75, evaluate=True)
    averaging, data = program(devices=jax.devices()[:1], teacher=teacher), batch(alone)
    before = jax.device_get(averaging.init(0).params)
    state, _ = averaging.train_step(averaging.init(0), data)
    mean = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, before, jax.device_get(state.params))
    want = alone.embed(alone.init(0)._replace(params=mean), data)
    for found, z in zip(averaging.embed(state, data), want, strict=True):
        np.testing.assert_allclose(found, z, atol=1e-6)


def test_init_does_not_depend_on_the_mesh(alone):
    split = program("fsdp_tp", dict(fsdp=-1, tensor=2))
    jax.tree.map(np.testing.assert_array_equal, alone.init(0).params, split.init(0).params)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("global_batch_size", 12, r"global_batch_size=12: must be a positive multiple of 8"),
        ("model.image.num_heads", 3, r"config\.model\.image: width=64 .* num_heads=3"),
        ("sharding.rules", "fsdpp", "did you mean 'fsdp'"),
        ("objectives.contrastive.kind", "sigmoyd", "did you mean 'sigmoid'"),
        ("objectives.contrastive.name", "contrastiv", "did you mean 'contrastive'"),
        ("optimizer.schedule.warmup_steps", 100, r"config\.optimizer\.schedule: warmup_steps=100"),
        ("total_steps", -1, "total_steps=-1: must be at least 0"),
    ],
)
def test_values_that_cannot_work_are_refused(key, value, message):
    with pytest.raises(BadInput, match=message):
        program(**{key.replace(".", "__"): value})


def test_an_unknown_key_in_a_recipe_is_refused():
    config = get_config()
    config.optimiser = {}
    with pytest.raises(BadInput, match="unknown key 'optimiser'; did you mean 'optimizer'"):
        build_program(config)


def test_an_empty_set_of_objectives_is_refused():
    config = get_config()
    config.objectives = {}
    with pytest.raises(BadInput, match="config.objectives: is empty"):
        build_program(config)


def test_a_batch_of_the_wrong_shape_says_which_and_what_to_do(alone):
    wrong = {**alone.batch_spec, "image": jax.ShapeDtypeStruct((16, 32, 32, 3), jnp.float32)}
    with pytest.raises(BadInput, match=r"makes image float32\[16, 32, 32, 3\], the model reads"):
        check_batch(alone, wrong)
    with pytest.raises(BadInput, match="makes no 'text'"):
        check_batch(alone, {k: v for k, v in alone.batch_spec.items() if k != "text"})


def test_uint8_images_are_read_as_minus_one_to_one(alone):
    values = batch(alone)
    shape = alone.batch_spec["image"].shape
    values["image"] = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    state = alone.init(0)
    found = alone.embed(state, values)[0]
    values["image"] = (values["image"] / 127.5 - 1).astype(np.float32)
    np.testing.assert_allclose(found, alone.embed(state, values)[0], atol=1e-5)


def test_the_batch_hash_sees_ids_and_their_order():
    ids = jnp.arange(16, dtype=jnp.uint32)
    assert hash_ids(ids) == hash_ids(ids)
    assert hash_ids(ids) != hash_ids(ids[::-1])
    assert hash_ids(ids) != hash_ids(ids + 1)


def test_this_machine_computes_right():
    """The CPU backend of jaxlib 0.10 miscomputes with its YNN fusions on (jax issue 39103)."""
    rng = np.random.default_rng(0)
    shapes = ((64, 192), (192, 768), (768, 192))
    x, w, v = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)

    @jax.jit
    def two_layers(x, w, v):
        hidden = x @ w
        return jax.nn.relu(hidden) @ v, jnp.sum(jnp.square(hidden), -1)

    hidden = x.astype(np.float64) @ w
    output, squares = two_layers(x, w, v)
    assert error(output, np.maximum(hidden, 0) @ v) < 1
    assert error(squares, (hidden**2).sum(-1)) < 1


def test_the_fusions_that_miscompute_are_off():
    assert "--xla_cpu_experimental_ynn_fusion_type=" in os.environ["XLA_FLAGS"].split()
