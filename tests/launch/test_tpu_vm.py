"""The whole of launch.tpu_vm against a gcloud whose hosts are folders and processes here."""

import json
import os
import signal
from hashlib import sha256

import pytest

from launch import tpu_machine, tpu_vm
from launch.shell import EXISTS, NO_MACHINES, NOT_PREPARED, PREEMPTED, REFUSED, Done
from tests.launch.cloud import Cloud, finish

WORKDIR = "gs://bucket/run"
FLAGS = ("--accelerator=v5litepod-8", "--zone=z", "--name=run", "--poll_seconds=0.05")


@pytest.fixture
def cloud(tmp_path):
    return lambda workers=1, **script: Cloud(tmp_path, workers=workers, **script)


def launch(cloud, *flags, program=()):
    more = ("--", "--config=c.py", f"--workdir={WORKDIR}", *program)
    return cloud.run("tpu_vm", *FLAGS, f"--code={cloud.code}", *flags, *more)


def start(cloud, *flags, program=()):
    more = ("--", "--config=c.py", f"--workdir={WORKDIR}", *program)
    return cloud.start("tpu_vm", *FLAGS, f"--code={cloud.code}", *flags, *more)


def verb(cloud, name):
    return cloud.run("tpu_vm", name, "--zone=z", "--name=run", "--poll_seconds=0.05")


