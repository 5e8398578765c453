"""launch.gke: its manifests against schemas, and the launcher against a kubectl that records."""

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile

import jsonschema
import pytest

from launch import gke, jobset
from launch.accelerators import GPUS, SLICES, find_slice
from launch.revision import Code
from launch.shell import EXISTS, NO_MACHINES, REFUSED
from tests.launch.cloud import HERE, Cloud, finish

MAIN = ("--", "--config=c.py", "--workdir=gs://bucket/run")
CODE = Code("0123abc", b"", (), b"archive")
COMPLETED = {"conditions": [{"type": "Completed", "status": "True"}]}
FAILED = {"conditions": [{"type": "Failed", "status": "True"}]}
RUNNING = {"replicatedJobsStatus": [{"name": "hosts", "ready": 1}]}


@pytest.fixture
def cloud(tmp_path):
    return lambda **script: Cloud(tmp_path, **script)


def arguments(cloud, *flags):
    ours = ("--accelerator=v6e-16", "--image=IMAGE", "--name=run", "--poll_seconds=0.05")
    return *ours, f"--code={cloud.code}", *flags, *MAIN


def launch(cloud, *flags):
    return cloud.run("gke", *arguments(cloud, *flags))


def verb(cloud, name):
    return cloud.run("gke", name, "--name=run", "--poll_seconds=0.05")


def manifest(*flags):
    parsed, run = gke.read_flags(["--image=IMAGE", "--name=run", *flags, *MAIN])
    slice_ = None if parsed.accelerator in GPUS else find_slice(parsed.accelerator)
    return jobset.make_manifest(parsed, run, CODE, slice_)


def pod(found):
    (job,) = found["items"][1]["spec"]["replicatedJobs"]
    return job["template"]["spec"]["template"]["spec"]


def schema(name):
    """Written by hand: which values may be where."""
    return jsonschema.Draft202012Validator(json.loads((HERE / "schemas" / name).read_text()))


def published(kind):
    """Of the projects themselves (schemas/make.py): which fields there are, of which types."""
    found = json.loads((HERE / "schemas" / "published.json").read_text())
    return jsonschema.Draft202012Validator({"$defs": found["$defs"], **found["kinds"][kind]})


KINDS = [
    *(f"--accelerator={name}" for name in ("v4-32", "v5litepod-1", "v5litepod-256", "v5p-12288")),
    "--accelerator=v6e-16 --slices=4 --spot --queue=research --service_account=trainer",
    "--accelerator=h100 --nodes=8 --queue=research --restarts=3",
    "--accelerator=a100 --gpus_per_node=4 --spot --grace_seconds=60",
]


@pytest.mark.parametrize("kind", KINDS)
def test_manifests_are_valid(kind):
    config_map, made = manifest(*kind.split())["items"]
    schema("configmap.json").validate(config_map)
    schema("jobset.json").validate(made)
    published("ConfigMap").validate(config_map)
    published("JobSet").validate(made)


POD = ("spec", "replicatedJobs", 0, "template", "spec", "template", "spec")


@pytest.mark.parametrize(
    "path, value",
    [
        (("spec", "failurePolicy", "maxRestart"), 1),
        (("spec", "failurePolicy", "rules", 0, "onJobFailureMessage"), ["a"]),
        ((*POD, "gracePeriodSeconds"), 1),
        ((*POD, "terminationGracePeriodSeconds"), "600"),
        ((*POD, "containers", 0, "resource"), {}),
        ((*POD, "volumes", 0, "configMap"), "code"),
    ],
)
def test_the_published_schema_knows_no_other_field_and_no_other_type(path, value):
    made = with_value(manifest("--accelerator=v6e-16")["items"][1], path, value)
    with pytest.raises(jsonschema.ValidationError):
        published("JobSet").validate(made)


def with_value(made, path, value):
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return made


