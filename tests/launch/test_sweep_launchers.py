"""launch.sweep over the launchers, whose gcloud, kubectl and sbatch are stand-ins; its pool."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch import pool, sweep
from launch.pool import Failure, Job, Pool
from launch.shell import EXISTS, FAILED, NO_MACHINES, PREEMPTED
from tests.launch import fakes
from tests.launch.cloud import SECONDS, Cloud

FILE = """
def get_sweep():
    return dict(
        config="c.py",
        axes=dict(list={"narrow": {}, "wide": {"width": 8}}),
        metric="unseen/score",
        seeds=1,
        budget=dict(examples=800),
    )
"""
# main.py on the hosts: the run that the sweep's other tests have.
MAIN = f"""
import os, sys
if "--mode=plan" not in sys.argv:
    os.execv(sys.executable, [sys.executable, {fakes.__file__!r}, "run", *sys.argv[1:]])
"""
FLAGS = {
    "slurm": "--wait --per=node --gpus_per_node=0",
    "tpu_vm": "--accelerator=v5litepod-4 --zone=z --keep",
    "gke": "--accelerator=v6e-4 --image=I",
}


class Sweep:
    """A sweep of two arms and a seed, of which the first is finished, by a launcher."""

    def __init__(self, folder: Path, launcher: str, monkeypatch, **script):
        self.cloud, self.workdir = Cloud(folder / "cloud", workers=1, **script), folder / "runs"
        (self.cloud.code / "main.py").write_text(MAIN)
        (folder / "widths.py").write_text(FILE)
        self.file, self.runs = folder / "widths.py", str(self.workdir)
        code = f"--code={self.cloud.code} --poll_seconds=0.05"
        self.command = f"{sys.executable} -m launch.{launcher} {FLAGS[launcher]} {code} --"
        self.finish("narrow")
        for key, value in self.cloud.environment().items():
            monkeypatch.setenv(key, value)
        monkeypatch.setattr(sweep, "COST", fakes.COST)
        monkeypatch.setattr(sweep, "TABLE", ["true"])
        monkeypatch.setattr(pool, "_POLL_SECONDS", 0.02)

    def finish(self, arm: str) -> None:
        (self.workdir / arm / "seed-0").mkdir(parents=True, exist_ok=True)
        (self.workdir / arm / "seed-0" / "results.json").write_text('{"unseen/score": 1}')

    def run(self) -> int:
        flags = [f"--workdir={self.workdir}", f"--runs={self.runs}", f"--launcher={self.command}"]
        return sweep.main([str(self.file), *flags])

    def start_alone(self, monkeypatch, command: str) -> tuple[subprocess.Popen, int]:
        """The launcher of the second arm as a sweep that was killed left it; the run's pid."""
        monkeypatch.setenv("FAKE_HOLD", "wide/seed-0")
        flags = fakes.flags_of(self.workdir / "wide/seed-0")
        none = subprocess.DEVNULL
        process = subprocess.Popen([*command.split(), *flags], stdout=none, stderr=none)
        path = self.workdir / "wide/seed-0/pid"
        self.cloud.wait_for(lambda: path.exists() and path.read_text().endswith("\n"), "it runs")
        monkeypatch.delenv("FAKE_HOLD")
        return process, int(path.read_text())

    def log(self) -> str:
        return (self.workdir / "wide/seed-0/run.log").read_text()


def test_a_run_that_is_live_is_not_finished_and_no_failure(tmp_path, monkeypatch, capfd):
    one = Sweep(tmp_path, "slurm", monkeypatch)
    process, _ = one.start_alone(monkeypatch, one.command.replace("--wait ", ""))
    assert process.wait(timeout=SECONDS) == 0
    assert one.run() == PREEMPTED
    said = capfd.readouterr().out
    assert (
        f"wide/seed-0: NOT FINISHED, there are no results: exit code {EXISTS}: launch.slurm" in said
    )
    assert "is job 1 already, and RUNNING" in said and "FAILED" not in said
    name = next((one.cloud.code / "launches").glob("mm-c-*")).name
    stop = ("stop", f"--name={name}", f"--code={one.cloud.code}", "--poll_seconds=0.05")
    assert one.cloud.run("slurm", *stop).returncode == 0
    assert one.run() == 0 and "wide/seed-0: finished" in capfd.readouterr().out
    assert "is job 1 already" in one.log() and "main.py ended with exit code 0" in one.log()


def test_a_job_that_is_not_taken_is_not_finished_and_says_why(tmp_path, monkeypatch, capfd):
    one = Sweep(tmp_path, "slurm", monkeypatch, sbatch="refused")
    assert one.run() == PREEMPTED
    wanted = f"exit code {NO_MACHINES}: launch.slurm: error: not submitted: sbatch: error: Batch"
    assert wanted in capfd.readouterr().out