def line(done):
    """The one line of the error."""
    lines = [each for each in done.stderr.splitlines() if each.startswith("launch.")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def steps(done):
    return [each for each in done.stdout.splitlines() if each.startswith(("step", "from"))]


def test_a_run_is_planned_created_prepared_followed_and_deleted(cloud):
    cloud = cloud(workers=2, states=[["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]])
    done = launch(cloud, "--spot")
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("plan of c.py for v5e:2x4") < done.stdout.index("is PROVISIONING")
    assert steps(done) == ["from step 0", *(f"step {step}" for step in range(1, 6))]
    assert "run is deleted; exit code 0" in done.stdout and cloud.resources() == []
    created = next(call for call in cloud.calls() if call[3] == "create")
    assert {"--spot", "--accelerator-type=v5litepod-8", "--node-id=run"} <= set(created)
    installed = (cloud.folder / "installed").read_text().split()
    assert sorted(installed[::2]) == ["0", "0", "1", "1"]
    assert installed[1:4:2] == ["code/requirements.txt", "code/requirements-tpu.txt"]


def test_hosts_get_the_code_as_it_is_with_its_revision_and_diff(cloud):
    cloud = cloud(workers=2)
    (cloud.code / "main.py").write_text((cloud.code / "main.py").read_text() + "print('edited')\n")
    (cloud.code / "new.py").write_text("NEW = 1\n")
    done = launch(cloud, "--keep")
    sent = cloud.folder / "hosts" / "run" / "1" / "mm" / "code"
    record = json.loads((sent / "revision.json").read_text())
    diff = (sent / "dirty.diff").read_text()
    assert "edited" in done.stdout and (sent / "new.py").read_text() == "NEW = 1\n"
    assert record["dirty"] and record["revision"] in done.stdout
    assert "+print('edited')" in diff and "+NEW = 1" in diff
    assert "of main.py, new.py" in done.stdout
    assert json.dumps(record) in done.stdout  # in the run's own log too
    kept = json.loads((cloud.code / "launches" / "run.z" / "launch.json").read_text())
    assert kept["diff_sha256"] == record["diff_sha256"] == sha256(diff.encode()).hexdigest()[:12]
    assert f"sha256 {kept['diff_sha256']}" in done.stdout


def test_a_config_that_does_not_fit_is_not_submitted(cloud):
    cloud = cloud()
    cloud.variables["FAKE_PLAN"] = "1"
    done = launch(cloud)
    assert done.returncode == REFUSED and "does not fit v5e:2x4; not submitted" in line(done)
    assert cloud.verbs() == ["describe"]


def test_force_submits_what_does_not_fit(cloud):
    cloud = cloud()
    cloud.variables["FAKE_PLAN"] = "1"
    done = launch(cloud, "--force")
    assert done.returncode == 0 and "submitted all the same" in done.stdout


def test_a_plan_that_cannot_be_made_is_not_submitted_either(cloud):
    cloud = cloud()
    cloud.variables["FAKE_PLAN"] = "2"
    done = launch(cloud)
    assert done.returncode == REFUSED and "the plan ended with exit code 2" in line(done)
    assert cloud.verbs() == ["describe"]


@pytest.mark.parametrize(
    "script, code, said",
    [
        (dict(create=["quota"]), NO_MACHINES, "quota: ERROR"),
        (dict(create=["denied"]), NO_MACHINES, "not created: ERROR"),
        (dict(states=[["WAITING_FOR_RESOURCES", "FAILED"]]), NO_MACHINES, "no more capacity"),
    ],
)
def test_no_machines_is_one_line_and_nothing_is_left(cloud, script, code, said):
    cloud = cloud(**script)
    done = launch(cloud)
    assert done.returncode == code and said in line(done)
    assert cloud.resources() == [] and "delete" in cloud.verbs()


def test_a_request_that_waits_too_long_is_deleted(cloud, monkeypatch):
    cloud = cloud(states=[["WAITING_FOR_RESOURCES"]])
    now = [0.0]
    monkeypatch.setattr(tpu_machine.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(tpu_machine.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + 30))
    for key, value in cloud.environment().items():
        monkeypatch.setenv(key, value)
    arguments = [*FLAGS, f"--code={cloud.code}", "--wait_minutes=2"]
    with pytest.raises(
        tpu_vm.Failure, match="still WAITING_FOR_RESOURCES after 2 minutes"
    ) as error:
        tpu_vm.work([*arguments, "--", "--config=c.py", f"--workdir={WORKDIR}"])
    assert error.value.code == NO_MACHINES and cloud.resources() == []


def test_what_is_somebody_elses_is_neither_used_nor_deleted(cloud):
    cloud = cloud()
    (cloud.folder / "resources").mkdir()
    (cloud.folder / "resources" / "run.json").write_text('{"states": ["ACTIVE"]}')
    done = launch(cloud)
    assert done.returncode == EXISTS and "run exists already and is ACTIVE" in line(done)
    assert cloud.resources() == ["run"] and "delete" not in cloud.verbs()


def test_one_that_came_up_between_is_not_deleted(cloud):
    cloud = cloud(create=["exists"])
    done = launch(cloud)
    assert done.returncode == EXISTS and "is left alone" in line(done)
    assert "delete" not in cloud.verbs()


def test_half_the_workers_failing_the_install_ends_it(cloud):
    cloud = cloud(workers=4)
    cloud.variables["FAKE_INSTALL_FAILS_ON"] = "1 3"
    done = launch(cloud, "--accelerator=v5litepod-16")
    assert done.returncode == NOT_PREPARED
    assert "packages were not installed (on 2 of 4 workers)" in line(done)
    assert "Failed to fetch a package" in line(done)
    assert cloud.resources() == [] and done.stdout.count("trying again") == 2


def test_a_preempted_run_is_created_anew_and_continues(cloud):
    cloud = cloud(preempt=["step 3"])
    done = launch(cloud, "--spot", program=["--config.wait=3"])
    assert done.returncode == 0, done.stderr
    assert cloud.verbs().count("create") == 2 and cloud.resources() == []
    assert "the machines are SUSPENDED: preemption 1; the run continues" in done.stdout
    assert steps(done)[3:] == ["step 3", "from step 3", "step 4", "step 5"]


def test_too_many_preemptions_end_it(cloud):
    cloud = cloud(preempt=["step 1", "from step 1"])
    done = launch(cloud, "--spot", "--preemptions=1", program=["--config.wait=1"])
    assert done.returncode == PREEMPTED and "gave up after 1 preemptions" in line(done)
    assert cloud.resources() == []


def test_preemption_before_the_start_counts_too(cloud):
    cloud = cloud(states=[["PROVISIONING", "SUSPENDING", "SUSPENDED"]])
    done = launch(cloud)
    assert done.returncode == 0 and cloud.verbs().count("create") == 2
    assert cloud.resources() == []


def test_a_broken_connection_loses_no_line_and_shows_none_twice(cloud):
    cloud = cloud(breaks=2)
    done = launch(cloud)
    assert done.returncode == 0 and cloud.verbs().count("create") == 1
    assert steps(done) == ["from step 0", *(f"step {step}" for step in range(1, 6))]


def test_the_exit_code_of_a_failed_run_is_passed_on(cloud):
    cloud = cloud()
    done = launch(cloud, program=["--config.fail=2:7:9"])
    assert done.returncode == 7 and cloud.resources() == []


def test_a_failed_run_is_started_again_on_the_same_machines(cloud):
    cloud = cloud()
    done = launch(cloud, "--restarts=1", program=["--config.fail=2:7:1"])
    assert done.returncode == 0 and "restart 1 of 1" in done.stdout
    assert cloud.verbs().count("create") == 1
    assert [each for each in steps(done) if "from" in each] == ["from step 0", "from step 2"]


def test_wrong_input_is_not_started_again(cloud):
    cloud = cloud()
    done = launch(cloud, "--restarts=5", program=["--config.fail=1:2:9"])
    assert done.returncode == 2 and steps(done).count("from step 0") == 1


def test_one_that_saved_after_sigterm_is_started_again(cloud):
    cloud = cloud()
    done = launch(cloud, program=["--config.fail=2:75:1"])
    assert done.returncode == 0 and "main.py was stopped, by SIGTERM or" in done.stdout


def test_a_resource_that_cannot_be_deleted_is_said_loudly(cloud, monkeypatch, capsys):
    cloud = cloud(delete_fails=999)
    monkeypatch.setattr(tpu_machine, "_DELETE_TRIES", 2)
    for key, value in cloud.environment().items():
        monkeypatch.setenv(key, value)
    more = (f"--code={cloud.code}", "--", "--config=c.py", f"--workdir={WORKDIR}")
    assert tpu_vm.work([*FLAGS, *more]) == 1 and cloud.resources() == ["run"]
    said = capsys.readouterr().err
    assert "launch.tpu_vm: LEFT: run could NOT be deleted and may cost money; run\n" in said
    assert "  gcloud compute tpus queued-resources delete run --zone=z --force\n" in said


def test_deleting_is_tried_again(cloud):
    cloud = cloud(delete_fails=2, create=["quota"])
    assert launch(cloud).returncode == NO_MACHINES and cloud.resources() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_while_waiting_it_deletes_the_request(cloud, number):
    cloud = cloud(states=[["WAITING_FOR_RESOURCES"]])
    process = start(cloud)
    cloud.wait_for(lambda: cloud.verbs().count("describe") > 2, "it waits for machines")
    process.send_signal(number)
    done = finish(process)
    assert done.returncode == 128 + number and cloud.resources() == []
    assert "run is deleted" in done.stdout


def test_it_deletes_the_request_also_when_nobody_reads_what_it_says(cloud):
    """As `... | tee log` after Ctrl-C, which ends both."""
    cloud = cloud(states=[["WAITING_FOR_RESOURCES"]])
    process = start(cloud)
    cloud.wait_for(lambda: cloud.verbs().count("describe") > 2, "it waits for machines")
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    process.wait(timeout=120)
    assert cloud.resources() == []


def test_interrupted_while_running_it_leaves_the_run_and_says_so(cloud):
    cloud = cloud()
    process = start(cloud, program=["--config.wait=2"])
    checkpoints = cloud.folder / "bucket" / "gs" / "bucket" / "run"
    cloud.wait_for(lambda: reads(checkpoints / "step-0", "2"), "step 2")
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.returncode == 130 and cloud.resources() == ["run"]
    assert "LEFT: run costs money" in done.stdout
    for each in ("logs", "attach", "stop"):
        command = f"python -m launch.tpu_vm {each} --name=run --zone=z --code={cloud.code}"
        assert f"  {command}\n" in done.stdout
    shown = verb(cloud, "status")
    assert shown.returncode == 0 and "run: ACTIVE, main.py running, attempt 1" in shown.stdout

    stopped = verb(cloud, "stop")
    assert stopped.returncode == 0 and "main.py ended with exit code 75" in stopped.stdout
    assert cloud.resources() == []
    gone = verb(cloud, "status")
    assert gone.returncode == NO_MACHINES and "NOT_FOUND" in gone.stdout


def test_status_of_what_cannot_be_asked_is_no_success(cloud):
    cloud = cloud()
    (cloud.folder / "resources").mkdir()
    (cloud.folder / "resources" / "run.json").write_text('{"states": ["BREAKS"]}')
    done = verb(cloud, "status")
    assert done.returncode == NO_MACHINES and "run: UNKNOWN (" in done.stdout


def test_hosts_get_the_cache_of_compiled_programs(cloud):
    cloud = cloud()
    cloud.variables["JAX_COMPILATION_CACHE_DIR"] = "gs://bucket/cache"
    done = launch(cloud)
    assert done.returncode == 0 and "cache gs://bucket/cache" in done.stdout
    cloud.variables["JAX_COMPILATION_CACHE_DIR"] = "/here"
    done = launch(cloud, "--dry_run")
    assert done.returncode == 0 and "JAX_COMPILATION_CACHE_DIR" not in done.stdout


def reads(path, text):
    return path.exists() and path.read_text() == text


def test_the_same_command_goes_on_where_a_killed_launcher_left(cloud):
    cloud = cloud(workers=2)
    process = start(cloud, program=["--config.wait=2", "--config.steps=4"])
    checkpoints = cloud.folder / "bucket" / "gs" / "bucket" / "run"
    cloud.wait_for(lambda: reads(checkpoints / "step-0", "2"), "step 2")
    alone = launch(cloud, program=["--config.wait=2", "--config.steps=4"])
    assert alone.returncode == EXISTS and "another launcher is at work on run" in line(alone)
    process.kill()
    process.wait(timeout=120)  # what it started, ssh say, may still have its output open
    again = start(cloud, program=["--config.wait=2", "--config.steps=4"])
    assert "code: " in again.stdout.readline()
    assert "run exists already and is ACTIVE; going on with it" in again.stdout.readline()
    assert "launch: " in again.stdout.readline()  # the log from its beginning
    (pid,) = (cloud.folder / "hosts" / "run").glob("0/mm/pid")
    os.kill(int(pid.read_text()), signal.SIGTERM)  # as a maintenance does: 75, and started again
    (pid,) = (cloud.folder / "hosts" / "run").glob("1/mm/pid")
    os.kill(int(pid.read_text()), signal.SIGTERM)
    done = finish(again)
    assert done.returncode == 0, done.stderr
    assert "main.py is started, attempt 2" in done.stdout and cloud.resources() == []


def test_attach_knows_how_it_was_launched_and_after_a_preemption_sends_the_same_code(cloud):
    cloud = cloud()
    process = start(cloud, "--spot", "--preemptions=7", program=["--config.wait=2"])
    checkpoints = cloud.folder / "bucket" / "gs" / "bucket" / "run"
    cloud.wait_for(lambda: reads(checkpoints / "step-0", "2"), "step 2")
    process.send_signal(signal.SIGINT)
    finish(process)
    (cloud.code / "main.py").write_text("edited since: not what runs")
    flags, _ = tpu_vm.read_flags(["attach", "--name=run", "--zone=z", f"--code={cloud.code}"])
    assert flags.spot and flags.preemptions == 7 and flags.accelerator == "v5litepod-8"
    again = cloud.start("tpu_vm", "attach", "--name=run", "--zone=z", f"--code={cloud.code}")
    first = again.stdout.readline()
    assert "launch: " in first
    resource = cloud.folder / "resources" / "run.json"
    resource.write_text(json.dumps({"states": ["SUSPENDED"], "preempt": None}))
    for pid in (cloud.folder / "hosts" / "run").glob("*/mm/pid"):
        os.killpg(int(pid.read_text()), signal.SIGKILL)
    done = finish(again)
    assert done.returncode == 0, done.stderr
    creations = [call for call in cloud.calls() if call[3] == "create"]
    assert len(creations) == 2 and creations[0] == creations[1] and "--spot" in creations[1]
    assert steps(done)[-1] == "step 5" and cloud.resources() == []


@pytest.mark.parametrize(
    "states, creations, said",
    [
        (["WAITING_FOR_RESOURCES", "ACTIVE"], 0, "run is ACTIVE, and costs money from now on"),
        (["ACTIVE"], 0, "main.py is started, attempt 1"),  # and nothing is on it
        (["SUSPENDED"], 1, "the machines are SUSPENDED: preemption 1; the run continues"),
    ],
)
def test_attach_takes_up_machines_in_any_state(cloud, states, creations, said):
    """From a machine that launched nothing, so that it says which code it has."""
    cloud = cloud()
    (cloud.folder / "resources").mkdir()
    resource = json.dumps({"states": states, "preempt": None})
    (cloud.folder / "resources" / "run.json").write_text(resource)
    (cloud.folder / "hosts" / "run" / "0").mkdir(parents=True)
    done = launch(cloud, "attach", program=["--config.steps=1"])
    assert done.returncode == 0, done.stderr
    assert said in done.stdout and steps(done) == ["from step 0", "step 1"]
    assert "launched elsewhere; after a preemption it gets code: " in done.stdout
    assert cloud.verbs().count("create") == creations and cloud.resources() == []


@pytest.mark.parametrize("name", ["attach", "stop"])
def test_what_is_not_there_is_neither_attached_to_nor_stopped(cloud, name):
    cloud = cloud()
    done = launch(cloud, name)
    assert done.returncode == NO_MACHINES and "there is no run " in line(done)
    assert cloud.verbs() == ["describe"]


def kept_by_a_launch(cloud, *flags):
    """As a launch leaves it; (the flags of `attach`, given `more`)."""
    path = cloud.code / "launches" / "run.z" / "launch.json"
    path.parent.mkdir(parents=True)
    parsed, _ = tpu_vm.read_flags([*FLAGS, *flags, "--", "--config=c.py", f"--workdir={WORKDIR}"])
    kept = {key: value for key, value in vars(parsed).items() if key not in ("verb", "code")}
    record = {"flags": kept, "run": ["--config=c.py", f"--workdir={WORKDIR}"]}
    path.write_text(json.dumps(record))

    def attach(*more):
        given = ["attach", "--name=run", "--zone=z", f"--code={cloud.code}", *more]
        return tpu_vm.read_flags(given)[0]

    return attach


def test_attach_takes_back_flags_of_the_launch(cloud):
    attach = kept_by_a_launch(cloud(), "--spot", "--keep", "--create_flag=--a", "--project=p")
    assert attach().spot and attach().keep and attach().create_flag == ["--a"]
    found = attach("--no-spot", "--reserved", "--no-keep", "--create_flag=--b", "--project=")
    assert (found.spot, found.reserved, found.keep) == (False, True, False)
    assert found.create_flag == ["--b"] and not found.project


def test_a_launch_in_another_zone_is_another(cloud, capsys):
    attach = kept_by_a_launch(cloud(), "--spot")
    with pytest.raises(SystemExit):
        attach("--zone=y")
    assert "--accelerator=NAME is missing" in capsys.readouterr().err


def test_a_run_that_failed_since_another_host_rebooted_is_started_again(cloud):
    cloud = cloud(workers=2)
    failures = cloud.folder / "bucket" / "gs" / "bucket" / "run" / "failures-1"
    failures.parent.mkdir(parents=True)
    failures.write_text("1")  # host 1 does not fail of itself
    assert launch(cloud, "--keep", program=["--config.fail=2:7:1"]).returncode == 7
    host = cloud.folder / "hosts" / "run" / "1" / "mm"
    cloud.wait_for(lambda: (host / "exit_code").exists(), "host 1 has ended")
    (host / "exit_code").unlink()
    (host / "boot").write_text("another")
    done = launch(cloud, "attach", program=["--config.fail=2:7:1"])
    assert done.returncode == 0, done.stderr
    assert "with its host: preemption 1; the run continues" in done.stdout
    assert "main.py is started, attempt 2" in done.stdout and "restart" not in done.stdout


def test_a_run_that_failed_while_its_machines_were_taken_away_was_preempted(monkeypatch):
    """Host by host: worker 0 may see its peers die, and say so, before it goes too."""
    flags, _ = tpu_vm.read_flags([*FLAGS, "--", "--config=c.py", f"--workdir={WORKDIR}"])
    machine = tpu_machine.Machine(tpu_vm.Shell("tpu_vm", False), flags, None)
    monkeypatch.setattr(machine, "_ssh", lambda *given, **more: Done(255, "ended 134 1\n"))
    monkeypatch.setattr(machine, "state", lambda: ("SUSPENDED", ""))
    with pytest.raises(tpu_machine.Gone, match="SUSPENDED"):
        machine.was_stopped()


def test_a_host_that_lost_everything_is_prepared_again(monkeypatch):
    """Google puts another in its place."""
    flags, _ = tpu_vm.read_flags([*FLAGS, "--", "--config=c.py", f"--workdir={WORKDIR}"])
    machine = tpu_machine.Machine(tpu_vm.Shell("tpu_vm", False), flags, None)
    answers = [tpu_machine.Answer("prepared", None, 0), tpu_machine.Answer("ended", 0, 2)]
    done = []
    monkeypatch.setattr(machine, "follow", lambda: answers.pop(0))
    for verb in ("wait", "prepare", "start", "check_present"):
        monkeypatch.setattr(machine, verb, lambda *given, verb=verb: done.append(verb))
    supervision = tpu_vm.Supervision(machine, tpu_vm.Run((), None, None, "train", ()))
    supervision.created = supervision.started = True
    assert supervision._live() == 0 and done == ["wait", "prepare", "start"]


def test_logs_of_what_was_never_started_are_no_success(monkeypatch):
    flags, _ = tpu_vm.read_flags(["logs", "--zone=z", "--name=run"])
    machine = tpu_machine.Machine(tpu_vm.Shell("tpu_vm", False), flags, None)
    monkeypatch.setattr(machine, "follow", lambda: tpu_machine.Answer("prepared", None, 0))
    with pytest.raises(tpu_vm.Failure, match="main.py was not started yet") as error:
        tpu_vm.logs(machine)
    assert error.value.code == NO_MACHINES


def test_a_host_that_rebooted_is_not_taken_for_one_that_runs(cloud):
    """Its process number may be that of another process by then."""
    cloud = cloud()
    process = start(cloud, program=["--config.wait=2"])
    checkpoints = cloud.folder / "bucket" / "gs" / "bucket" / "run"
    cloud.wait_for(lambda: reads(checkpoints / "step-0", "2"), "step 2")
    process.send_signal(signal.SIGINT)
    finish(process)
    host = cloud.folder / "hosts" / "run" / "0" / "mm"
    (host / "boot").write_text("another")
    assert "main.py ended with exit code 75, attempt 1" in verb(cloud, "status").stdout
    os.killpg(int((host / "pid").read_text()), signal.SIGKILL)
    done = launch(cloud, "attach")
    assert done.returncode == 0, done.stderr
    assert "main.py was stopped, by SIGTERM or with its host: preemption 1" in done.stdout
    assert cloud.verbs().count("create") == 1 and steps(done)[-1] == "step 5"


def stopped_here(cloud, monkeypatch, *flags):
    """`stop` in this process, without waiting; returns the Failure or None."""
    monkeypatch.setattr(tpu_machine.time, "sleep", lambda seconds: None)
    for key, value in cloud.environment().items():
        monkeypatch.setenv(key, value)
    try:
        tpu_vm.work(["stop", "--zone=z", "--name=run", *flags])
    except tpu_vm.Failure as error:
        return error


@pytest.mark.parametrize("breaks, gone", [(2, True), (9, False)])
def test_stop_asks_again_before_it_deletes(cloud, monkeypatch, breaks, gone):
    cloud = cloud()
    (cloud.folder / "resources").mkdir()
    states = ["BREAKS"] * breaks + ["FAILED"]
    (cloud.folder / "resources" / "run.json").write_text(json.dumps({"states": states}))
    error = stopped_here(cloud, monkeypatch)
    assert (cloud.resources() == []) == gone == (error is None)
    assert gone or ("gcloud does not answer, nothing was done" in str(error) and error.code == 69)


def test_stop_leaves_a_host_that_does_not_answer_unless_forced(cloud, monkeypatch):
    cloud = cloud()
    (cloud.folder / "resources").mkdir()
    resource = '{"states": ["ACTIVE"], "preempt": null}'
    (cloud.folder / "resources" / "run.json").write_text(resource)
    error = stopped_here(cloud, monkeypatch)
    assert "nothing was deleted (--force" in str(error) and cloud.resources() == ["run"]
    assert stopped_here(cloud, monkeypatch, "--force") is None and cloud.resources() == []


def test_a_host_that_is_silent_for_an_hour_is_left_and_the_launcher_ends(cloud, monkeypatch):
    cloud = cloud()
    now = [0.0]
    monkeypatch.setattr(tpu_machine.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(tpu_machine.time, "sleep", lambda s: now.__setitem__(0, now[0] + 1000))
    flags, _ = tpu_vm.read_flags(["logs", "--zone=z", "--name=run"])
    machine = tpu_machine.Machine(tpu_vm.Shell("tpu_vm", False), flags, None)
    monkeypatch.setattr(machine.shell, "stream", lambda command: (255, 0))
    monkeypatch.setattr(machine, "ask", lambda: None)
    monkeypatch.setattr(machine, "state", lambda: ("UNKNOWN", "no network"))
    with pytest.raises(tpu_vm.Failure, match="nothing was heard of main.py for an hour"):
        tpu_vm.logs(machine)
    assert 3600 < now[0] < 7200
    supervision = tpu_vm.Supervision(machine, None)
    supervision.created = supervision.started = True
    with pytest.raises(tpu_vm.Failure, match="it may go on without me") as error:
        supervision._guarded()
    assert error.value.code == NO_MACHINES and "delete" not in cloud.verbs()


def test_interrupted_stop_says_that_all_may_be_there(cloud):
    cloud = cloud()
    process = start(cloud, program=["--config.wait=2"])
    checkpoints = cloud.folder / "bucket" / "gs" / "bucket" / "run"
    cloud.wait_for(lambda: reads(checkpoints / "step-0", "2"), "step 2")
    process.send_signal(signal.SIGINT)
    finish(process)
    flags = ("--zone=z", "--name=run", "--poll_seconds=60")
    stopping = cloud.start("tpu_vm", "stop", *flags)
    cloud.wait_for(lambda: any("worker.sh stop" in " ".join(c) for c in cloud.calls()), "stop")
    stopping.send_signal(signal.SIGINT)
    done = finish(stopping)
    assert done.returncode == 130 and cloud.resources() == ["run"]
    assert line(done) == "launch.tpu_vm: SIGINT; run may still be there, and run: stop it again"
    assert verb(cloud, "stop").returncode == 0


def test_stop_ends_a_run_that_a_launcher_follows_for_good(cloud):
    cloud = cloud(workers=2)
    process = start(cloud, program=["--config.wait=2"])
    checkpoints = cloud.folder / "bucket" / "gs" / "bucket" / "run"
    both = [checkpoints / f"step-{index}" for index in range(2)]
    cloud.wait_for(lambda: all(reads(path, "2") for path in both), "step 2")
    assert verb(cloud, "stop").returncode == 0
    done = finish(process)
    assert done.returncode == PREEMPTED and cloud.resources() == []
    assert cloud.verbs().count("create") == 1


def test_logs_follow_to_the_end_and_leave_the_machines(cloud):
    cloud = cloud()
    assert launch(cloud, "--keep").returncode == 0 and cloud.resources() == ["run"]
    done = verb(cloud, "logs")
    assert done.returncode == 0 and "step 5" in done.stdout and cloud.resources() == ["run"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--zone=z", "--", "--config=c.py", "--workdir=gs://b"], "--accelerator=NAME is missing"),
        (["--accelerator=v5e-8", "--zone=z", "--", "--config=c", "--workdir=gs://b"], "v5litepod"),
        (["--accelerator=v6e-8", "--zone=z", "--", "--config=c", "--workdir=/tmp/x"], "deleted"),
        (["--accelerator=v6e-8", "--zone=z", "--", "--workdir=gs://b"], "no --config"),
        (["--accelerator=v6e-8", "--zone=z", "--", "ls"], "expected flags of main.py"),
        (["status", "--zone=z"], "status needs --name"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_done(cloud, arguments, said):
    cloud = cloud()
    done = cloud.run("tpu_vm", *arguments)
    assert done.returncode == REFUSED and said in done.stderr and cloud.calls() == []
