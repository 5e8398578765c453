"""Micro-batches against the whole batch: values, gradients, memory, and what moves."""

import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm import registry
from mm.accumulate import accumulate, cut, join, wanted_views
from mm.assembly import TrainState
from mm.config import BadInput
from mm.models.keys import example_keys
from mm.objectives import Loss, Objective, Views
from mm.objectives.combine import System, find_turns, total_loss
from mm.optim.paths import flatten
from mm.program import build_program
from mm.sharding.mesh import make_mesh
from mm.sharding.rules import find_rules, use_sharding
from mm.steps import differentiated
from tests.test_program import batch, error, program
from tests.tiny import get_config

LAYOUTS = {
    "one device": ("dp", dict(fsdp=1)),
    "dp": ("dp", dict(replica=2, fsdp=4)),
    "fsdp": ("fsdp", dict(fsdp=8)),
    "fsdp x tensor": ("fsdp_tp", dict(fsdp=4, tensor=2)),
}
KINDS = ("softmax", "sigmoid")
QUICK = [
    ("one device", 2, "softmax"), ("dp", 4, "sigmoid"), ("fsdp", 2, "softmax"),
    ("fsdp x tensor", 4, "sigmoid"),
]  # fmt: skip
CASES = [
    pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
    for case in itertools.product(LAYOUTS, (2, 4), KINDS)
]


def build(layout, kind, steps, batch_size=32):
    """Dropout and token dropping are on in both."""
    rules, mesh = LAYOUTS[layout]
    devices = jax.devices()[: int(np.prod(list(mesh.values())))]
    return program(
        rules, mesh, devices, global_batch_size=batch_size,
        objectives__contrastive__kind=kind, accumulation_steps=steps,
    )  # fmt: skip


def values(a_program):
    """{"loss", each metric, each gradient by path} of the first step."""
    (loss, (metrics, _)), gradients = a_program.gradients(a_program.init(0), batch(a_program))
    return jax.device_get({"loss": loss, **metrics, **flatten(gradients)})


@pytest.fixture(scope="module")
def whole():
    return {kind: values(build("one device", kind, 1)) for kind in KINDS}


@pytest.mark.parametrize("layout, steps, kind", CASES)
def test_loss_metrics_and_every_gradient_equal_the_whole_batch(layout, steps, kind, whole):
    found = values(build(layout, kind, steps))
    assert found.keys() == whole[kind].keys()
    errors = {name: error(x, whole[kind][name]) for name, x in found.items()}
    assert max(errors.values()) < 1, max(errors.items(), key=lambda item: item[1])


def in_float64(kind, mesh):
    """The two-tower system with every layer in float64, and a function of (steps) -> results."""
    config = get_config().to_dict()
    config["objectives"]["contrastive"]["kind"] = kind
    system = System(config["model"], config["objectives"], rngs=nnx.Rngs(params=0))
    for _, node in nnx.iter_graph(system):
        if hasattr(node, "dtype") and isinstance(node, nnx.Module):
            node.dtype = jnp.dtype(jnp.float64)
    graphdef, params = nnx.split(system, nnx.Param)
    params = jax.tree.map(lambda x: x.astype(jnp.float64), nnx.to_pure_dict(params))
    rng, size = np.random.default_rng(0), 32
    rows = {
        "image": rng.standard_normal((size, 16, 16, 3)),
        "text": rng.integers(1, 64, (size, 8)).astype(np.int32),
        "text_mask": np.arange(8) < rng.integers(1, 9, (size, 1)),
        "group": np.minimum(np.arange(size), size - 3).astype(np.int32),
        "id": np.arange(size, dtype=np.uint32),
    }
    weights, turns = {"contrastive": 1.0}, find_turns((), {"contrastive": {}})

    def merge(state):
        return nnx.merge(graphdef, state.params)

    def part(state):
        return state.params, lambda params: merge(state._replace(params=params))

    def see(state, system, batch, keys, kind=Views, **more):
        return kind(system.model, batch, keys, **more)

    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def run(steps):
        state = TrainState(0, params, None, {})
        function = differentiated(part, see)
        if steps > 1:
            wanted = wanted_views(merge, see, state, rows, steps)
            shardings = jax.tree.map(lambda _: everywhere, params)
            function = accumulate(part, see, wanted, steps, shardings)
        keys = example_keys(jax.random.key(1), size)
        with use_sharding(mesh, find_rules("dp")):
            loss = partial(total_loss, weights, turns, jax.random.key(2), jnp.int32(0))
            return jax.jit(partial(function, loss))(state, rows, keys)

    return run


