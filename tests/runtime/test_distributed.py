import os
import subprocess
import sys

import pytest

from mm.config import BadInput
from mm.runtime import distributed


@pytest.fixture
def joined(monkeypatch):
    """The arguments of each jax.distributed.initialize, in a clean environment."""
    for name in ("MM_COORDINATOR", "MM_NUM_PROCESSES", "MM_PROCESS_ID", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    calls = []
    monkeypatch.setattr("sys.excepthook", sys.excepthook)
    monkeypatch.setattr("jax.distributed.initialize", lambda *a: calls.append(a))
    return calls


def test_one_machine_joins_nothing_and_says_nothing(joined, capfd):
    distributed.start()
    assert joined == [] and capfd.readouterr() == ("", "")


def test_our_variables_are_used(joined, monkeypatch):
    monkeypatch.setenv("MM_COORDINATOR", "127.0.0.1:1234")
    monkeypatch.setenv("MM_NUM_PROCESSES", "2")
    monkeypatch.setenv("MM_PROCESS_ID", "0")
    distributed.start()
    assert joined == [("127.0.0.1:1234", 2, 0)]


@pytest.mark.parametrize(
    ("count", "index", "message"),
    [
        ("2", "2", "expected 0 to"),
        ("two", "0", "expected integers"),
        ("2", "", "MM_PROCESS_ID not"),
    ],
)
def test_wrong_variables_are_refused(joined, monkeypatch, count, index, message):
    monkeypatch.setenv("MM_COORDINATOR", "127.0.0.1:1234")
    monkeypatch.setenv("MM_NUM_PROCESSES", count)
    monkeypatch.setenv("MM_PROCESS_ID", index)
    with pytest.raises(BadInput, match=message):
        distributed.start()
    assert joined == []


_STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "2",
}


@pytest.mark.parametrize(
    ("changes", "calls"),
    [({}, [()]), ({"SLURM_NTASKS": "1"}, []), ({"SLURM_STEP_NODELIST": None}, [])],
)
def test_a_slurm_step_of_several_tasks_joins(joined, monkeypatch, changes, calls):
    for name, value in {**_STEP, **changes}.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    distributed.start()
    assert joined == calls


@pytest.mark.parametrize(
    ("chips", "platforms", "calls"),
    [(["/dev/accel0"], "", [()]), (["/dev/accel0"], "cpu", []), ([], "", []), ([], "tpu", [])],
)
def test_a_machine_with_tpu_chips_joins(joined, monkeypatch, chips, platforms, calls):
    monkeypatch.setattr("glob.glob", lambda pattern: chips if "accel" in pattern else [])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "libtpu")
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    distributed.start()
    assert joined == calls


def test_alone_leave_is_an_ordinary_exit():
    with pytest.raises(SystemExit) as exit_:
        distributed.leave(2)
    assert exit_.value.code == 2


_TWO = """
import os, sys, time
from mm.runtime import distributed
distributed.start()
if os.environ["MM_PROCESS_ID"] == "1":
    {what}
time.sleep({rest})
print("late", flush=True)
distributed.leave(0)
"""


def _two(what, rest, log_dir):
    command = [sys.executable, "-m", "launch.local", f"--log_dir={log_dir}"]
    code = _TWO.format(what=what, rest=rest)
    return subprocess.run(
        [*command, "--devices_per_process=1", "--", sys.executable, "-c", code],
        capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("what", "code", "shown"),
    [
        ("distributed.leave(2)", 2, ""),
        pytest.param("raise KeyError('oops')", 1, "KeyError: 'oops'", marks=pytest.mark.slow),
    ],
)
def test_a_failure_of_one_of_two_ends_both_at_once(tmp_path, what, code, shown):
    done = _two(what, 60, tmp_path)
    assert done.returncode == code and shown in done.stderr and "late" not in done.stdout


@pytest.mark.slow
def test_a_success_waits_for_the_others(tmp_path):
    assert _two("time.sleep(3)", 0, tmp_path).returncode == 0
    assert "late" in (tmp_path / "process-1.log").read_text()
