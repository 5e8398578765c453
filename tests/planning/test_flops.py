"""FLOPs: the counter against products counted by hand, and the models' own numbers against it."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from mm.config import load
from mm.kernels.short_attention import short_attention
from mm.kernels.splash_attention import splash_attention
from mm.planning.flops import count_flops, kernel_costs
from mm.program import build_program
from mm.sharding.mesh import make_mesh

A, B = jnp.zeros((4, 8)), jnp.zeros((8, 16))
ONE = 2 * 4 * 8 * 16  # of A @ B


def count(function, *arguments):
    return count_flops(jax.make_jaxpr(function)(*arguments))


def test_a_product_counts_twice_its_multiplications():
    assert count(jnp.dot, A, B) == ONE
    assert count(lambda a, b: jnp.einsum("bij,bkj->bik", a, b), jnp.zeros((3, 4, 5)),
                 jnp.zeros((3, 6, 5))) == 2 * 3 * 4 * 6 * 5  # fmt: skip


def test_gradients_count_two_more_products():
    assert count(jax.value_and_grad(lambda a, b: ((a @ b) ** 2).sum(), (0, 1)), A, B) == 3 * ONE


def test_what_no_result_needs_does_not_count():
    assert count(lambda a, b: (a @ b, jnp.ones(3))[1], A, B) == 0


def test_a_scan_counts_as_often_as_it_turns():
    def function(a, b):
        return jax.lax.scan(lambda carry, _: (carry, a @ b), 0.0, None, length=7)[1]

    assert count(jax.jit(function), A, B) == 7 * ONE


def test_recompute_is_counted():
    def loss(a, b):
        return (jnp.sin(a @ b) @ b.T).sum()

    plain, remat = (count(jax.value_and_grad(f), A, B) for f in (loss, jax.checkpoint(loss)))
    assert remat > plain


@pytest.mark.parametrize("groups, stride", [(1, 1), (1, 2), (2, 1), (4, 2)])
def test_a_convolution_and_each_of_its_gradients_count_its_window_at_each_place(groups, stride):
    def loss(x, kernel):
        y = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), [(1, 1), (1, 1)], feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        return (y**2).sum()

    x, kernel = jnp.zeros((5, 12, 8, 16)), jnp.zeros((3, 3, 16 // groups, 24))
    one = 2 * 5 * (12 // stride) * (8 // stride) * 24 * 3 * 3 * (16 // groups)
    assert count(loss, x, kernel) == one
    assert count(jax.grad(loss, 1), x, kernel) == 2 * one
    assert count(jax.grad(loss, (0, 1)), x, kernel) == 3 * one


def test_a_shard_map_counts_once_a_device():
    mesh = make_mesh(dict(fsdp=4), jax.devices()[:4])
    spec = jax.sharding.PartitionSpec("fsdp")
    function = jax.shard_map(lambda a: a @ a.T, mesh=mesh, in_specs=spec, out_specs=spec)
    assert count(function, jnp.zeros((8, 5))) == 4 * 2 * 2 * 2 * 5


def test_a_kernel_counts_once_a_cell_of_its_grid():
    def kernel(a_ref, out_ref):
        out_ref[...] = a_ref[...] @ a_ref[...]

    call = pl.pallas_call(
        kernel,
        grid=(3,),
        in_specs=[pl.BlockSpec((8, 8), lambda i: (i, 0))],
        out_specs=pl.BlockSpec((8, 8), lambda i: (i, 0)),
        out_shape=jax.ShapeDtypeStruct((24, 8), jnp.float32),
    )
    assert count(call, jnp.zeros((24, 8))) == 3 * 2 * 8**3


def test_the_cost_of_a_kernel_without_a_statement_is_counted_on_a_device():
    mesh = make_mesh(dict(fsdp=4), jax.devices()[:4])
    spec = jax.sharding.PartitionSpec("fsdp")
    function = jax.shard_map(
        partial(splash_attention, batch=2, num_heads=2, interpret=True),
        mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False,
    )  # fmt: skip
    q = jnp.zeros((4 * 2 * 256, 128), jnp.bfloat16)
    [((name, shapes), (flops, size))] = kernel_costs(jax.make_jaxpr(function)(q, q, q)).items()
    assert name.startswith("splash") and (2, 2, 256, 64) in shapes
    assert flops == 2 * 4 * 2 * 256 * 256 * 64 and size > 4 * q.size / 4 * 2


def test_two_kernels_of_one_name_and_another_cost_are_refused():
    def attention(length):
        k = jnp.zeros((length, 64))
        return splash_attention(jnp.zeros((256, 64)), k, k, batch=1, num_heads=1, interpret=True)

    with pytest.raises(ValueError, match="kernel splash"):
        kernel_costs(jax.make_jaxpr(lambda: (attention(256), attention(512)))())


def test_kernels_that_state_their_cost_are_not_told_apart():
    """Two towers of one shape, of which one is masked."""

    def attention(mask):
        q = jnp.zeros((32, 64))
        return short_attention(q, q, q, mask, batch=2, num_heads=1, interpret=True)

    towers = jax.make_jaxpr(lambda mask: (attention(None), attention(mask)))
    assert kernel_costs(towers(jnp.ones((2, 16), bool))) == {}


@pytest.mark.parametrize("width, heads", [(128, 2), (256, 4), (144, 2)])
def test_the_short_kernel_states_the_flops_that_it_has(width, heads):
    """What it states is what a plan's time is made from."""
    q = jnp.zeros((4 * 20, width), jnp.bfloat16)

    def loss(q, k, v):
        return short_attention(q, k, v, batch=4, num_heads=heads).astype(jnp.float32).sum()

    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss, (0, 1, 2)))(q, q, q)
    stated = [equation.params["cost_estimate"].flops for equation in kernels(jaxpr.jaxpr)]
    assert stated == [2 * 2 * 4 * 20 * 20 * width, 2 * 5 * 4 * 20 * 20 * width]
    assert count_flops(jaxpr) == sum(stated)


def test_a_models_flops_are_those_of_its_formula():
    """6 a weight and row that meets it; 12 a pair of tokens and width; 8 a pair of the batch.

    The first layer's input has no gradient. Neither remat nor micro-batches count.
    """
    config = load("configs/siglip.py:variant=B/16")
    config.model.image.remat = config.model.text.remat = "full"
    config.sharding.mesh.replica, config.accumulation_steps = 1, 4
    width, depth, patches, words, batch = 768, 12, 196, 64, 32_768
    block = 12 * width**2
    tower = [depth * (6 * n * block + 12 * n * n * width) for n in (patches, words)]
    patch = 4 * patches * 3 * 16 * 16 * width
    pool = 6 * (2 * patches + 2 + 8) * width**2 + 12 * patches * width
    projections = 6 * 2 * width**2
    want = batch * (sum(tower) + patch + pool + projections) + 8 * batch**2 * width
    found = build_program(config, jax.devices()[:1]).training_flops()
    assert found == pytest.approx(want, rel=1e-4)


def kernels(jaxpr):
    """All pallas_calls in it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation
            continue
        for value in equation.params.values():
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                yield from kernels(getattr(value, "jaxpr", value))


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(NotImplementedError, match="until a condition"):
        count(lambda a: jax.lax.while_loop(lambda a: a.sum() < 1, lambda a: a @ a, a), B[:, :8])