def test_machines_that_a_killed_sweep_left_are_taken_up(tmp_path, monkeypatch, capfd):
    one = Sweep(tmp_path, "tpu_vm", monkeypatch)
    process, pid = one.start_alone(monkeypatch, one.command)
    process.kill()
    process.wait(timeout=SECONDS)
    os.kill(pid, signal.SIGTERM)  # it saves, and would wait for that for ever
    assert one.run() == 0
    said = capfd.readouterr().out
    assert "wide/seed-0: finished" in said and one.cloud.verbs().count("create") == 1
    assert "exists already and is ACTIVE; going on with it" in one.log()
    (name,) = one.cloud.resources()
    assert f"  launch.tpu_vm: LEFT: {name} costs money." in said, "--keep"
    assert f"python -m launch.tpu_vm stop --name={name} --zone=z" in said
    assert "launch.sweep: LEFT by wide/seed-0: see above, or run.log\n" in said


def test_what_waits_in_a_cluster_is_not_finished(tmp_path, monkeypatch, capfd):
    one = Sweep(tmp_path, "gke", monkeypatch)
    one.runs = "gs://bucket/runs"
    monkeypatch.setattr(sweep, "is_finished", lambda run, runs: run.name.startswith("narrow"))
    monkeypatch.setattr(sweep, "check_results", lambda run, runs, metric: None)
    assert one.run() == PREEMPTED
    assert (
        "wide/seed-0: NOT FINISHED, there are no results: exit code 0\n" in capfd.readouterr().out
    )
    assert one.run() == PREEMPTED
    said = capfd.readouterr().out
    assert f"exit code {EXISTS}: launch.gke: error: mm-c-" in said
    assert "exists already and is Pending" in said


def run_in_pool(folder, program, monkeypatch):
    """Of one job; (whether it was told to stop, its failure, what the pool knows of)."""
    monkeypatch.setattr(pool, "_POLL_SECONDS", 0.02)
    found = []

    def ended(job, failure):
        found.append(failure)
        return "ended"

    one = Pool(1, pin=False, environment=os.environ, grace_seconds=None)
    job = Job("a", ["bash", "-c", program], folder / "run.log")
    return one.run([job], ended), *found, one.left


def test_the_log_of_a_run_grows_from_start_to_start(tmp_path, monkeypatch):
    run_in_pool(tmp_path, "echo first", monkeypatch)
    _, failure, _ = run_in_pool(tmp_path, "exit 3", monkeypatch)
    assert failure == Failure(3, ""), "the line above is not of this start"
    assert (tmp_path / "run.log").read_text() == "first\n"


@pytest.mark.parametrize(
    "lines, why",
    [
        (["error: nan", "launch: main.py ended with exit code 1"], "error: nan"),
        (["error: nan", "launch.tpu_vm: x is deleted; exit code 1"], "error: nan"),
        (["step 3", "launch.tpu_vm: error: quota: no", ""], "launch.tpu_vm: error: quota: no"),
        (["launch.gke: waits"], "launch.gke: waits"),
    ],
)
def test_the_line_of_a_failure_is_the_one_that_says_why(tmp_path, monkeypatch, lines, why):
    program = "\n".join(f"echo '{line}'" for line in lines)
    _, failure, _ = run_in_pool(tmp_path, f"{program}\nexit 1", monkeypatch)
    assert failure == Failure(FAILED, why)


LEFT = "echo 'launch.tpu_vm: LEFT: x costs money; run'; echo '  delete x'"


def test_what_is_left_is_told_with_what_to_do_and_is_no_reason(tmp_path, monkeypatch, capsys):
    program = f"echo '  not this'; echo 'error: nan'; {LEFT}; echo y; echo '  nor this'; exit 1"
    _, failure, left = run_in_pool(tmp_path, program, monkeypatch)
    said = capsys.readouterr().out
    assert "  launch.tpu_vm: LEFT: x costs money; run\n    delete x\n" in said and left == ["a"]
    assert "this" not in said and failure.last_line == "nor this"


def test_what_is_left_is_told_when_it_was_told_to_stop(tmp_path, monkeypatch, capsys):
    """As a launcher whose run goes on elsewhere; it has as long as it takes."""
    program = f'trap "{LEFT}; exit 143" TERM; kill $PPID; sleep 60 & wait'
    stopped, left = run_in_pool(tmp_path, program, monkeypatch)
    assert stopped and left == ["a"] and "LEFT: x costs money" in capsys.readouterr().out
