import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from launch.arms import as_text, read_sweep
from mm.config import BadInput, override, plain
from mm.planning.cost import cost, costs
from mm.planning.keys import check_keys
from mm.program import build_program
from mm.recipe import Recipe
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]


def test_a_cost_is_that_of_the_program():
    found = cost("tests/tiny.py", [])
    program = build_program(tiny.get_config(), jax.devices()[:1])
    assert found["flops"] == program.training_flops() > 0
    assert found["parameters"] == sum(x.size for x in jax.tree.leaves(program.state.params))
    assert found["frozen"] == 0 and found["config"]["sharding"]["rules"] == "dp"


def test_overrides_are_those_of_main():
    found = cost(
        "tests/tiny.py", [("global_batch_size", "32"), ("optimizer.frozen", "('model/text/.*',)")]
    )
    assert found["config"]["global_batch_size"] == 32 and found["config"]["seed"] == 0
    assert 0 < found["frozen"] < found["parameters"]


def test_the_devices_of_a_config_need_not_be_here():
    found = cost("tests/tiny.py", [("sharding.mesh.fsdp", "4096")])
    assert found["config"]["sharding"]["mesh"]["fsdp"] == 4096


def test_what_is_refused_names_the_arm():
    with pytest.raises(BadInput, match="arm 'b': config: unknown key 'sed'; did you mean 'seed'"):
        costs([{"name": "b", "config": "tests/tiny.py", "overrides": [("sed", "1")]}])


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("log.evry_steps", "1", "config.log: unknown key 'evry_steps'; did you mean 'every_steps'"),
        ("checkpoint.keep", "1", "config.checkpoint: unknown key 'keep'"),
        ("checkpoint.keep_best", "seen/x", "config.checkpoint.keep_best='seen/x': no such eval"),
        ("sharding.mesh.fspd", "1", "unknown axis 'fspd'; did you mean 'fsdp'"),
        ("sharding.rules", "fdsp", "config.sharding.rules='fdsp': expected one of"),
        ("input.prefech", "1", "config.input: unknown key 'prefech'; did you mean 'prefetch'"),
        ("input.source.sise", "1", "config.input.source: unknown key 'sise'"),
        ("input.preprocess", "resise(8)", "config.input.preprocess: no op 'resise'"),
        ("evals.held_out.batchsize", "1", "config.evals.held_out: unknown key 'batchsize'"),
        ("evals.held_out.name", "retrival", "no evaluator 'retrival'; did you mean 'retrieval'"),
    ],
)
def test_a_typo_in_a_group_is_found_without_data_or_devices(key, value, said):
    config = tiny.get_config()
    override(config, [(key, value)])
    with pytest.raises(BadInput) as error:
        check_keys(Recipe(**plain(config)))
    assert said in str(error.value)


def test_a_typo_in_a_part_of_a_mixture_is_found():
    config = tiny.get_config()
    part = {"name": "jsonl", "path": "not_here.jsonl"}
    config.input.source = {"name": "mixture", "parts": {"one": part}}
    check_keys(Recipe(**plain(config)))
    config.input.source.parts.one.paht = "x"
    with pytest.raises(BadInput, match=r"config.input.source.parts.one: unknown key 'paht'"):
        check_keys(Recipe(**plain(config)))


def test_a_cost_comes_after_the_keys():
    with pytest.raises(BadInput, match="config.log: unknown key 'evry_steps'"):
        cost("tests/tiny.py", [("log.evry_steps", "1")])


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "configs/ablations").glob("*.py")), ids=str)
def test_each_arm_of_the_sweeps_here_can_be_built(path):
    if "get_sweep" not in path.read_text():
        pytest.skip("a config")
    arms = {}  # those that differ in a learning rate are built alike
    for arm in read_sweep(str(path)).arms:
        overrides = [(key, as_text(value)) for key, value in arm.overrides.items()]
        same = arm.config, *(pair for pair in overrides if pair[0] != "optimizer.learning_rate")
        arms[same] = {"name": arm.name, "config": arm.config, "overrides": overrides}
    done = subprocess.run(
        [sys.executable, "-m", "mm.planning.cost"],
        cwd=ROOT, input=json.dumps([*arms.values()]), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(one["flops"] > 0 for one in json.loads(done.stdout))
