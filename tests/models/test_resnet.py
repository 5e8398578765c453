from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm.config import BadInput
from mm.models.keys import example_keys
from mm.models.multimodal import Multimodal
from mm.models.resnet import ConvNorm, Residual, ResNet
from mm.optim.paths import flatten, map_paths
from mm.planning.flops import count_flops
from mm.program import build_program
from tests import tiny


def resnet(**changes):
    spec = dict(image_size=40, depth=18, base_width=8, groups=4) | changes
    return ResNet(**spec, rngs=nnx.Rngs(0))


def started(**changes):
    """With every branch in use, as after a few steps."""
    model = resnet(**changes)
    for block in model.blocks:
        block.convs[-1].norm.scale[...] = jnp.ones_like(block.convs[-1].norm.scale[...])
    return model


def images(n=3, size=40, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((n, size, size, 3)), jnp.float32)


@pytest.mark.parametrize("depth, width", [(18, 64), (50, 256)])
def test_a_token_for_each_32_pixels_begun_and_their_mean(depth, width):
    model = resnet(depth=depth)
    encoded = jax.eval_shape(model, images())
    assert encoded.tokens.shape == (3, 4, width) and encoded.pooled.shape == (3, width)
    assert (model.width, model.pooled_width, model.prefix) == (width, width, 0)


def test_pooled_is_the_mean_of_the_tokens():
    encoded = started()(images())
    want = np.asarray(encoded.tokens, np.float64).mean(1)
    np.testing.assert_allclose(encoded.pooled, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "depth, parameters, multiplications",  # of torchvision's models, less those of the classifier
    [
        (18, 11_689_512 - 513_000, 1.814e9 - 512e3),
        (34, 21_797_672 - 513_000, 3.664e9 - 512e3),
        (50, 25_557_032 - 2_049_000, 4.089e9 - 2.048e6),
        (101, 44_549_160 - 2_049_000, 7.801e9 - 2.048e6),
    ],
)
def test_sizes_are_the_published_ones(depth, parameters, multiplications):
    model = nnx.eval_shape(partial(resnet, image_size=224, depth=depth, base_width=64, groups=32))
    graphdef, params = nnx.split(model)
    assert sum(x.size for x in jax.tree.leaves(params)) == parameters
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    traced = jax.make_jaxpr(lambda p, x: nnx.merge(graphdef, p)(x).tokens)(params, image)
    assert count_flops(traced) == pytest.approx(2 * multiplications, rel=1e-3)


def test_a_block_starts_as_the_identity():
    conv = partial(ConvNorm, groups=2, epsilon=1e-5, dtype="float32", rngs=nnx.Rngs(0))
    block = Residual(8, [(4, 1, 1), (4, 3, 1), (8, 1, 1)], conv)
    x = jnp.abs(images(2)[..., :1]) * jnp.arange(1.0, 9.0)
    np.testing.assert_array_equal(block(x), x)


def test_an_example_does_not_depend_on_its_neighbours():
    model, image = started(), images(4)
    np.testing.assert_allclose(
        model(image[1:3]).tokens, model(image).tokens[1:3], rtol=1e-4, atol=1e-5
    )


def test_bfloat16_compute_stays_near_float32():
    exact, rounded = started()(images()).pooled, started(dtype="bfloat16")(images()).pooled
    assert rounded.dtype == jnp.bfloat16
    error = jnp.linalg.norm(rounded.astype(jnp.float32) - exact) / jnp.linalg.norm(exact)
    assert error < 0.05


@pytest.mark.parametrize(
    "how, message",
    [
        (dict(keep=0.5), "no patches to drop or to hide .keep=0.5"),
        (dict(replace=0.5), "no patches to drop or to hide .*replace=0.5"),
        (dict(levels=2), "reads 2 depths of the towers"),
    ],
)
def test_what_needs_patches_or_equal_depths_is_refused(how, message):
    with pytest.raises(BadInput, match=message):
        resnet()(images(), draw=example_keys(jax.random.key(0), 3), **how)


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(BadInput, match="base_width=8 does not divide by groups=3"):
        resnet(groups=3)


def test_it_is_an_image_tower_of_a_config_and_takes_uint8():
    model = Multimodal(
        image=dict(name="resnet", image_size=40, depth=18, base_width=8, groups=4),
        embed_dim=16,
        rngs=nnx.Rngs(0),
    )
    grey = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8)
    got = model.project("image", model.encode_image(jnp.asarray(grey))).z
    want = model.project("image", model.encode_image(jnp.asarray(grey / 127.5 - 1, jnp.float32))).z
    assert got.shape == (2, 16)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def program(rules, mesh, devices):
    config = tiny.get_config()
    config.sharding = dict(mesh=mesh, rules=rules)
    # The last stage is wide enough to be split.
    config.model.image = dict(name="resnet", image_size=40, depth=18, base_width=8, groups=4)
    config.model.text.update(width=16, dropout=0.0)
    config.objectives.contrastive.image_keep = 1.0
    return build_program(config, devices)


def gradients(a_program):
    rng, size = np.random.default_rng(0), a_program.recipe.global_batch_size
    batch = {
        "image": rng.integers(0, 256, (size, 40, 40, 3), np.uint8),
        "text": rng.integers(1, 64, (size, 8)).astype(np.int32),
        "text_mask": np.ones((size, 8), bool),
        "group": np.arange(size, dtype=np.int32),
        "id": np.arange(size, dtype=np.uint32),
    }
    state = a_program.init(0)

    def used(path, x):  # no branch at zero
        return x + 0.5 if path.endswith("norm/scale") else x

    state = state._replace(params=map_paths(used, state.params))
    (loss, _), found = a_program.gradients(state, jax.device_put(batch, a_program.batch_sharding))
    return float(loss), flatten(jax.device_get(found))


def test_loss_and_gradients_on_eight_devices_are_those_on_one():
    split = program("fsdp_tp", dict(fsdp=4, tensor=2), jax.devices())
    kernel = split.state.params["model"]["image"]["blocks"][7]["convs"][1]["kernel"]
    assert kernel.sharding.spec == jax.P(None, None, "fsdp", "tensor")
    want, wanted = gradients(program("dp", dict(fsdp=1), jax.devices()[:1]))
    loss, found = gradients(split)
    assert loss == pytest.approx(want, rel=1e-5)
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        error = np.linalg.norm(found[path] - value)
        assert error <= max(1e-4 * np.linalg.norm(value), 1e-6), (path, error)
