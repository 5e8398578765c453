"""Runs main.py on Kubernetes: a JobSet on node pools of TPUs or GPUs, optionally through Kueue.

  python -m launch.gke --accelerator=v5litepod-256 --image=IMAGE --queue=research \
    -- --config=configs/siglip.py --workdir=gs://bucket/run

IMAGE has the pinned packages (docs/launch.md says how to make it); the code as it is goes into a
ConfigMap. The cluster restarts what is preempted; nothing here needs to go on running.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any

from launch import jobset
from launch.accelerators import GPUS, Slice, find_slice, topology
from launch.request import Parser, Run, check_plan, entry, positive, telling
from launch.revision import ARCHIVE, Code, snapshot
from launch.shell import (
    EXISTS,
    FAILED,
    NO_MACHINES,
    REFUSED,
    Done,
    Failure,
    Interrupted,
    Shell,
    uninterrupted,
)

NAME = "gke"
_MOST_BYTES = 1_000_000  # of the code; a ConfigMap holds 1 MiB
_MOST_FAILURES = 30  # of kubectl in a row, while a run is waited for
_NOT_NEEDED = ("tests", "docs", "bench")  # to run main.py


def work(arguments: Sequence[str] | None = None) -> int:
    """Parses, does what the verb says, returns the exit code."""
    flags, run = read_flags(arguments)
    cluster = Cluster(Shell(NAME, flags.dry_run), flags)
    with telling(flags):
        if flags.verb == "run":
            return submit(cluster, run)
        if flags.verb == "status":
            return status(cluster)
        if flags.verb == "logs":
            return cluster.logs()
        return stop(cluster)


def read_flags(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Run]:
    parser = Parser(NAME, ("status", "logs", "stop"), __doc__.splitlines()[0])
    parser.add_argument("--accelerator", help="as v5litepod-256, or a GPU: a100, h100, h200, b200")
    parser.add_argument("--slices", type=positive, default=1, help="of TPUs (default 1)")
    parser.add_argument("--nodes", type=positive, default=1, help="of GPUs (default 1)")
    parser.add_argument("--gpus_per_node", type=positive, default=8)
    parser.add_argument("--image", help="container with the pinned packages")
    parser.add_argument("--queue", help="Kueue's LocalQueue (default: none)")
    parser.add_argument("--spot", action="store_true", help="on spot nodes")
    parser.add_argument("--service_account", help="Kubernetes' own, for gs://")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--context", help="kubectl's (default: its current one)")
    parser.add_argument(
        "--grace_seconds", type=positive, default=600, help="from SIGTERM to SIGKILL (default 600)"
    )
    parser.add_argument("--wait", action="store_true", help="until the run has ended")
    parser.add_argument(
        "--wait_minutes",
        type=positive,
        default=24 * 60,
        help="with --wait: for machines, then it is deleted (default: a day)",
    )
    flags, run = parser.parse(arguments)
    if flags.verb == "run":
        if not flags.accelerator or not flags.image:
            parser.error("--accelerator=NAME and --image=IMAGE are needed")
        if "://" not in (run.workdir or ""):
            parser.error(f"--workdir={run.workdir} is in a pod that goes: expected gs://...")
        if flags.accelerator in GPUS and flags.slices > 1:
            parser.error("--slices is for TPUs; GPUs have --nodes")
        if flags.accelerator not in GPUS and flags.nodes > 1:
            parser.error("--nodes is for GPUs; a slice of TPUs has its own number of hosts")
    return flags, run


def submit(cluster: "Cluster", run: Run) -> int:
    """Plan, manifest, apply; with --wait until the end."""
    flags, shell = cluster.flags, cluster.shell
    slice_ = None if flags.accelerator in GPUS else find_slice(flags.accelerator, GPUS)
    code = snapshot(flags.code, _NOT_NEEDED)
    shell.say(code.describe())
    if len(code.archive) > _MOST_BYTES:
        raise Failure(
            f"the code is {len(code.archive)} bytes compressed, more than the {_MOST_BYTES} that "
            "fit a ConfigMap: is there data that .gitignore should name?",
            REFUSED,
        )
    find_ended(cluster)  # here so that nobody waits for a plan
    check_plan(shell, flags, run, code, plan_topology(flags, slice_))
    ended = find_ended(cluster)  # a plan takes minutes, in which another may have launched it
    if ended:
        shell.say(f"{flags.name} is there from before, and {ended}: it is replaced")
        with uninterrupted():
            if not cluster.delete():
                raise Failure(f"{flags.name} could NOT be deleted", NO_MACHINES)
    try:
        cluster.apply(flags, run, code, slice_)
    except Interrupted:
        with uninterrupted():
            if cluster.delete():
                shell.say(f"{flags.name} is deleted")
            else:
                cluster.tell_left()
        raise
    place = f"--name={flags.name} --namespace={flags.namespace}"
    place += f" --context={flags.context}" if flags.context else ""
    verbs = [f"python -m launch.{NAME} {verb} {place}" for verb in ("logs", "stop")]
    shell.say(f"{flags.name} is submitted; it goes on without me. To see its log, to end it:")
    for command in verbs:
        shell.show(f"  {command}")
    if not flags.wait:
        return 0
    try:
        return wait(cluster)
    except Interrupted as error:
        shell.say(f"{error}")
        shell.left(f"{flags.name} goes on without me. To see its log, to end it:", *verbs)
        return error.code


def find_ended(cluster: "Cluster") -> str | None:
    """What became of a JobSet of that name; raises Failure for one that has not ended."""
    if not (state := cluster.state()):
        return None
    name, (word, _) = cluster.flags.name, describe(state)
    if not word.startswith(("Completed", "Failed")):
        raise Failure(f"{name} exists already and is {word}; see status, end it with stop", EXISTS)
    return word


def plan_topology(flags: argparse.Namespace, slice_: Slice | None) -> str:
    if slice_:
        return topology(slice_, flags.slices)
    return f"{flags.accelerator}:{flags.nodes * flags.gpus_per_node}"


class Cluster:
    """Every call of kubectl, and nothing that decides."""

    def __init__(self, shell: Shell, flags: argparse.Namespace):
        self.shell, self.flags = shell, flags

    def state(self, assume: str = "") -> dict[str, Any]:
        """The JobSet as it is; empty if there is none. Raises Failure if kubectl fails."""
        name = self.flags.name
        done = self._kubectl(
            "get", "jobset", name, "--ignore-not-found", "--output=json", assume=assume
        )
        if done.code:
            raise Failure(f"kubectl: {done.reason}", NO_MACHINES)
        return json.loads(done.output) if done.output.strip() else {}

    def apply(self, flags: argparse.Namespace, run: Run, code: Code, slice_: Slice | None) -> None:
        """Creates all; when a part is refused, deletes the others and raises Failure."""
        manifest = jobset.make_manifest(flags, run, code, slice_)
        if self.shell.dry_run:  # 300 kB of base64 say nothing
            manifest["items"][0]["binaryData"][ARCHIVE] = "(the code)"
        given = json.dumps(manifest, indent=2)
        # On the server's side: on the client's, an annotation would hold all of it, and cannot.
        done = self._kubectl("apply", "--server-side", "--filename=-", given=given)
        if done.code:
            with uninterrupted():
                if not self.delete():
                    self.tell_left()
            cause = "quota" if "quota" in done.error.lower() else "not submitted"
            raise Failure(f"{cause}: {done.reason}", NO_MACHINES)
        self._own_code()

    def _own_code(self) -> None:
        """The ConfigMap goes when the JobSet does."""
        assume = '{"metadata": {"uid": "UID"}}'
        code = jobset.code_name(self.flags.name)
        try:
            uid = self.state(assume).get("metadata", {}).get("uid")
        except Failure as error:  # it is submitted all the same
            self.shell.say(f"configmap {code} will stay when the run has gone: {error}")
            return
        owner = {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "name": self.flags.name,
            "uid": uid,
        }
        patch = json.dumps({"metadata": {"ownerReferences": [owner]}})
        done = self._kubectl("patch", "configmap", code, f"--patch={patch}")
        if done.code:
            self.shell.say(f"configmap {code} will stay when the run has gone: {done.reason}")

    def exit_code(self) -> int:
        """Of main.py, when the JobSet has failed; 1 if no pod is left to tell."""
        done = self._kubectl("get", "pods", self._selector(), "--output=json")
        pods = json.loads(done.output)["items"] if not done.code else []
        codes = [
            status.get("state", {}).get("terminated", {}).get("exitCode", 0)
            for pod in pods
            for status in pod.get("status", {}).get("containerStatuses", [])
        ]
        # a crash of one makes JAX abort the others: their codes are signals', from 128 on
        return min(filter(None, codes), default=FAILED)

    def logs(self) -> int:
        """Follows the first host's; kubectl's exit code."""
        first = "jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
        command = self._command("logs", "--follow", "--tail=-1", f"{self._selector()},{first}")
        return self.shell.stream(command)[0]

    def delete(self) -> bool:
        """Deletes all, which lets main.py save; whether it is gone."""
        return not self.shell.run(self._delete_command()).code

    def tell_left(self) -> None:
        """Of what could not be deleted."""
        self.shell.left(
            f"{self.flags.name} could NOT be deleted and may cost money; run",
            shlex.join(self._delete_command()),
            file=sys.stderr,
        )

    def _delete_command(self) -> list[str]:
        names = f"jobset/{self.flags.name}", f"configmap/{jobset.code_name(self.flags.name)}"
        return self._command("delete", *names, "--ignore-not-found", "--cascade=foreground")

    def _selector(self) -> str:
        return f"--selector=jobset.sigs.k8s.io/jobset-name={self.flags.name}"

    def _kubectl(self, *arguments: str, assume: str = "", given: str | None = None) -> Done:
        return self.shell.run(self._command(*arguments), assume=assume, given=given)

    def _command(self, *arguments: str) -> list[str]:
        context = [f"--context={self.flags.context}"] if self.flags.context else []
        return ["kubectl", *context, f"--namespace={self.flags.namespace}", *arguments]


def describe(state: dict[str, Any]) -> tuple[str, bool]:
    """A JobSet's state in words, and whether its hosts are there."""
    if not state:
        return "gone", False
    found = state.get("status", {})
    true = [each["type"] for each in found.get("conditions", []) if each["status"] == "True"]
    jobs = found.get("replicatedJobsStatus", [])
    ready = bool(jobs) and all(job.get("ready", 0) for job in jobs)
    word = next((word for word in ("Completed", "Failed", "Suspended") if word in true), None)
    word = word or ("Running" if ready else "Pending")
    restarts = found.get("restarts", 0)
    return word + (f", {restarts} restarts" if restarts else ""), ready


