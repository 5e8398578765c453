import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mm.models.logits import AXES, Logits
from mm.objectives.tokens import MOST_LOGITS, cross_entropy
from mm.planning import hlo
from mm.sharding.mesh import BATCH_AXES, make_mesh
from mm.sharding.rules import find_rules, use_sharding

ROWS, LENGTH, WIDTH, WORDS = 16, 6, 128, 160
RNG = np.random.default_rng(0)
TARGETS = RNG.integers(0, WORDS, (ROWS, LENGTH))
SCORED = RNG.random((ROWS, LENGTH)) < 0.6
X, KERNEL, BIAS = (
    0.3 * RNG.standard_normal(shape) for shape in ((ROWS, LENGTH, WIDTH), (WIDTH, WORDS), WORDS)
)


def loss(logits, most=MOST_LOGITS, smoothing=0.1):
    arrays = jnp.asarray(TARGETS), jnp.asarray(SCORED)
    return cross_entropy(logits, *arrays, smoothing, most=most)


def reference(smoothing=0.1, bias=True):
    """Loss, metrics and gradients in float64, of logits that are made whole."""
    y = X @ KERNEL + (BIAS if bias else 0)
    p = np.exp(y) / np.exp(y).sum(-1, keepdims=True)
    target = np.eye(WORDS)[TARGETS]
    aims = (1 - smoothing) * target + smoothing / WORDS
    weights = SCORED / SCORED.sum()
    value, plain = (-(x * np.log(p)).sum(-1) for x in (aims, target))
    accuracy = ((y.argmax(-1) == TARGETS) * weights).sum()
    metrics = {"accuracy": accuracy, "perplexity": np.exp((plain * weights).sum())}
    slope = (p - aims) * weights[..., None]
    kernel = np.einsum("bld,blv->dv", X, slope)
    gradients = Logits(slope @ KERNEL.T, kernel, slope.sum((0, 1)) if bias else None)
    return ((value * weights).sum(), metrics), gradients


def assert_close(found, want, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7), found, want)


# All at once, 7 rows at most (of 96, so 6), one row.
@pytest.mark.parametrize("most", [MOST_LOGITS, 7 * WORDS, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_in_pieces_it_is_the_loss_of_whole_logits(most, bias):
    logits = Logits(*map(jnp.float32, (X, KERNEL)), jnp.float32(BIAS) if bias else None)
    found = jax.jit(jax.value_and_grad(lambda logits: loss(logits, most), has_aux=True))(logits)
    assert_close(found, reference(bias=bias), 1e-4)


def test_in_float64_it_is_exact():
    with jax.enable_x64(True):
        logits = Logits(*map(jnp.asarray, (X, KERNEL, BIAS)))
        found = jax.value_and_grad(lambda logits: loss(logits, 7 * WORDS), has_aux=True)(logits)
        assert found[0][0].dtype == np.float64
        assert_close(found, reference(), 1e-11)


def test_the_gradient_has_the_factor_of_the_loss():
    logits = Logits(*map(jnp.float32, (X, KERNEL, BIAS)))
    once, thrice = (
        jax.grad(lambda logits, by=by: by * loss(logits, 7 * WORDS)[0])(logits) for by in (1, 3)
    )
    assert_close(thrice, jax.tree.map(lambda x: 3 * x, once))


def test_of_bfloat16_the_sums_are_float32():
    logits = Logits(*map(jnp.bfloat16, (X, KERNEL)), jnp.float32(BIAS))
    exact = [np.asarray(x, np.float64) for x in logits[:2]]
    np.testing.assert_allclose(logits.whole(), exact[0] @ exact[1] + BIAS, rtol=1e-4, atol=1e-4)
    found = jax.grad(lambda kernel: loss(logits._replace(kernel=kernel))[0])(jnp.float32(KERNEL))
    want = reference()[1].kernel
    assert found.dtype == jnp.float32
    assert np.linalg.norm(found - want) < 0.01 * np.linalg.norm(want)


LAYOUTS = {
    "dp": dict(fsdp=8),
    "fsdp": dict(fsdp=8),
    "hsdp": dict(replica=2, fsdp=4),
    "fsdp_tp": dict(fsdp=4, tensor=2),
}


@pytest.mark.parametrize("rules", LAYOUTS)
def test_on_a_mesh_it_is_the_same_and_no_loop_moves_the_kernel(rules):
    mesh, found = make_mesh(LAYOUTS[rules]), find_rules(rules)
    specs = [P(BATCH_AXES)] + [
        found.parameter_spec("", x.shape, axes, mesh)
        for x, axes in ((KERNEL, AXES), (BIAS, AXES[1:]))
    ]
    places = [NamedSharding(mesh, spec) for spec in specs]
    logits = Logits(*jax.device_put([*map(np.float32, (X, KERNEL, BIAS))], places))

    def run(logits):
        with use_sharding(mesh, found):
            return jax.value_and_grad(lambda logits: loss(logits, 3 * WORDS), has_aux=True)(logits)

    compiled = jax.jit(run).lower(logits).compile()
    values, gradients = compiled(logits)
    assert_close((values, gradients), reference(), 1e-4)
    assert gradients.kernel.sharding.is_equivalent_to(logits.kernel.sharding, 2)
    moved = [
        (times, max(hlo.array_bytes(operation.result)))
        for operation, _, times in hlo.executions(hlo.parse(compiled.as_text()))
        if operation.opcode in hlo.COLLECTIVES
    ]
    part = KERNEL.size * 4 / mesh.size
    assert max(times for times, size in moved) == (8 if rules == "fsdp_tp" else 1)
    assert all(times == 1 or size < part for times, size in moved)
    assert sum(size >= part for _, size in moved) >= 1 + (rules != "dp")


def temporaries(words, rows, most=MOST_LOGITS):
    """Bytes for the loss of so many words at so many places, and its gradients."""
    shapes = dict(x=(rows, 1, 64), kernel=(64, words))
    logits = Logits(**{k: jax.ShapeDtypeStruct(x, jnp.float32) for k, x in shapes.items()})
    rest = (jax.ShapeDtypeStruct((rows, 1), kind) for kind in (jnp.int32, jnp.bool_))

    def function(*arrays):
        return cross_entropy(*arrays, most=most)

    compiled = jax.jit(jax.value_and_grad(function, has_aux=True)).lower(logits, *rest).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_words_times_places():
    rows, words, most = 2048, 2**14, 2**20
    assert temporaries(words, rows) > 4 * rows * words  # all at once
    for factor in (1, 4):
        kernel = 4 * 64 * words * factor
        assert temporaries(words * factor, rows, most) < 4 * kernel + 5 * 4 * most
    assert (
        temporaries(words, 4 * rows, most) < 4 * 4 * 64 * words + 5 * 4 * most + 4 * 4 * rows * 64
    )
