"""The manifest of a run on Kubernetes: a JobSet, and the code in a ConfigMap. Plain dicts.

API: jobset.x-k8s.io/v1alpha2; labels and annotations of GKE's node pools, of JobSet and of Kueue.
"""

import argparse
import base64
from typing import Any

from launch.accelerators import GPUS, Slice
from launch.request import Run
from launch.revision import ARCHIVE, Code
from launch.shell import PREEMPTED, REFUSED

HOSTS = "hosts"  # the replicated job, one replica a slice
_CONTAINER = "main"
_PORT = 20_000  # of the coordinator, for GPUs; TPUs find each other
_KEPT_SECONDS = 24 * 3600  # of a JobSet that has ended, for its logs: it holds no machines

# Wrong again if started again. The pattern is of the Job controller's message.
_WRONG_INPUT = {
    "name": "wrongInput",
    "action": "FailJobSet",
    "onJobFailureReasons": ["PodFailurePolicy"],
    "onJobFailureMessagePatterns": [f"failed with exit code {REFUSED} "],
}
_PROGRAM = f"""\
set -e
mkdir -p /tmp/code
cd /tmp/code
tar -xzf /launch/{ARCHIVE}
echo "launch: $(cat revision.json) on $(hostname)"
"""


def make_manifest(flags: argparse.Namespace, run: Run, code: Code, slice_: Slice | None) -> dict:
    """The ConfigMap and the JobSet, as a List. slice_: None for GPUs."""
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": code_name(flags.name), "annotations": annotations(code)},
        "binaryData": {ARCHIVE: base64.b64encode(code.archive).decode()},
    }
    jobset = make_jobset(flags, run, code, slice_)
    return {"apiVersion": "v1", "kind": "List", "items": [config_map, jobset]}


def code_name(name: str) -> str:
    return f"{name}-code"


def annotations(code: Code) -> dict[str, str]:
    return {"mm/revision": code.revision, "mm/uncommitted": code.digest or "nothing"}


def make_jobset(flags: argparse.Namespace, run: Run, code: Code, slice_: Slice | None) -> dict:
    """One replica a slice, one pod a host; restarted as a whole, since a run lives as one."""
    hosts, slices = (slice_.hosts, flags.slices) if slice_ else (flags.nodes, 1)
    notes = annotations(code)
    if slice_:  # one slice, one node pool
        key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
        notes[key] = "cloud.google.com/gke-nodepool"
    # JobSet knows the patterns from 0.10 on, so they are there only where there are restarts.
    final = [REFUSED] if flags.restarts else []
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",  # what podFailurePolicy wants
        # Not the run's fault: preempted or drained, or saved after SIGTERM.
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": _CONTAINER,
                        "operator": "In",
                        "values": [PREEMPTED, *final],
                    },
                },
            ]
        },
        "template": {"spec": make_pod(flags, run, slice_)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": flags.name,
            "labels": {"kueue.x-k8s.io/queue-name": flags.queue} if flags.queue else {},
            "annotations": notes,
        },
        "spec": {
            "ttlSecondsAfterFinished": _KEPT_SECONDS,
            "network": {"enableDNSHostnames": True, "subdomain": flags.name},
            "failurePolicy": {
                "maxRestarts": flags.restarts,
                "rules": [
                    *([_WRONG_INPUT] if final else []),
                    {
                        "name": "preempted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    },
                ],
            },
            "replicatedJobs": [{"name": HOSTS, "replicas": slices, "template": {"spec": job}}],
        },
    }


def make_pod(flags: argparse.Namespace, run: Run, slice_: Slice | None) -> dict[str, Any]:
    """main.py as process 1, so that SIGTERM reaches it, on all chips of a host."""
    environment = {"PYTHONUNBUFFERED": "1"}
    if flags.compilation_cache:
        environment["JAX_COMPILATION_CACHE_DIR"] = flags.compilation_cache
    program = _PROGRAM
    container: dict[str, Any] = {"name": _CONTAINER, "image": flags.image}
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": flags.grace_seconds,
    }
    if slice_:
        resources = {"google.com/tpu": str(slice_.chips_per_host)}
        selector = {
            "cloud.google.com/gke-tpu-accelerator": slice_.node_pool,
            "cloud.google.com/gke-tpu-topology": slice_.shape,
        }
        container["securityContext"] = {"privileged": True}  # locks memory for the chips
        container["ports"] = [{"containerPort": 8471}]
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    else:
        resources = {"nvidia.com/gpu": str(flags.gpus_per_node)}
        selector = {"cloud.google.com/gke-accelerator": GPUS[flags.accelerator]}
        first = f"{flags.name}-{HOSTS}-0-0.{flags.name}"
        environment |= {  # mm/runtime/distributed.py
            "MM_COORDINATOR": f"{first}:{_PORT}",
            "MM_NUM_PROCESSES": str(flags.nodes),
        }
        program += "export MM_PROCESS_ID=$JOB_COMPLETION_INDEX\n"
    if flags.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        key = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"}
        pod["tolerations"] = [{**key, "effect": "NoSchedule"}]
    if flags.service_account:
        pod["serviceAccountName"] = flags.service_account
    container |= {
        "command": ["bash", "-c", f'{program}exec python main.py "$@"', "main.py", *run.flags],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "resources": {"limits": resources},
        "volumeMounts": [
            {"name": "code", "mountPath": "/launch", "readOnly": True},
            {"name": "memory", "mountPath": "/dev/shm"},
        ],
    }
    return pod | {
        "nodeSelector": selector,
        "containers": [container],
        "volumes": [
            {"name": "code", "configMap": {"name": code_name(flags.name)}},
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
        ],
    }
