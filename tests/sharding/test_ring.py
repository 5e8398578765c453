"""What travels around the ring of devices, against indexing a whole array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm.sharding.mesh import make_mesh
from mm.sharding.ring import pick
from mm.sharding.rules import find_rules, use_sharding

ROWS = jnp.array([7, 0, 0, 3, 6, 2, 15, 8, 9, 1, 11, 12, 5, 4, 14, 10])


@pytest.mark.parametrize("shape", [dict(fsdp=1), dict(replica=2, fsdp=4), dict(fsdp=4, tensor=2)])
def test_rows_of_the_global_batch_are_picked_with_their_gradients(shape):
    mesh = make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])
    tree = {"a": jax.random.normal(jax.random.key(0), (16, 3)), "b": jnp.arange(16), "none": None}
    weights = jax.random.normal(jax.random.key(1), (16, 3))

    def loss(a, choose):
        return (choose({**tree, "a": a})["a"] * weights).sum()

    with use_sharding(mesh, find_rules("dp")):
        found = jax.jit(lambda tree: pick(tree, ROWS))(tree)
        slope = jax.jit(jax.grad(lambda a: loss(a, lambda tree: pick(tree, ROWS))))(tree["a"])
    np.testing.assert_array_equal(found["a"], tree["a"][ROWS])
    np.testing.assert_array_equal(found["b"], ROWS)
    want = jax.grad(lambda a: loss(a, lambda tree: jax.tree.map(lambda x: x[ROWS], tree)))
    np.testing.assert_allclose(slope, want(tree["a"]), rtol=1e-6)
