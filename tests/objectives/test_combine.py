"""Several objectives in one step: weights, turns, teachers, shared towers."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm.config import BadInput, plain
from mm.objectives.combine import compare_gradients, find_turns, find_weights
from mm.optim.paths import flatten
from mm.train import train
from tests.test_program import batch, program
from tests.tiny import get_config

CONTRASTIVE = dict(name="contrastive", kind="softmax")
MATCHING = dict(name="matching")
FUSION = dict(name="cross", width=16, depth=1, num_heads=2)


def build(objectives, **changes):
    """With a fusion if an objective reads it: one that nobody reads is refused."""
    if any(spec["name"] == "matching" for spec in objectives.values()):
        changes = {"model__fusion": FUSION, **changes}
    return program(devices=jax.devices()[:1], width=16, objectives=objectives, **changes)


def first_step(a_program, step=0):
    state = a_program.init(0)._replace(step=jnp.int32(step))
    (loss, (metrics, _)), gradients = a_program.gradients(state, batch(a_program))
    return float(loss), jax.device_get(metrics), gradients


def test_the_loss_is_the_weighted_sum():
    both = {"c": CONTRASTIVE | {"weight": 0.5}, "m": MATCHING | {"weight": 2.0}}
    loss, metrics, _ = first_step(build(both))
    np.testing.assert_allclose(loss, 0.5 * metrics["c/loss"] + 2 * metrics["m/loss"], rtol=1e-6)


def test_a_weight_may_follow_a_schedule():
    weight = dict(peak=3.0, name="constant", warmup_steps=2)
    for step, want in ((0, 1.5), (1, 3.0)):
        loss, metrics, _ = first_step(build({"c": CONTRASTIVE | {"weight": weight}}), step)
        np.testing.assert_allclose(loss, want * metrics["c/loss"], rtol=1e-6)
        assert metrics["c/weight"] == want


def test_a_learned_weight_starts_at_one_and_goes_to_one_over_the_loss():
    a_program = build({"c": CONTRASTIVE | {"weight": "learned"}})
    loss, metrics, gradients = first_step(a_program)
    np.testing.assert_allclose(loss, metrics["c/loss"], rtol=1e-6)
    # d/ds (exp(-s) L + s) = 1 - L at s = 0, so zero where exp(-s) = 1 / L
    np.testing.assert_allclose(gradients["log_variances"]["c"], 1 - loss, rtol=1e-5)


@pytest.mark.parametrize(
    "weight, message",
    [
        ("learnt", "expected a finite number, a schedule or 'learned'"),
        (True, "expected a finite number"),
        (float("nan"), "expected a finite number"),
        (dict(name="cosine", peak=float("inf")), "peak=inf: expected a finite number"),
        (dict(name="cosin"), "did you mean 'cosine'"),
    ],
)
def test_a_weight_that_is_none_is_refused(weight, message):
    with pytest.raises(BadInput, match=f"config.objectives.c.weight.*{message}"):
        find_weights({"c": CONTRASTIVE | {"weight": weight}}, 8)


def test_objectives_take_turns_and_the_others_cost_nothing():
    both = {"c": CONTRASTIVE, "m": MATCHING}
    a_program = build(both, alternate=(("c",), ("m",)))
    for step, (on, off) in enumerate((("c", "m"), ("m", "c"))):
        loss, metrics, gradients = first_step(a_program, step)
        assert np.isnan(metrics[f"{off}/loss"])
        np.testing.assert_allclose(loss, metrics[f"{on}/loss"], rtol=1e-6)
        alone = build(both | {off: both[off] | {"weight": 0.0}})
        want = flatten(first_step(alone, step)[2])
        for name, gradient in flatten(gradients).items():
            # Rows of the table of words are summed up in another order.
            np.testing.assert_allclose(gradient, want[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_an_objective_may_begin_later():
    late = {"c": CONTRASTIVE, "m": MATCHING | {"from_step": 2}}
    a_program = build(late)
    for step in range(4):
        loss, metrics, _ = first_step(a_program, step)
        assert np.isnan(metrics["m/loss"]) == (step < 2)
        wanted = metrics["c/loss"] + (metrics["m/loss"] if step >= 2 else 0)
        np.testing.assert_allclose(loss, wanted, rtol=1e-6)


def test_phases_and_turns_go_together():
    specs = {"a": {}, "b": {"from_step": 4}, "c": {}}
    turns = find_turns((("a",), ("b", "c")), specs)
    found = [turns.groups[turns.index(step)] for step in range(6)]
    assert found == [("a",), ("c",)] * 2 + [("a",), ("b", "c")]


@pytest.mark.parametrize(
    "turns, message",
    [
        ((("c",), ("n",)), "no objective 'n'"),
        ((("c",),), "no turn for {'m'}"),
        ((("c", "m"), ()), "a step from 0 on has no objective"),
    ],
)
def test_turns_that_cannot_be_taken_are_refused(turns, message):
    with pytest.raises(BadInput, match=message):
        build({"c": CONTRASTIVE, "m": MATCHING}, alternate=turns)


def test_gradients_are_compared_by_norm_and_cosine():
    trees = {"a": {"x": jnp.array([3.0, 0.0])}, "b": {"x": jnp.array([1.0, -1.0])}}
    found = compare_gradients(trees)
    want = {"a/norm": 3.0, "b/norm": 2**0.5, "a/b/cosine": 2**-0.5}
    assert {f"gradients/{name}" for name in want} == set(found)
    for name, value in want.items():
        np.testing.assert_allclose(found[f"gradients/{name}"], value, rtol=1e-6)


def test_a_step_compares_the_gradients_that_it_adds_up():
    a_program = build({"c": CONTRASTIVE, "m": MATCHING})
    found = a_program.compare(a_program.init(0), batch(a_program))
    norm = jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(first_step(a_program)[2])))
    a, b = (float(found[f"gradients/{name}/norm"]) for name in "cm")
    cosine = float(found["gradients/c/m/cosine"])
    np.testing.assert_allclose(norm, (a * a + b * b + 2 * a * b * cosine) ** 0.5, rtol=1e-4)


def matmuls(a_program):
    """How many dot_generals a step has, by the shape of what they make."""
    counts = collections.Counter()

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                counts[equation.outvars[0].aval.shape] += 1
            for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    visit(inner)

    visit(jax.make_jaxpr(a_program.gradients)(a_program.state, a_program.batch_spec).jaxpr)
    return counts


def test_objectives_share_the_towers():
    """Contrastive learning and matching encode the clean image and text once."""
    one, other, both = (
        sum(matmuls(build(objectives)).values())
        for objectives in ({"c": CONTRASTIVE}, {"m": MATCHING}, {"c": CONTRASTIVE, "m": MATCHING})
    )
    towers = sum(matmuls(build({"m": MATCHING | {"temperature": None}})).values())
    assert both < one + other - 20 and towers < both


def test_a_teacher_that_nobody_asks_is_refused():
    with pytest.raises(BadInput, match="config.teacher: no objective asks for it; leave it out"):
        build({"c": CONTRASTIVE}, teacher=dict(name="average", decay=0.9))


def test_a_teacher_is_needed_by_who_asks_for_it():
    objective = dict(name="response_distillation")
    with pytest.raises(BadInput, match="config.objectives.d: needs config.teacher"):
        a_program = build({"d": objective})
        a_program.gradients(a_program.state, a_program.batch_spec)


def test_a_student_learns_from_the_checkpoint_of_another_run(tokenizer, tmp_path):
    teacher, student = (get_config(f"tokenizer={tokenizer}") for _ in range(2))
    for config in (teacher, student):  # a tuple here, a list in the run's config.json
        with config.ignore_type():
            config.model.image.image_size = (config.model.image.image_size,) * 2
    teacher.total_steps = 4
    assert train(teacher, str(tmp_path / "teacher")) == 0
    student.model.image.depth = student.model.text.depth = 1
    student.total_steps = 4
    student.objectives = dict(distil=dict(name="response_distillation"))
    student.teacher = dict(
        name="checkpoint", workdir=str(tmp_path / "teacher"), model=plain(teacher.model)
    )
    assert train(student, str(tmp_path / "student")) == 0
    student.teacher.model.embed_dim = 8
    with pytest.raises(BadInput, match="not the model that .*teacher trained"):
        train(student, str(tmp_path / "other"))


def test_what_an_idle_objective_owns_stays():
    """Neither weight decay nor an old moment moves its head before its time."""
    late = {"c": CONTRASTIVE, "m": MATCHING | {"from_step": 2}}
    a_program = build(late, optimizer__weight_decay=0.5)
    state = a_program.init(0)
    heads = [np.asarray(state.params["objectives"]["m"]["head"]["kernel"])]
    for _ in range(3):
        state, _ = a_program.train_step(state, batch(a_program))
        heads.append(np.asarray(state.params["objectives"]["m"]["head"]["kernel"]))
    np.testing.assert_array_equal(heads[0], heads[2])
    assert not np.array_equal(heads[2], heads[3])
