"""Plans for pods, compiled here by libtpu: tiny towers on true topologies. `make plan-tools`."""

import json
import os
import subprocess
import sys

import jax
import pytest

from mm.config import BadInput
from mm.optim.paths import flatten
from mm.plan import compile_step, plan_variants, read_text, significant
from mm.plan import plan as planned
from mm.planning.topology import CHIPS, StandIn, Topology
from mm.program import build_program
from tests.runs import ROOT
from tests.tiny import get_config

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


PLANS = {  # layout, chips -> topology, rules, mesh.replica
    ("dp", 16): ("v5e:4x4", "dp", 1),
    ("dp", 256): ("v5e:16x16", "dp", 1),
    ("hsdp", 256): ("v5e:16x16", "hsdp", 8),
}


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """(layout, chips) -> the plan of a tiny SigLIP, 128 pairs a chip."""
    return {
        (layout, chips): plan(
            tmp_path_factory.mktemp(f"{layout}-{chips}"),
            "--config=configs/siglip.py",
            f"--topology={topology}",
            f"--config.global_batch_size={128 * chips}",
            f"--config.sharding.rules={rules}",
            f"--config.sharding.mesh.replica={replica}",
            *TINY,
            "--config.model.image.unroll=1",
            "--config.model.text.unroll=1",
        )
        for (layout, chips), (topology, rules, replica) in PLANS.items()
    }


@pytest.mark.slow
def test_a_plan_says_what_a_step_takes(siglip):
    found = siglip["dp", 256]
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
    few, many = siglip["dp", 16], siglip["dp", 256]
    rest = "hardware_flops_per_chip"
    # The pairs of the loss grow with the global batch; here, of tiny towers, they are not small.
    loss = 8 * 128 * 768 * (many["global_batch_size"] - few["global_batch_size"])
    assert many[rest] - loss == pytest.approx(few[rest], rel=0.01)
    assert many["bytes_per_chip"] <= 1.02 * few["bytes_per_chip"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["dp", "hsdp"])
def test_no_more_goes_over_the_wire_than_has_to(layout, siglip):
    found = siglip[layout, 256]
    sent, least = found["collective_bytes_per_chip"], found["minimal_collective_bytes_per_chip"]
    assert sum(sent.values()) <= 1.1 * least
    # Without the embeddings of the loss, which are most of it for towers as tiny as these.
    ring = 3 * 4 * found["global_batch_size"] * 768
    assert sum(sent.values()) - sent["collective-permute"] <= 1.1 * (least - ring)
    if layout == "hsdp":
        assert sent["reduce-scatter"] > 5 * sent["all-reduce"]


def test_a_plan_for_gpus_is_of_shapes_alone(capsys, tmp_path):
    config = get_config()
    (tmp_path / "step.hlo.txt").write_text("of a plan before")
    assert planned(config, str(tmp_path), "h100:8") == 0
    found = json.loads((tmp_path / "plan.json").read_text())
    program = build_program(config)
    assert found["fits"] is None and found["chips"] == 8
    assert found["model_flops_per_chip"] == program.training_flops() / 8
    assert found["hardware_flops_per_chip"] >= found["model_flops_per_chip"]
    assert "estimated_step_seconds" not in found and not (tmp_path / "step.hlo.txt").exists()
    assert "For GPUs this is all" in capsys.readouterr().out


def test_a_plan_says_what_is_trained_and_what_that_takes(capsys, tmp_path):
    config = get_config()
    config.optimizer.trainable = ("model/text/.*", "objectives/.*")
    assert planned(config, str(tmp_path), "h100:8") == 0
    found = json.loads((tmp_path / "plan.json").read_text())
    sizes = {
        name: 4 * leaf.size for name, leaf in flatten(build_program(config).state.params).items()
    }
    own = sum(n for name, n in sizes.items() if name.startswith(("model/text/", "objectives/")))
    assert found["gradient_bytes_per_chip"] == 4 * found["trained_parameters"] == own
    assert found["moment_bytes_per_chip"] == 2 * own
    assert found["frozen_bytes_per_chip"] == sum(sizes.values()) - own
    assert f"trained: {own / 4e6:.2f} M parameters" in capsys.readouterr().out


