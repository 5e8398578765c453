import os
import signal
import subprocess
import sys
import time

import pytest

from launch import local

_LAUNCH = [sys.executable, "-m", "launch.local"]
_WAIT = "import time; print('up', flush=True); time.sleep(60)"
_INDEX = "import os, sys, time; index = int(os.environ['MM_PROCESS_ID'])\n"


def _command(log_dir, code, *options):
    return [*_LAUNCH, f"--log_dir={log_dir}", *options, "--", sys.executable, "-c", code]


def _run(log_dir, code, *options):
    return subprocess.run(
        _command(log_dir, code, *options), capture_output=True, text=True, timeout=300
    )


def _wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _start(log_dir, code, *options):
    """Starts two processes that print their pid; returns the launcher and the pids."""
    process = subprocess.Popen(
        _command(log_dir, code, *options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    logs = [log_dir / f"process-{index}.log" for index in range(2)]
    _wait_for(lambda: all(log.exists() and log.read_text().endswith("\n") for log in logs))
    return process, [int(log.read_text().split()[0]) for log in logs]


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


_PID_AND_WAIT = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"


@pytest.mark.parametrize(
    "command, said",
    [
        (["no-such-program"], "no-such-program is not installed, or not on PATH"),
        ([sys.executable, "main.py", "--config=c", "--dry_run"], "put it before --"),
        ([sys.executable, "main.py", "--config=c", "--mode=evl"], "invalid choice: 'evl'"),
    ],
)
def test_a_command_that_cannot_work_is_refused_in_one_line(tmp_path, capsys, command, said):
    with pytest.raises(SystemExit) as error:
        local.main([f"--log_dir={tmp_path / 'logs'}", "--", *command])
    assert error.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "logs").exists()


def test_each_process_gets_its_place_and_its_log(tmp_path):
    code = _INDEX + "print(index, os.environ['MM_NUM_PROCESSES'], os.environ['MM_COORDINATOR'])"
    done = _run(tmp_path, code, "--processes=3")
    logs = [(tmp_path / f"process-{index}.log").read_text().split() for index in range(3)]
    assert done.returncode == 0
    assert [log[:2] for log in logs] == [["0", "3"], ["1", "3"], ["2", "3"]]
    assert len({log[2] for log in logs}) == 1 and logs[0][2].startswith("127.0.0.1:")
    assert logs[0][2] in done.stdout


def test_simulated_devices_replace_the_flag_that_was_there(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_other=1")
    environment = local.child_environment(0, 2, "a:1", 3)
    assert environment["XLA_FLAGS"].split() == [
        "--xla_other=1",
        "--xla_force_host_platform_device_count=3",
    ]
    assert environment["JAX_PLATFORMS"] == "cpu"


def test_one_that_fails_ends_all_with_its_code_and_the_end_of_its_log(tmp_path):
    code = _INDEX + "print('starting'); time.sleep(60 if index == 0 else 0.2); sys.exit(3)"
    begin = time.monotonic()
    done = _run(tmp_path, code)
    assert done.returncode == 3 and time.monotonic() - begin < 50
    assert "process 1 ended with exit code 3" in done.stderr and "starting" in done.stderr


def test_one_killed_by_a_signal_gives_the_shells_code(tmp_path):
    code = _INDEX + "index or time.sleep(60); os.kill(os.getpid(), 9)"
    assert _run(tmp_path, code).returncode == 128 + signal.SIGKILL


@pytest.mark.filterwarnings("ignore:os.fork")  # the launcher itself never loads JAX
def test_a_survivor_that_ignores_sigterm_is_killed(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(local, "_FAILED_GRACE_SECONDS", 0.3)
    code = _INDEX + (
        "import signal; signal.signal(15, signal.SIG_IGN)\n"
        "time.sleep(60) if index else (time.sleep(0.5), sys.exit(4))"
    )
    assert local.run([sys.executable, "-c", code], 2, None, tmp_path, 60.0) == 4
    assert "exit code 4" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_the_code_of_the_saved_run_returned(tmp_path, number):
    code = (
        "import os, signal, sys, time\n"
        "def save(*_): time.sleep(0.3); print('saved', flush=True); sys.exit(75)\n"
        "signal.signal(15, save)\n"
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    process, _ = _start(tmp_path, code)
    process.send_signal(number)
    assert process.wait(timeout=50) == local.PREEMPTED == 75
    assert all("saved" in (tmp_path / f"process-{i}.log").read_text() for i in range(2))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_the_launcher_dies(tmp_path, number):
    process, pids = _start(tmp_path, _PID_AND_WAIT)
    assert all(map(_alive, pids))
    process.send_signal(number)
    process.wait(timeout=50)
    _wait_for(lambda: not any(map(_alive, pids)), seconds=40)


def test_children_of_children_end_too(tmp_path):
    both = tmp_path / "both_have_said_their_child"
    code = (
        "import os, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {_WAIT!r}], stdout=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)\n"
        f"while not os.path.exists({str(both)!r}): time.sleep(0.02)\n"
        "sys.exit(1)"
    )
    process, pids = _start(tmp_path, code)
    both.touch()  # one that ended before would have ended the other, maybe before its line
    assert process.wait(timeout=50) == 1
    _wait_for(lambda: not any(map(_alive, pids)), seconds=40)


def test_without_a_command_it_says_so():
    done = subprocess.run(_LAUNCH, capture_output=True, text=True)
    assert done.returncode == 2 and "no command; put it after --" in done.stderr


# Exits with the number that is next in a file, and 0 when there is none left.
_CODES = (
    "import os, pathlib, sys\n"
    "path = pathlib.Path(sys.argv[1]); codes = path.read_text().split()\n"
    "print('codes', *codes, flush=True)\n"
    "path.write_text(' '.join(codes[1:]))\n"
    "sys.exit(int(codes[0]) if codes else 0)"
)


def _run_codes(tmp_path, codes, *options):
    (tmp_path / "codes").write_text(codes)
    command = [*_LAUNCH, f"--log_dir={tmp_path}", "--processes=1", *options, "--", sys.executable]
    return subprocess.run(
        [*command, "-c", _CODES, str(tmp_path / "codes")],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "codes, options, code, starts",
    [
        ("3 4", (), 3, 1),
        ("3 4", ("--restarts=1",), 4, 2),
        ("3 4", ("--restarts=2",), 0, 3),
        ("75 75", ("--restarts=9",), 75, 1),
        ("75 75", ("--preemptions=2",), 0, 3),
        ("75 3 75", ("--preemptions=2", "--restarts=1"), 0, 4),
        ("2", ("--preemptions=9", "--restarts=9"), 2, 1),
    ],
)
def test_it_is_started_again_as_often_as_asked(tmp_path, codes, options, code, starts):
    done = _run_codes(tmp_path, codes, *options)
    assert done.returncode == code, done.stderr
    log = (tmp_path / "process-0.log").read_text().splitlines()
    assert len(log) == starts and done.stdout.count("codes") == starts


def test_all_processes_are_started_again_when_one_fails(tmp_path):
    code = _INDEX + (
        "import pathlib; path = pathlib.Path(os.environ['FLAG'])\n"
        "first = not path.exists()\n"
        "print('first' if first else 'second', flush=True)\n"
        "if index == 0:\n"
        "    while first: time.sleep(0.02)\n"  # until it gets SIGTERM
        "elif first: path.touch(); sys.exit(5)\n"
    )
    done = subprocess.run(
        _command(tmp_path, code, "--restarts=1"),
        env={**os.environ, "FLAG": str(tmp_path / "flag")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    logs = [(tmp_path / f"process-{index}.log").read_text().split() for index in range(2)]
    assert done.returncode == 0, done.stderr
    assert logs[1] == ["first", "second"] and logs[0][-1] == "second"


def test_after_a_signal_to_the_launcher_nothing_is_started_again(tmp_path):
    process, _ = _start(tmp_path, _PID_AND_WAIT, "--restarts=9", "--preemptions=9")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM


_CLUSTER = """
import os, sys, time
from mm.runtime import distributed
distributed.start()
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from mm.runtime.checkpoint import Checkpointer
from mm.runtime.preemption import PREEMPTED, StopSignals
from mm.evals.retrieval import ranks

stop = StopSignals()
mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
split = NamedSharding(mesh, P("x"))
values = np.arange(4.0, dtype=np.float32)
array = jax.make_array_from_callback((4,), split, lambda index: values[index])
total = jax.jit(jax.shard_map(lambda x: jax.lax.psum(x, "x"), mesh=mesh, in_specs=P("x"),
                              out_specs=P()))(array)
same = np.eye(8, dtype=np.float32)
print("sum", float(total[0]), jax.process_count(), len(jax.devices()),
      ranks(same, same, mesh).tolist(), flush=True)
checkpointer = Checkpointer(sys.argv[1])
wanted = {"w": jax.ShapeDtypeStruct((4,), np.float32, sharding=split)}
if checkpointer.latest_step() is not None:
    state, manifest = checkpointer.restore(wanted)
    mine = {s.index[0].start: float(s.data[0]) for s in state["w"].addressable_shards}
    print("restored", manifest["step"], mine, flush=True)
    checkpointer.close()
    distributed.leave(0)
for step in range(1, 3000):
    time.sleep(0.02)
    if step == 10:
        print("running", flush=True)
    if stop.stop_requested(step):
        checkpointer.save(step, {"w": array}, {})
        checkpointer.close()
        print("stopped", step, flush=True)
        distributed.leave(PREEMPTED)
"""


@pytest.mark.slow
def test_two_jax_processes_compute_stop_at_one_step_save_and_restore(tmp_path):
    """SIGTERM to one of them alone must stop both after the same step."""
    script = tmp_path / "run.py"
    script.write_text(_CLUSTER)
    logs = [tmp_path / "logs" / f"process-{index}.log" for index in range(2)]
    command = [*_LAUNCH, f"--log_dir={tmp_path / 'logs'}", "--devices_per_process=2", "--"]
    command += [sys.executable, str(script), str(tmp_path / "checkpoints")]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(command, env=environment)
    _wait_for(lambda: all(log.exists() and "running" in log.read_text() for log in logs))
    children = subprocess.run(
        ["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True
    )
    os.kill(int(children.stdout.split()[1]), signal.SIGTERM)
    assert process.wait(timeout=240) == local.PREEMPTED
    texts = [log.read_text() for log in logs]
    assert all(f"sum 6.0 2 4 {[0] * 8}" in text for text in texts)
    (first, second) = [text.split("stopped ")[1].split()[0] for text in texts]
    assert first == second

    assert subprocess.run(command, env=environment, timeout=300).returncode == 0
    shards = [log.read_text().split("restored ")[1].strip() for log in logs]
    assert shards == [f"{first} {{0: 0.0, 1: 1.0}}", f"{first} {{2: 2.0, 3: 3.0}}"]
