"""After some steps on emoji, each objective does better on unseen pictures than its controls.

The controls are the same program before the first step, and the same pictures with texts of others.
"""

import json

import jax
import pytest

from bench.menu import APART, PAIRED, batches, better, controls
from configs.menu import OBJECTIVES, get_config, resize
from mm.evaluate import open_evaluations, run_evaluations
from mm.program import build_program
from mm.train import train

SIZES = dict(width=64, mlp_dim=128, hidden=128, global_batch_size=64)
# fusion: steps, objectives. A text helps to tell hidden codes late.
RUNS = {
    "cross": (
        150,
        ("contrastive", "matching", "masked_text_fused", "captioning", "cycle", "classes_fused"),
    ),
    "early": (150, ("momentum", "mae_fused", "parallel")),
    "multiway": (500, ("beit_fused",)),
    "none": (150, ("sigmoid", "masked_text", "next_text", "mae", "beit", "beit_learned", "prefix")),
    "none of others": (
        150,
        ("contrastive", "simclr", "text_views", "self_distillation", "feature", "adversarial",
         "tied", "classes", "prompts"),
    ),
}  # fmt: skip
# As users compile: of so many steps that takes less time than what conftest.py says.
OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
OFTEN = ("cross", "none", "none of others")  # a minute each; the others with `make test-all`


def small(fusion, steps, names):
    config = get_config(f"fusion={fusion},objectives={'+'.join(names)}")
    with config.unlocked():
        resize(config, SIZES, {})
        config.total_steps = steps
        config.optimizer.schedule = dict(name="constant", warmup_steps=20)
    return config


def test_every_objective_is_in_a_run():
    assert {name for _, names in RUNS.values() for name in names} | {*APART} == set(OBJECTIVES)


@pytest.mark.parametrize(
    "fusion",
    [pytest.param(f, marks=pytest.mark.slow if f in OFTEN else pytest.mark.matrix) for f in RUNS],
)
def test_objectives_beat_their_controls_on_unseen_pictures(fusion):
    steps, names = RUNS[fusion]
    config = small(fusion.split()[0], steps, names)
    del config.evals["seen"], config.evals["unseen"]
    program = build_program(config, jax.devices()[:1])
    evaluations = open_evaluations(program)
    state = program.init(0)
    before = run_evaluations(program, state, evaluations)
    step = program.train_step.lower(program.state, program.batch_spec).compile(OPTIMIZED)
    with batches(program, 0) as data:
        for _ in range(steps):
            state, _ = step(state, next(data), program.train_step.seed)
    after = run_evaluations(program, state, evaluations)
    found = after | {f"untrained/{key}": value for key, value in before.items()}
    for name in names:
        (untrained,), (trained,), (shuffled,) = controls([found], name)
        assert better(name, trained, untrained), name
        assert name not in PAIRED or better(name, trained, shuffled), name


@pytest.mark.slow
def test_a_student_finds_unseen_pairs_by_what_its_teacher_says_of_them(tmp_path):
    teacher = small("none", 150, ["contrastive"])
    teacher.evals = {}
    assert train(teacher, str(tmp_path / "teacher")) == 0
    student = small("none", 150, ["response"])
    with student.unlocked():
        student.teacher = dict(
            name="checkpoint", workdir=str(tmp_path / "teacher"), model=teacher.model
        )
        del student.evals["seen"], student.evals["losses"], student.evals["shuffled"]
    assert train(student, str(tmp_path / "student")) == 0
    found = json.loads((tmp_path / "student" / "results.json").read_text())
    assert found["unseen/text_to_image/recall@10"] > 0.15, found  # by chance 0.06