@pytest.mark.parametrize(
    "kind, devices, steps",
    [("softmax", 1, 4), pytest.param("sigmoid", 4, 2, marks=pytest.mark.slow)],
)
def test_the_difference_is_rounding_alone(kind, devices, steps):
    with jax.enable_x64(True):
        run = in_float64(kind, make_mesh(dict(fsdp=devices), jax.devices()[:devices]))
        found, want = jax.tree.leaves(run(steps)), jax.tree.leaves(run(1))
    for a, b in zip(found, want, strict=True):
        assert a.dtype == jnp.float64
        assert np.linalg.norm(a - b) <= 1e-9 * np.linalg.norm(b) + 1e-12


def test_cut_and_join_are_inverse_and_take_from_every_device():
    mesh = make_mesh(dict(fsdp=4), jax.devices()[:4])
    with use_sharding(mesh, find_rules("dp")):
        parts = jax.jit(partial(cut, steps=2))(jnp.arange(16))
        assert parts.tolist() == [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]
        assert jax.jit(join)(parts).tolist() == list(range(16))


MOVES = re.compile(r"= \(?(.*?)\)? (all-gather|all-to-all|collective-permute)(?:-start)?\(")


def moved(steps):
    """What the compiled gradients send between devices beside sums: {(operation, shapes)}."""
    a_program = build("dp", "sigmoid", steps)
    compiled = a_program.gradients.lower(a_program.state, a_program.batch_spec).compile()
    return {
        (operation, re.sub(r"{[\d,]*}", "", shapes))
        for shapes, operation in MOVES.findall(compiled.as_text())
    }


def test_no_row_moves_to_another_device_to_make_micro_batches():
    whole = moved(1)
    assert any(operation == "collective-permute" for operation, _ in whole)  # the ring of the loss
    assert moved(2) == whole


@pytest.mark.parametrize("layout", ["one device", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_temporaries_fall_with_the_number_of_micro_batches(layout):
    def temporaries(steps):
        a_program = build(layout, "sigmoid", steps, batch_size=512)
        compiled = a_program.gradients.lower(a_program.state, a_program.batch_spec).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    one, two, four = (temporaries(steps) for steps in (1, 2, 4))
    assert two < 0.65 * one and four < 0.65 * two, (one, two, four)


class Reader(Objective):
    """An objective that looks at image tokens."""

    def __init__(self, *, model, rngs: nnx.Rngs):
        pass

    def __call__(self, views, rng):
        return Loss(views.image().tokens.mean(), {})


def test_an_objective_that_reads_tokens_is_refused(monkeypatch):
    monkeypatch.setitem(registry._constructors["objective"], "reader", Reader)
    config = {"rule": {"name": "reader"}}
    program(objectives=config)  # without micro-batches it may
    with pytest.raises(BadInput) as refused:
        program(objectives=config, accumulation_steps=2)
    message = str(refused.value)
    assert message.startswith("config.accumulation_steps=2: objective 'rule' reads tokens")
    assert "views.image" in message and "set accumulation_steps=1" in message
    assert "\n" not in message


def test_a_refusal_of_a_tower_is_not_taken_for_one_of_tokens():
    config = get_config()
    config.model.image.update(pool="flatten", pool_dim=8)
    config.accumulation_steps = 2
    with pytest.raises(BadInput, match="^pool='flatten' needs every token"):
        build_program(config)


@pytest.mark.parametrize(
    "steps, message",
    [
        (4, r"global_batch_size=16: must be a positive multiple of 32, .*accumulation_steps=4"),
        (0, "config.accumulation_steps=0: must be at least 1"),
    ],
)
def test_steps_that_cannot_work_are_refused(steps, message):
    with pytest.raises(BadInput, match=message):
        program(accumulation_steps=steps)
