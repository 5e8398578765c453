import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from mm.sharding.mesh import make_mesh
from mm.sharding.parameters import gather, sum_rows
from mm.sharding.rules import LARGE, PRESETS, ShardingRules, use_sharding


def mesh(**shape):
    return make_mesh({"fsdp": -1, **shape})


LAYOUTS = {
    "fsdp": (PRESETS["fsdp"], {}),
    "hsdp": (PRESETS["hsdp"], dict(replica=2)),
    "fsdp_tp": (PRESETS["fsdp_tp"], dict(tensor=2)),
    "dp": (PRESETS["dp"], {}),
}


SHAPES = {  # of a parameter, and its axes: what is split comes last, first, in several dimensions
    (128, 128): ("mlp", "embed"),
    (257, 128): ("patch", "embed"),  # rows that do not divide
    (4, 64, 128): ("heads", "kv", "embed"),
    (128, 4, 64): ("embed", "heads", "kv"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("rows", "by_rows"), [(16, False), (16, True), (15, False)])
def test_a_gradient_is_the_sum_over_all_rows_and_is_laid_out_as_it_is_stored(
    layout, shape, rows, by_rows
):
    rules, sizes = LAYOUTS[layout]
    a_mesh, axes = mesh(**sizes), SHAPES[shape]
    x = np.random.default_rng(0).standard_normal((rows, *shape)).astype(np.float32)

    def run(x):
        with use_sharding(a_mesh, rules):
            return sum_rows(lambda x: x.sum(0), shape, axes, x, by_rows=by_rows)

    got = jax.jit(run)(x)
    want = NamedSharding(a_mesh, rules.parameter_spec("k", shape, axes, a_mesh))
    assert got.sharding.is_equivalent_to(want, len(shape))
    np.testing.assert_allclose(got, x.sum(0), rtol=1e-4, atol=1e-5)


def test_a_layer_of_a_stack_that_is_split_by_layers_is_computed_whole():
    rules = ShardingRules(parameters={"layers": "fsdp"}, activations={"batch": "fsdp"})
    assert rules.parameter_spec("k", (8, LARGE, 2), ("layers", "embed", "mlp"), mesh())
    with use_sharding(mesh(), rules):
        x = jax.eval_shape(
            lambda x: gather(x, ("embed", "mlp")), jax.ShapeDtypeStruct((LARGE, 2), np.float32)
        )
    assert x.shape == (LARGE, 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_parameter_is_gathered_over_the_batch_and_stays_split_over_tensor(layout):
    rules, shape = LAYOUTS[layout]
    a_mesh, axes = mesh(**shape), ("embed", "mlp")
    stored = NamedSharding(a_mesh, rules.parameter_spec("k", (128, 256), axes, a_mesh))
    kernel = np.random.default_rng(0).standard_normal((128, 256)).astype(np.float32)

    def run(kernel):
        with use_sharding(a_mesh, rules):
            return gather(kernel, axes)

    got = jax.jit(run)(jax.device_put(kernel, stored))
    np.testing.assert_array_equal(got, kernel)
    assert got.sharding.shard_shape(got.shape) == (128, 128 if layout == "fsdp_tp" else 256)
