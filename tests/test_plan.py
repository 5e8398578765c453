"""Plans for pods, compiled here by libtpu: tiny towers on true topologies. `make plan-tools`."""

import json
import os
import subprocess
import sys

import pytest

from tests.runs import ROOT

TINY = [
    f"--config.model.{tower}.{key}"
    for tower in ("image", "text")
    for key in ("width=256", "num_heads=4", "mlp_dim=512", "depth=2", "remat=cheap")
]


def run(workdir, *flags):
    """main.py --mode=plan in a process of its own, as libtpu wants it."""
    command = [sys.executable, "main.py", "--mode=plan", f"--workdir={workdir}", *flags]
    clean = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True)


def plan(workdir, *flags):
    done = run(workdir, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((workdir / "plan.json").read_text())


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """chips -> the plan of a tiny SigLIP, 128 pairs a chip, data-parallel."""
    plans = {}
    for chips, topology in ((16, "v5e:4x4"), (256, "v5e:16x16")):
        plans[chips] = plan(
            tmp_path_factory.mktemp(str(chips)),
            "--config=configs/siglip.py",
            f"--topology={topology}",
            f"--config.global_batch_size={128 * chips}",
            "--config.sharding.rules=dp",
            *TINY,
        )
    return plans


@pytest.mark.slow
def test_a_plan_says_what_a_step_takes(siglip):
    found = siglip[256]
    assert found["fits"] and found["chips"] == 256 and found["mesh"]["fsdp"] == 256
    assert 0 < found["temporary_bytes_per_chip"] < found["bytes_per_chip"]
    assert found["bytes_per_chip"] < found["memory_per_chip"]
    assert 0 < found["estimated_mfu"] < 1 and found["compile_seconds"] > 0
    assert found["chip_hours"] > 0 and len(found["costliest_operations"]) == 10


@pytest.mark.slow
def test_the_compiled_step_does_the_work_that_is_counted(siglip):
    for found in siglip.values():
        hardware = found["hardware_flops_per_chip"]
        assert found["compiled_flops_per_chip"] == pytest.approx(hardware, rel=0.01)


@pytest.mark.slow
def test_more_chips_at_the_same_batch_a_chip_do_and_hold_the_same(siglip):
    few, many = siglip[16], siglip[256]
    rest = "hardware_flops_per_chip"
    # The pairs of the loss grow with the global batch; here, of tiny towers, they are not small.
    loss = 8 * 128 * 768 * (many["global_batch_size"] - few["global_batch_size"])
    assert many[rest] - loss == pytest.approx(few[rest], rel=0.01)
    assert many["temporary_bytes_per_chip"] <= 1.02 * few["temporary_bytes_per_chip"]


@pytest.mark.slow
def test_softmax_on_three_dimensions_and_tensor_parallel_text_plan(tmp_path):
    found = plan(
        tmp_path,
        "--config=configs/clip.py",
        "--topology=v5p:2x2x4",
        "--config.global_batch_size=512",
        "--config.sharding.rules=fsdp_tp",
        "--config.sharding.mesh.tensor=2",
        *(flag for flag in TINY if "mlp_dim" not in flag),  # CLIP's is four widths
    )
    assert found["fits"] and found["mesh"] == {"replica": 1, "fsdp": 8, "tensor": 2}


@pytest.mark.slow
def test_a_step_that_does_not_fit_says_so_and_fails(tmp_path):
    done = run(
        tmp_path,
        "--config=configs/siglip.py",
        "--topology=v5e:2x2",
        "--config.global_batch_size=65536",
        *TINY,
        "--config.model.image.remat=none",
    )
    assert done.returncode == 1 and "DOES NOT FIT" in done.stdout, done.stdout + done.stderr
    found = json.loads((tmp_path / "plan.json").read_text())
    assert not found["fits"] and found["bytes_per_chip"] > found["memory_per_chip"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--topology=v5e"], "expected KIND:SHAPE as in v5e:16x16"),
        (["--topology=v9:2x2"], "unknown TPU 'v9'"),
        (["--mode=train", "--topology=v5e:2x2"], "goes with --mode=plan, not train"),
    ],
)
def test_a_wrong_topology_is_one_clear_line(tmp_path, flags, says):
    done = run(tmp_path, "--config=configs/siglip.py", *flags)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1