@pytest.mark.slow
def test_softmax_on_three_dimensions_and_tensor_parallel_text_plan(tmp_path):
    found = plan(
        tmp_path,
        "--config=configs/clip.py",
        "--topology=v5p:2x2x4",
        "--config.global_batch_size=512",
        "--config.sharding.rules=fsdp_tp",
        "--config.sharding.mesh.replica=1",
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
        "--config.sharding.mesh.replica=1",
        *TINY,
        "--config.model.image.remat=none",
    )
    assert done.returncode == 1 and "DOES NOT FIT" in done.stdout, done.stdout + done.stderr
    found = json.loads((tmp_path / "plan.json").read_text())
    assert not found["fits"] and found["bytes_per_chip"] > found["memory_per_chip"]


@pytest.mark.parametrize(
    ("number", "text"), [(104_280.4, "104,280"), (99.7, "100"), (9.97, "10"), (0.0412, "0.041")]
)
def test_few_chip_hours_are_not_rounded_to_none(number, text):
    assert significant(number) == text


class Refused:
    """A step of which the compiler says that."""

    def __init__(self, text):
        self.text = text

    def lower(self):
        return self

    def compile(self, options):
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {self.text}")


def test_the_bytes_that_a_step_wanted_are_the_compilers():
    text = "Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm."
    assert compile_step(Refused(text))[2] == 20.5 * 2**30


def test_a_kernel_that_does_not_fit_is_not_taken_for_a_step_that_does_not():
    text = "Ran out of memory in memory space vmem. Used 71.03M of 63.94M vmem. Exceeded"
    with pytest.raises(BadInput, match=r"vector memory \(Used 71.03M of 63.94M vmem\); use"):
        compile_step(Refused(text))


def test_a_text_that_jaxlib_cannot_read_is_refused_in_one_line():
    class Compiled:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure (async-update)\nmore")

    with pytest.raises(BadInput, match=r"cannot read .*\(async-update\)\); plan it for v5e"):
        read_text(Compiled())


def test_a_sweep_writes_its_plans_and_prints_the_fastest_first(tmp_path, monkeypatch, capsys):
    """With estimates made up: the compiler takes too long for several."""
    speed = {"none": 3.0, "cheap": 4.0, "hidden": 2.0, "full": 1.0}

    def make_plan(config, topology):
        found = {"fits": True, "bytes_per_chip": 2**30, "estimated_mfu": 0.5}
        found["estimated_examples_per_second_per_chip"] = speed[config.model.image.remat]
        return found | {"estimated_step_seconds": 0.1}, ""

    topology = Topology("v5e:2x2", CHIPS["v5e"], tuple(map(StandIn, range(4))))
    monkeypatch.setattr("mm.plan.find_topology", lambda config, name: topology)
    monkeypatch.setattr("mm.plan.make_plan", make_plan)
    assert plan_variants(get_config(), str(tmp_path), "v5e:2x2", ["remat"]) == 0
    plans = json.loads((tmp_path / "sweep.json").read_text())
    assert [found["variant"]["remat"] for found in plans] == ["cheap", "none", "hidden", "full"]
    table = capsys.readouterr().out.splitlines()[-6:-1]
    assert [line.split()[1] for line in table] == ["remat", "cheap", "none", "hidden", "full"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--topology=v5e"], "expected KIND:SHAPE as in v5e:16x16"),
        (["--topology=v9:2x2"], "unknown chip 'v9'"),
        (["--topology=v5e:4"], "expected a shape, as v5e:16x16"),
        (["--topology=h100:0"], "expected a number of GPUs, as h100:64"),
        (["--topology=h100:4x4"], "expected a number of GPUs, as h100:64"),
        (["--mode=train", "--topology=v5e:2x2"], "goes with --mode=plan, not train"),
        (["--mode=eval", "--sweep"], "--sweep=batch,remat,mesh: goes with --mode=plan, not eval"),
        (["--topology=h100:8", "--sweep"], "needs the compiler's estimates"),
    ],
)
def test_a_wrong_topology_is_one_clear_line(tmp_path, flags, says):
    done = run(tmp_path, "--config=configs/siglip.py", *flags)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1