@pytest.mark.parametrize(
    "path, value",
    [
        (("spec", "failurePolicy", "maxRestarts"), -1),
        (("spec", "failurePolicy", "maxRestart"), 1),
        (("spec", "replicatedJobs", 0, "template", "spec", "podFailurePolicy", "rules", 0), {}),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "restartPolicy"), 0),
        (("metadata", "name"), "Run"),
        (("metadata", "labels"), {"kueue.x-k8s.io/queue-name": "two words"}),
    ],
)
def test_the_schema_notices_what_is_wrong(path, value):
    made = with_value(manifest("--accelerator=v6e-16")["items"][1], path, value)
    with pytest.raises(jsonschema.ValidationError):
        schema("jobset.json").validate(made)


@pytest.mark.parametrize("name", sorted(SLICES))
def test_a_slice_has_a_pod_a_host_and_all_chips(name):
    slice_ = SLICES[name]
    (job,) = manifest(f"--accelerator={name}", "--slices=2")["items"][1]["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    chips = int(spec["template"]["spec"]["containers"][0]["resources"]["limits"]["google.com/tpu"])
    wanted = 1
    for side in slice_.shape.split("x"):
        wanted *= int(side)
    assert job["replicas"] == 2 and spec["parallelism"] == spec["completions"]
    assert chips * spec["parallelism"] == wanted


def test_exit_75_and_disruption_restart_without_counting_and_others_count():
    spec = manifest("--accelerator=v6e-16", "--restarts=3")["items"][1]["spec"]
    policy = spec["failurePolicy"]
    rules = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert policy["maxRestarts"] == 3
    assert spec["replicatedJobs"][0]["template"]["spec"]["backoffLimit"] == 0
    assert policy["rules"][-1]["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert policy["rules"][-1]["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert {rule["action"] for rule in rules} == {"FailJob"}
    assert rules[1]["onExitCodes"]["values"][0] == 75


def test_wrong_input_is_not_restarted():
    """Rules are tried in order. The message is that of Kubernetes' Job controller."""
    spec = manifest("--accelerator=v6e-16", "--restarts=3")["items"][1]["spec"]
    pods = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    said = "Container main for pod default/run-0 failed with exit code {} matching FailJob rule at"
    first, second = spec["failurePolicy"]["rules"]
    (pattern,) = first["onJobFailureMessagePatterns"]
    assert first["action"] == "FailJobSet" and 2 in pods[1]["onExitCodes"]["values"]
    assert re.search(pattern, said.format(2))
    assert not re.search(pattern, said.format(75)) and not re.search(pattern, said.format(27))
    assert "onJobFailureMessagePatterns" not in second
    once = manifest("--accelerator=v6e-16")["items"][1]["spec"]  # for any version of JobSet
    assert len(once["failurePolicy"]["rules"]) == 1 and once["failurePolicy"]["maxRestarts"] == 0


def test_pods_get_the_cache_of_compiled_programs():
    made = manifest("--accelerator=v6e-16", "--compilation_cache=gs://bucket/cache")
    (container,) = pod(made)["containers"]
    names = {each["name"]: each["value"] for each in container["env"]}
    assert names["JAX_COMPILATION_CACHE_DIR"] == "gs://bucket/cache"


def test_the_grace_period_is_the_one_asked_for():
    assert pod(manifest("--accelerator=v6e-16"))["terminationGracePeriodSeconds"] == 600
    made = manifest("--accelerator=h100", "--grace_seconds=90")
    assert pod(made)["terminationGracePeriodSeconds"] == 90


def test_gpus_get_the_variables_of_the_cluster_and_tpus_none():
    (container,) = pod(manifest("--accelerator=h100", "--nodes=2"))["containers"]
    names = {each["name"]: each["value"] for each in container["env"]}
    assert names["MM_COORDINATOR"] == "run-hosts-0-0.run:20000"
    assert names["MM_NUM_PROCESSES"] == "2"
    tpus = pod(manifest("--accelerator=v6e-16"))["containers"][0]
    assert not any(each["name"].startswith("MM_") for each in tpus["env"])


def test_the_command_unpacks_the_code_and_becomes_main(tmp_path):
    """The container's own shell program, run here with other folders."""
    cloud = Cloud(tmp_path)
    archive = gke.snapshot(cloud.code, gke._NOT_NEEDED).archive
    (tmp_path / "mounted").mkdir()
    (tmp_path / "mounted" / "code.tar.gz").write_bytes(archive)
    command = pod(manifest("--accelerator=h100", "--nodes=2"))["containers"][0]["command"]
    program = command[2].replace("/tmp/code", str(tmp_path / "work"))
    program = program.replace("/launch/", f"{tmp_path}/mounted/")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    environment = {
        **cloud.environment(),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "JOB_COMPLETION_INDEX": "1",
    }
    done = subprocess.run(
        [*command[:2], program, *command[3:]], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "place 1 None None None" in done.stdout and "step 5" in done.stdout
    assert '"dirty": false' in done.stdout


def test_it_submits_the_code_and_the_jobset_and_one_owns_the_other(cloud):
    cloud = cloud()
    (cloud.code / "tests").mkdir()
    (cloud.code / "tests" / "big.txt").write_text("not needed")
    done = launch(cloud)
    assert done.returncode == 0, done.stderr
    assert cloud.resources() == ["configmap-run-code", "jobset-run"]
    stored = json.loads((cloud.folder / "resources" / "configmap-run-code.json").read_text())
    (owner,) = stored["patch"]["metadata"]["ownerReferences"]
    assert owner["uid"] == "1-2-3" and owner["kind"] == "JobSet"
    archive = io.BytesIO(base64.b64decode(stored["binaryData"]["code.tar.gz"]))
    names = tarfile.open(fileobj=archive).getnames()
    assert {"main.py", "revision.json", "dirty.diff"} <= set(names)
    assert not any(name.startswith("tests") for name in names)
    assert "plan of c.py for v6e:4x4" in done.stdout


def test_several_slices_and_gpus_are_planned_as_such(cloud):
    cloud = cloud()
    assert "for 2*v6e:4x4" in launch(cloud, "--slices=2", "--name=two").stdout
    flags = ("--accelerator=h100", "--nodes=4", "--name=gpus")
    assert "for h100:32" in launch(cloud, *flags).stdout


def test_a_config_that_does_not_fit_is_not_submitted(cloud):
    cloud = cloud()
    cloud.variables["FAKE_PLAN"] = "1"
    done = launch(cloud)
    assert done.returncode == REFUSED and "does not fit v6e:4x4" in done.stderr
    assert [call[1] for call in cloud.calls()] == ["get"]


@pytest.mark.parametrize("kind, said", [("quota", "quota: Error"), ("denied", "not submitted: E")])
def test_a_refused_part_takes_the_others_with_it(cloud, kind, said):
    cloud = cloud(apply=kind)
    done = launch(cloud)
    assert done.returncode == NO_MACHINES and said in done.stderr
    assert done.stderr.count("\n") == 1 and cloud.resources() == []


def test_what_exists_is_left_alone(cloud):
    cloud = cloud()
    assert launch(cloud).returncode == 0
    done = launch(cloud)
    assert done.returncode == EXISTS and "run exists already and is Pending" in done.stderr
    assert cloud.resources() == ["configmap-run-code", "jobset-run"]


def test_what_has_ended_is_replaced(cloud):
    cloud = cloud(states=[{}, FAILED, FAILED, {}])
    assert launch(cloud).returncode == 0
    done = launch(cloud)
    assert done.returncode == 0 and "from before, and Failed: it is replaced" in done.stdout
    verbs = [call[1] for call in cloud.calls()]
    first, second = ["get", "get", "apply", "get", "patch"], ["delete", "apply", "get", "patch"]
    assert verbs == [*first, "get", "get", *second]


def test_what_another_launches_during_the_plan_is_left_alone(cloud, monkeypatch):
    cloud = cloud(apply="denied")
    for key, value in cloud.environment().items():
        monkeypatch.setenv(key, value)
    other = cloud.folder / "resources" / "jobset-run.json"
    monkeypatch.setattr(gke, "check_plan", lambda *_: other.write_text(json.dumps(RUNNING)))
    with pytest.raises(gke.Failure, match="run exists already and is") as error:
        gke.work([*arguments(cloud)])
    assert error.value.code == EXISTS and cloud.resources() == ["jobset-run"]


@pytest.mark.parametrize("states, code", [([{}, RUNNING, COMPLETED], 0), ([RUNNING, FAILED], 7)])
def test_waiting_ends_with_the_exit_code_of_the_run(cloud, states, code):
    cloud = cloud(states=[{}, *states], codes=[134, 7, 0])
    done = launch(cloud, "--wait")
    assert done.returncode == code, done.stderr
    assert "run is Running" in done.stdout


def test_restarts_are_told(cloud):
    cloud = cloud(states=[{}, RUNNING, {**RUNNING, "restarts": 2}, COMPLETED])
    assert "run is Running, 2 restarts" in launch(cloud, "--wait").stdout


def test_machines_that_do_not_come_end_it_and_nothing_is_left(cloud, monkeypatch):
    cloud = cloud()
    now = [0.0]
    monkeypatch.setattr(gke.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(gke.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + 30))
    for key, value in cloud.environment().items():
        monkeypatch.setenv(key, value)
    said = "no machines: still Pending after 2 minutes"
    with pytest.raises(gke.Failure, match=said) as error:
        gke.work([*arguments(cloud, "--wait", "--wait_minutes=2")])
    assert error.value.code == NO_MACHINES and cloud.resources() == []


def test_interrupted_while_it_waits_the_run_goes_on(cloud):
    cloud = cloud(states=[{}, RUNNING])
    process = cloud.start("gke", *arguments(cloud, "--wait"))
    waits = "get", "jobset"
    cloud.wait_for(
        lambda: sum(all(word in call for word in waits) for call in cloud.calls()) > 3, "it waits"
    )
    process.send_signal(signal.SIGTERM)
    done = finish(process)
    assert done.returncode == 143 and "run goes on without me" in done.stdout
    assert "python -m launch.gke stop --name=run --namespace=default" in done.stdout
    assert cloud.resources() == ["configmap-run-code", "jobset-run"]


def test_status_logs_and_stop(cloud):
    cloud = cloud(states=[{}, RUNNING])
    assert launch(cloud).returncode == 0
    assert verb(cloud, "status").stdout == "run: Running\n"
    assert verb(cloud, "logs").stdout == "step 1\nstep 2\n"
    assert verb(cloud, "stop").returncode == 0 and cloud.resources() == []
    gone = verb(cloud, "status")
    assert gone.returncode == NO_MACHINES and gone.stdout == "run: gone\n"
    gone = verb(cloud, "stop")
    assert gone.returncode == NO_MACHINES and "there is no run in namespace default" in gone.stderr


def test_stop_says_when_it_could_not(cloud):
    cloud = cloud(delete_fails=True)
    done = verb(cloud, "stop")
    assert done.returncode == 1 and "run could NOT be deleted" in done.stderr


def test_without_kubectl_it_says_so(tmp_path):
    cloud = Cloud(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").symlink_to(shutil.which("git"))
    cloud.variables["PATH"] = str(tmp_path / "bin")
    done = launch(cloud)
    assert done.returncode == REFUSED and "kubectl is not installed" in done.stderr


@pytest.mark.parametrize(
    "flags, said",
    [
        (("--accelerator=v6e-16",), "--image=IMAGE are needed"),
        (("--accelerator=h100", "--image=I", "--slices=2"), "--slices is for TPUs"),
        (("--accelerator=v6e-16", "--image=I", "--nodes=2"), "--nodes is for GPUs"),
        (("--accelerator=v7-1", "--image=I"), "expected a TPU slice by Google's name"),
        (("--accelerator=h1000", "--image=I"), "or a GPU (a100, h100, h200, b200), as h100"),
    ],
)
def test_wrong_flags_are_refused(cloud, flags, said):
    cloud = cloud()
    done = cloud.run("gke", *flags, *MAIN)
    assert done.returncode == REFUSED and said in done.stderr and cloud.calls() == []


def test_a_workdir_in_a_pod_is_refused(cloud):
    cloud = cloud()
    done = cloud.run(
        "gke", "--accelerator=v6e-16", "--image=I", "--", "--config=c", "--workdir=/tmp/x"
    )
    assert done.returncode == REFUSED and "expected gs://" in done.stderr
