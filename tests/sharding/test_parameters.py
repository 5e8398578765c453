import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from mm.sharding.mesh import make_mesh
from mm.sharding.parameters import gather, sum_rows
from mm.sharding.rules import PRESETS, use_sharding


def mesh(**shape):
    return make_mesh({"fsdp": -1, **shape})


LAYOUTS = {
    "fsdp": (PRESETS["fsdp"], {}),
    "hsdp": (PRESETS["hsdp"], dict(replica=2)),
    "fsdp_tp": (PRESETS["fsdp_tp"], dict(tensor=2)),
    "dp": (PRESETS["dp"], {}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("rows", "turn"), [(16, True), (16, False), (15, True)])
def test_the_gradient_of_a_parameter_is_the_sum_over_all_rows_as_it_is_stored(layout, rows, turn):
    rules, shape = LAYOUTS[layout]
    a_mesh, axes = mesh(**shape), ("mlp", "embed")
    x, y = np.random.default_rng(0).standard_normal((2, rows, 128)).astype(np.float32)

    def run(x, y):
        with use_sharding(a_mesh, rules):
            return sum_rows(lambda x, y: x.T @ y, (128, 128), axes, x, y, turn=turn)

    got = jax.jit(run)(x, y)
    want = NamedSharding(a_mesh, rules.parameter_spec("k", (128, 128), axes, a_mesh))
    assert got.sharding.is_equivalent_to(want, 2)
    np.testing.assert_allclose(got, x.T @ y, rtol=1e-5, atol=1e-5)


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