def wait(cluster: Cluster) -> int:
    """Until the JobSet has ended; deletes it when its machines do not come. The exit code."""
    flags, shell = cluster.flags, cluster.shell
    if shell.dry_run:
        cluster.state()
        return 0
    deadline: float | None = time.monotonic() + 60 * flags.wait_minutes
    last, failures = "", 0
    while True:
        try:
            found, failures = cluster.state(), 0
        except Failure as error:
            failures += 1
            if failures >= _MOST_FAILURES:
                raise Failure(f"{error}; {flags.name} goes on without me", error.code) from None
            time.sleep(flags.poll_seconds)
            continue
        word, ready = describe(found)
        if word != last:
            shell.say(f"{flags.name} is {word}")
            last = word
        if word == "gone":
            raise Failure(f"somebody deleted {flags.name}", FAILED)
        if word.startswith("Completed"):
            return 0
        if word.startswith("Failed"):
            code = cluster.exit_code()
            shell.say(f"main.py ended with exit code {code}")
            return code
        if ready:
            deadline = None  # it has had its machines
        if deadline is not None and time.monotonic() > deadline:
            with uninterrupted():
                if cluster.delete():
                    shell.say(f"{flags.name} is deleted")
                else:
                    cluster.tell_left()
            raise Failure(
                f"no machines: still {word} after {flags.wait_minutes} minutes", NO_MACHINES
            )
        time.sleep(flags.poll_seconds)


def status(cluster: Cluster) -> int:
    state = cluster.state()
    if cluster.shell.dry_run:
        return 0
    print(f"{cluster.flags.name}: {describe(state)[0]}")
    return 0 if state else NO_MACHINES


def stop(cluster: Cluster) -> int:
    """SIGTERM to all pods, which save; then they are gone, and so is all else."""
    name, there = cluster.flags.name, cluster.shell.dry_run or cluster.state()
    if there:
        cluster.shell.say(f"deleting {name}; main.py saves first")
    if not cluster.delete():  # where there is no JobSet, its code may be
        raise Failure(f"{name} could NOT be deleted", FAILED)
    if not there:
        raise Failure(f"there is no {name} in namespace {cluster.flags.namespace}", NO_MACHINES)
    cluster.shell.say(f"{name} is deleted")
    return 0


if __name__ == "__main__":
    entry(NAME, work)
