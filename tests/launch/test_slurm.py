"""launch.slurm against stand-ins of SLURM's commands, and (slow) against SLURM itself."""

import signal
import subprocess
import sys
import time

import pytest

from launch import slurm
from launch.shell import EXISTS, FAILED, NO_MACHINES, PREEMPTED, REFUSED
from tests import runs
from tests.launch import slurm_cluster
from tests.launch.cloud import ROOT, Cloud, checkout_of_this, finish

WORKDIR = "/shared/run"
FLAGS = ("--name=run", "--accelerator=h100", "--gpus_per_node=2", "--poll_seconds=0.05")


@pytest.fixture
def cloud(tmp_path):
    """In a folder whose name needs quotes, and that has sbatch's own sign."""
    return lambda **script: Cloud(tmp_path / "50% of a year's", **script)


def start(cloud, *flags, program=(), workdir=WORKDIR):
    more = ("--", "--config=c.py", f"--workdir={workdir}", *program)
    return cloud.start("slurm", *FLAGS, f"--code={cloud.code}", *flags, *more)


def launch(cloud, *flags, **more):
    return finish(start(cloud, *flags, **more))


def verb(cloud, name):
    arguments = ("--name=run", f"--code={cloud.code}", "--poll_seconds=0.05")
    return cloud.run("slurm", name, *arguments)


def steps_of(text):
    return [line for line in text.splitlines() if line.startswith(("step", "from"))]


def places_of(text):
    return sorted(line.split()[1:] for line in text.splitlines() if line.startswith("place"))


def test_each_task_gets_its_place_and_its_gpu(cloud):
    cloud = cloud()
    done = launch(cloud, "--nodes=1", "--wait")
    places = sorted(
        line.split()[1:] for line in done.stdout.splitlines() if line.startswith("place")
    )
    assert done.returncode == 0, done.stderr
    assert places == [["0", "2", "localhost:20001", "0"], ["1", "2", "localhost:20001", "1"]]
    assert "plan of c.py for h100:2" in done.stdout


def test_gpus_of_a_shared_node_are_those_that_slurm_gave(cloud):
    cloud = cloud()
    cloud.variables["CUDA_VISIBLE_DEVICES"] = "5,7"
    done = launch(cloud, "--wait")
    assert [place[-1] for place in places_of(done.stdout)] == ["5", "7"]


def test_one_process_a_node_sees_all_of_its_gpus(cloud):
    cloud = cloud()
    done = launch(cloud, "--per=node", "--wait")
    assert "place 0 1 localhost:20001 None" in done.stdout and done.returncode == 0


def test_one_that_saved_after_sigterm_is_requeued_and_continues(cloud):
    cloud = cloud()
    done = launch(cloud, "--per=node", "--wait", program=["--config.fail=2:75:1"])
    assert done.returncode == 0 and "requeued (preemptions: 1 of 100)" in done.stdout
    assert steps_of(done.stdout)[2:5] == ["step 2", "from step 2", "step 3"]
    assert ["scontrol", "requeue", "1"] in cloud.calls()


def test_preemptions_have_a_limit(cloud):
    cloud = cloud()
    flags = ("--per=node", "--wait", "--preemptions=2")
    done = launch(cloud, *flags, program=["--config.fail=0:75:9"])
    assert done.returncode == PREEMPTED and steps_of(done.stdout)[-1] == "step 3"
    assert cloud.calls().count(["scontrol", "requeue", "1"]) == 2


def test_a_failed_run_is_requeued_as_often_as_asked(cloud):
    cloud = cloud()
    done = launch(cloud, "--per=node", "--restarts=1", "--wait", program=["--config.fail=2:7:1"])
    assert done.returncode == 0 and "requeued (failures: 1 of 1)" in done.stdout


@pytest.mark.parametrize("code", [1, 2, 7])
def test_the_exit_code_of_a_failed_run_is_passed_on(cloud, code):
    cloud = cloud()
    done = launch(cloud, "--per=node", "--wait", program=[f"--config.fail=2:{code}:9"])
    assert done.returncode == code
    assert not any(call[:2] == ["scontrol", "requeue"] for call in cloud.calls())


def test_a_config_that_does_not_fit_is_not_submitted(cloud):
    cloud = cloud()
    cloud.variables["FAKE_PLAN"] = "1"
    done = launch(cloud)
    assert done.returncode == REFUSED and "does not fit h100:2; not submitted" in done.stderr
    assert cloud.calls() == []


def test_a_refused_job_is_one_line(cloud):
    cloud = cloud(sbatch="refused")
    done = launch(cloud)
    assert done.returncode == NO_MACHINES and done.stderr.count("\n") == 1
    assert "not submitted: sbatch: error: Batch job submission failed" in done.stderr
    shown = verb(cloud, "status")
    assert shown.returncode == NO_MACHINES and "there is no run: no job was" in shown.stderr


def test_stop_lets_it_save_and_keeps_it_from_being_requeued(cloud):
    cloud = cloud()
    assert launch(cloud, program=["--config.wait=2"]).returncode == 0
    saved = [cloud.folder / "bucket" / "shared" / "run" / f"step-{index}" for index in range(2)]
    cloud.wait_for(lambda: all(p.exists() and p.read_text() == "2" for p in saved), "step 2")
    assert "run: job 1, RUNNING" in verb(cloud, "status").stdout
    done = verb(cloud, "stop")
    assert done.returncode == 0 and "main.py with exit code 75" in done.stdout
    assert not any(call[:2] == ["scontrol", "requeue"] for call in cloud.calls())
    assert "not in the queue, main.py ended with exit code 75" in verb(cloud, "status").stdout


