"""Soft sharing by an objective, and hard sharing by the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm.config import BadInput
from mm.objectives import Views
from mm.objectives.tied import Tied
from mm.optim.paths import flatten
from mm.program import build_program
from mm.runtime.checkpoint import Checkpointer
from tests.tiny import TEXT, get_config, model

BLOCKS = dict(one="image/encoder/blocks", other="text/encoder/blocks")


def tied(a_model, **paths):
    return Tied(**(BLOCKS | paths), model=a_model, rngs=nnx.Rngs(0))


def loss_of(a_model, **paths):
    return tied(a_model, **paths)(Views(a_model, {}, None), jax.random.key(0))


def blocks(a_model, tower):
    state = nnx.state(getattr(a_model, tower).encoder.blocks, nnx.Param)
    return jax.tree.map(np.float64, jax.tree.leaves(nnx.to_pure_dict(state)))


def test_the_distance_is_that_of_all_parameters():
    a_model = model()
    found = loss_of(a_model)
    a, b = (np.concatenate([x.ravel() for x in blocks(a_model, t)]) for t in ("image", "text"))
    np.testing.assert_allclose(found.value, ((a - b) ** 2).sum(), rtol=1e-5)
    np.testing.assert_allclose(found.metrics["distance"], np.linalg.norm(a - b), rtol=1e-5)
    share = np.linalg.norm(a - b) / np.sqrt((a**2).sum() + (b**2).sum())
    np.testing.assert_allclose(found.metrics["relative_distance"], share, rtol=1e-5)


def test_equal_parts_have_no_distance():
    a_model = model()
    nnx.update(a_model.text.encoder.blocks, nnx.state(a_model.image.encoder.blocks))
    assert loss_of(a_model).value == 0 and loss_of(a_model).metrics["relative_distance"] == 0


def test_the_gradient_pulls_both_together_and_touches_nothing_else():
    a_model = model()
    graphdef, params = nnx.split(a_model, nnx.Param)

    def loss(params):
        return loss_of(nnx.merge(graphdef, params)).value

    gradient = jax.grad(loss)(params)
    moved = jax.tree.map(lambda x, g: x - 0.25 * g, params, gradient)  # half the way of each
    assert loss(params) > 1 and loss(moved) < 1e-8
    for path, g in flatten(nnx.to_pure_dict(gradient)).items():
        assert "encoder/blocks" in path or not g.any()


def test_one_parameter_may_be_named():
    a_model, path = model(), "encoder/blocks/mlp/up/kernel"
    found = loss_of(a_model, one=f"image/{path}", other=f"text/{path}")
    kernels = [
        np.float64(t.encoder.blocks.mlp.up.kernel[...]) for t in (a_model.image, a_model.text)
    ]
    np.testing.assert_allclose(found.value, ((kernels[0] - kernels[1]) ** 2).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    "paths, message",
    [
        (dict(other="text/encoder/block"), "'text/encoder/block': the model has no parameters"),
        (dict(other=BLOCKS["one"]), "one and other are both"),
        (dict(one="image/encoder", other="text/encoder/blocks"), "differ at"),
        (dict(one="image_projection", other="image/stem"), r"differ at .*None and \("),
    ],
)
def test_parts_that_are_no_pair_are_refused(paths, message):
    with pytest.raises(BadInput, match=message):
        tied(model(), **paths)


def test_parts_of_other_shapes_are_refused():
    with pytest.raises(BadInput, match=r"differ at .*\(1, 64, 16\) and \(1, 32, 16\)"):
        tied(
            model(text=dict(TEXT, mlp_dim=32)),
            one=BLOCKS["one"] + "/mlp",
            other=BLOCKS["other"] + "/mlp",
        )


def test_a_shared_part_is_one_set_of_parameters():
    apart, whole, inner = model(), model(share="encoder"), model(share="encoder/blocks")

    def paths(a_model):
        return set(flatten(nnx.to_pure_dict(nnx.state(a_model, nnx.Param))))

    of_text = {p for p in paths(apart) if p.startswith("text/encoder/")}
    assert paths(whole) == paths(apart) - of_text
    assert paths(inner) == paths(whole) | {p for p in of_text if "final_norm" in p}
    assert whole.text.encoder is whole.image.encoder
    with pytest.raises(BadInput, match="no parameters of its own"):
        tied(whole)


def test_gradients_of_both_towers_add_up_in_the_shared_part():
    a_model = model(share="encoder")
    graphdef, params = nnx.split(a_model, nnx.Param)
    image = jnp.asarray(np.random.default_rng(0).standard_normal((2, 16, 16, 3)), jnp.float32)
    text, mask = jnp.ones((2, 8), jnp.int32), jnp.ones((2, 8), bool)

    def loss(params, image_weight, text_weight):
        a_model = nnx.merge(graphdef, params)
        seen = a_model.encode_image(image).pooled, a_model.encode_text(text, mask=mask).pooled
        return image_weight * (seen[0] ** 3).sum() + text_weight * (seen[1] ** 3).sum()

    def blocks(*weights):
        return nnx.to_pure_dict(jax.grad(loss)(params, *weights))["image"]["encoder"]["blocks"]

    def check(both, one, other):
        np.testing.assert_allclose(both, one + other, rtol=1e-4, atol=1e-5)

    both, one, other = blocks(1.0, 1.0), blocks(1.0, 0.0), blocks(0.0, 1.0)
    jax.tree.map(check, both, one, other)
    kernel = lambda tree: np.abs(tree["mlp"]["up"]["kernel"]).max()  # noqa: E731
    assert kernel(one) > 1e-3 and kernel(other) > 1e-3


@pytest.mark.parametrize(
    "share, text, message",
    [
        ("encodr", {}, "is no part of both towers"),
        ("encoder/blocks/causal", {}, "is no part of both towers"),
        ("encoder", dict(depth=2), "needs towers of one width"),
        ("encoder", dict(causal=True), "neither causal"),
        ("encoder", dict(num_heads=4), "make their specs alike"),
    ],
)
def test_towers_that_cannot_share_are_refused(share, text, message):
    with pytest.raises(BadInput, match=message):
        model(share=share, text=TEXT | text)


def rows(program):
    rng, size = np.random.default_rng(0), program.recipe.global_batch_size
    values = {
        "image": rng.standard_normal((size, 16, 16, 3)).astype(np.float32),
        "text": rng.integers(1, 64, (size, 8)).astype(np.int32),
        "text_mask": np.ones((size, 8), bool),
        "group": np.arange(size, dtype=np.int32),
        "id": np.arange(size, dtype=np.uint32),
    }
    return jax.device_put(values, program.batch_sharding)


@pytest.mark.slow
def test_a_program_trains_saves_and_restores_a_shared_encoder(tmp_path):
    config = get_config()
    config.sharding = dict(mesh=dict(fsdp=4, tensor=2), rules="fsdp_tp")
    config.model.share = "encoder"
    program = build_program(config)
    state, data = program.init(0), rows(program)
    assert not [path for path in flatten(state.params) if path.startswith("model/text/encoder")]
    before = np.array(state.params["model"]["image"]["encoder"]["blocks"]["mlp"]["up"]["kernel"])
    losses = []
    for _ in range(3):
        state, metrics = program.train_step(state, data)
        losses.append(float(metrics["loss"]))
    after = np.array(state.params["model"]["image"]["encoder"]["blocks"]["mlp"]["up"]["kernel"])
    assert losses[-1] < losses[0] and not np.array_equal(before, after)
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    checkpointer.save(3, state, {})
    restored, _ = checkpointer.restore(program.state)
    checkpointer.close()
    jax.tree.map(np.testing.assert_array_equal, restored.params, state.params)


def test_an_objective_that_ties_is_minimised_in_a_program():
    config = get_config()
    config.objectives = dict(tied=dict(name="tied", **BLOCKS))
    config.optimizer.update(weight_decay=0.0, learning_rate=3e-2)
    program = build_program(config, jax.devices()[:1])
    data = rows(program)
    state, data = program.init(0), {name: data[name] for name in program.batch_spec}
    distances = []
    for _ in range(8):
        state, metrics = program.train_step(state, data)
        distances.append(float(metrics["tied/relative_distance"]))
    assert distances[0] > 0.5 and distances[-1] < 0.5 * distances[0]
