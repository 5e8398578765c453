import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from launch.arms import as_text, read_sweep
from mm.config import BadInput
from mm.planning.cost import cost, costs
from mm.program import build_program
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
    with pytest.raises(BadInput, match="arm 'b': unknown config key 'sed'"):
        costs([{"name": "b", "config": "tests/tiny.py", "overrides": [("sed", "1")]}])


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "configs/ablations").glob("*.py")), ids=str)
def test_each_arm_of_the_sweeps_here_can_be_built(path):
    if "get_sweep" not in path.read_text():
        pytest.skip("a config")
    arms = [
        {
            "name": arm.name,
            "config": arm.config,
            "overrides": [(key, as_text(value)) for key, value in arm.overrides.items()],
        }
        for arm in read_sweep(str(path)).arms
    ]
    done = subprocess.run(
        [sys.executable, "-m", "mm.planning.cost"],
        cwd=ROOT, input=json.dumps(arms), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(one["flops"] > 0 for one in json.loads(done.stdout))