def test_a_pending_job_is_cancelled_at_once(cloud):
    cloud = cloud(pending=True)
    assert launch(cloud).returncode == 0
    assert verb(cloud, "stop").returncode == 0
    assert [call for call in cloud.calls() if call[0] == "scancel"] == [["scancel", "1"]]
    done = verb(cloud, "logs")
    assert done.returncode == FAILED and "cancelled or killed before main.py had" in done.stderr


def test_what_is_in_the_queue_is_not_submitted_twice(cloud):
    cloud = cloud(pending=True)
    assert launch(cloud).returncode == 0
    done = launch(cloud)
    assert done.returncode == EXISTS and "run is job 1 already, and PENDING" in done.stderr


def test_what_another_submits_during_the_plan_is_left_alone(cloud, monkeypatch):
    cloud = cloud(pending=True)
    assert launch(cloud).returncode == 0
    job = cloud.code / "launches" / "run" / "job_id"
    number, code = job.read_text(), job.parent / "code"
    job.unlink()
    for key, value in cloud.environment().items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(slurm, "check_plan", lambda *_, **__: job.write_text(number))
    (code / "of_the_other").touch()
    with pytest.raises(slurm.Failure, match="run is job 1 already, and PENDING") as error:
        slurm.work([*FLAGS, f"--code={cloud.code}", "--", "--config=c.py", "--workdir=/shared/run"])
    assert error.value.code == EXISTS and (code / "of_the_other").exists()


def test_interrupted_while_it_waits_the_job_goes_on(cloud):
    cloud = cloud(pending=True)
    process = start(cloud, "--wait")
    cloud.wait_for(lambda: any(call[0] == "squeue" for call in cloud.calls()), "it waits")
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.returncode == 130 and (cloud.folder / "job").exists()
    assert "job 1 goes on" in done.stdout and "launch.slurm stop --name=run" in done.stdout


@pytest.mark.parametrize(
    "flags, workdir, said",
    [
        (("--per=gpu", "--gpus_per_node=0"), WORKDIR, "goes with --per=node"),
        ((), "workdirs/run", "expected an absolute path"),
        (("--nodes=0",), WORKDIR, "not a number from 1 on"),
    ],
)
def test_wrong_flags_are_refused(cloud, flags, workdir, said):
    cloud = cloud()
    done = launch(cloud, *flags, workdir=workdir)
    assert done.returncode == REFUSED and said in done.stderr and cloud.calls() == []


@pytest.fixture
def real(tmp_path):
    """The environment in which SLURM's commands find a cluster of this machine."""
    if reason := slurm_cluster.missing():
        pytest.skip(reason)
    with slurm_cluster.cluster(tmp_path / "slurm") as environment:
        yield runs.environment(1) | {"SLURM_CONF": environment["SLURM_CONF"]}


@pytest.mark.slow
def test_a_real_slurm_runs_two_tasks_requeues_the_saved_run_and_stops_it(real, tmp_path, tokenizer):
    """SIGTERM, as before the end of the time: saved, requeued, continued; then `stop`."""
    code, workdir = checkout_of_this(tmp_path / "50% of a year's"), tmp_path / "run"
    ours = ("--name=run", f"--code={code}", "--poll_seconds=0.5")
    command = [sys.executable, "-m", "launch.slurm"]
    process = subprocess.Popen(
        [
            *(*command, *ours, "--wait", "--gpus_per_node=2", "--accelerator=h100"),
            *("--time=60:00", "--", f"--config=tests/tiny.py:tokenizer={tokenizer}"),
            *(f"--workdir={workdir}", "--config.total_steps=1000000", "--config.log.every_steps=1"),
        ],
        **dict(env=real, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True),
    )
    try:
        log = code / "launches" / "run" / "log.txt"
        wait_until(process, lambda: runs.lines(workdir) > 3, log)
        job = (code / "launches" / "run" / "job_id").read_text().strip()
        subprocess.run(["scancel", "--signal=TERM", job], env=real, check=True)
        wait_until(process, lambda: "requeued (preemptions: 1 of 100)" in log.read_text(), log)
        # SLURM holds it for two minutes; started sooner, the node refuses its old credential
        wait_until(process, lambda: log.read_text().count("launch: job") == 2, log)
        before = len(losses(workdir))
        wait_until(process, lambda: len(losses(workdir)) > before, log)
        stopped = subprocess.run(
            [*command, "stop", *ours], env=real, cwd=ROOT, capture_output=True, text=True
        )
    except BaseException:
        process.terminate()
        raise
    output, _ = process.communicate(timeout=runs.START_SECONDS)
    assert stopped.returncode == 0 and "main.py with exit code 75" in stopped.stdout
    assert process.returncode == PREEMPTED, output
    assert output.count("launch: job") == 2 and "requeued (preemptions: 2" not in output
    steps = [row["step"] for row in losses(workdir)]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > before


def losses(workdir):
    return [row for row in runs.metrics.read(workdir / "metrics.jsonl") if "loss" in row]


def wait_until(process, condition, log):
    deadline = time.monotonic() + runs.START_SECONDS
    while not condition():
        said = log.read_text() if log.exists() else "no log"
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, said
        time.sleep(0.2)
