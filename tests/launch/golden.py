"""What each launcher's --dry_run prints, kept in tests/golden/launch.

`make golden`, or python -m tests.launch.golden, writes the files anew; the diff shows what a change
means. CODE stands for the checkout that is sent, REVISION for its commit.
"""

import os
import re
import tempfile
from pathlib import Path

from tests.launch.cloud import ROOT, Cloud

FOLDER = ROOT / "tests" / "golden" / "launch"
MAIN = ("--", "--config=configs/siglip.py:variant=B/16", "--config.seed=1")
REMOTE = (*MAIN, "--workdir=gs://bucket/run")
SHARED = (*MAIN, "--workdir=/shared/run")

CASES = {
    "tpu_vm": ("tpu_vm", "--accelerator=v5litepod-256", "--zone=us-west4-a", *REMOTE),
    "tpu_vm-spot-slices-keep": (
        *("tpu_vm", "--accelerator=v6e-16", "--slices=2", "--zone=us-east5-b", "--project=p"),
        *("--spot", "--keep", "--name=two", "--wait_minutes=60"),
        *("--create_flag=--service-account=trainer", *REMOTE),
    ),
    "tpu_vm-reserved": (
        *("tpu_vm", "--accelerator=v5p-1024", "--zone=us-east5-a", "--reserved", *REMOTE),
    ),
    "tpu_vm-attach": (
        *("tpu_vm", "attach", "--accelerator=v5litepod-256", "--zone=us-west4-a", "--name=run"),
        *REMOTE,
    ),
    "tpu_vm-status": ("tpu_vm", "status", "--zone=us-west4-a", "--name=run"),
    "tpu_vm-logs": ("tpu_vm", "logs", "--zone=us-west4-a", "--name=run"),
    "tpu_vm-stop": ("tpu_vm", "stop", "--zone=us-west4-a", "--name=run"),
    "gke-tpu": (
        *("gke", "--accelerator=v5litepod-256", "--slices=2", "--spot", "--queue=research"),
        *("--image=IMAGE", "--service_account=trainer", *REMOTE),
    ),
    "gke-gpu": (
        *("gke", "--accelerator=h100", "--nodes=8", "--image=IMAGE", "--restarts=3"),
        *("--namespace=vision", "--context=cluster", "--wait", *REMOTE),
    ),
    "gke-status": ("gke", "status", "--name=run"),
    "gke-logs": ("gke", "logs", "--name=run"),
    "gke-stop": ("gke", "stop", "--name=run"),
    "slurm-per-gpu": (
        *("slurm", "--accelerator=h100", "--nodes=8", "--partition=gpu", "--account=vision"),
        *("--time=24:00:00", "--sbatch_flag=--qos=high", "--python=.venv/bin/python", *SHARED),
    ),
    "slurm-per-node": (
        *("slurm", "--accelerator=a100", "--nodes=2", "--gpus_per_node=4", "--per=node"),
        *("--cpus_per_task=32", "--restarts=2", "--python=python3", *SHARED),
    ),
    "slurm-status": ("slurm", "status", "--name=run"),
    "slurm-logs": ("slurm", "logs", "--name=run"),
    "slurm-stop": ("slurm", "stop", "--name=run"),
    "sweep": (
        *("sweep", str(ROOT / "configs/ablations/fusion.py"), "--dry_run", "--runs=/shared/sweep"),
        "--launcher=python -m launch.slurm --accelerator=h100 --partition=gpu --wait --",
    ),
    "local": (
        *("local", "--processes=2", "--devices_per_process=4", "--log_dir=logs"),
        *("--dry_run", "--", "python", "main.py", *MAIN[1:], "--workdir=workdirs/run"),
    ),
}


def dry_run(cloud: Cloud, case: str) -> str:
    """What it prints, without what is of this machine; fails unless its exit code is 0."""
    launcher, *rest = CASES[case]
    if launcher not in ("local", "sweep"):
        verbs = 1 if not rest[0].startswith("-") else 0
        rest[verbs:verbs] = ["--dry_run", f"--code={cloud.code}"]
    done = cloud.run(launcher, *rest)
    assert done.returncode == 0, done.stderr
    return re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", cloud.normalized(done.stdout))


def path(case: str) -> Path:
    return FOLDER / f"{case}.txt"


if __name__ == "__main__":
    os.environ.pop("XLA_FLAGS", None)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.glob("*.txt"):
        old.unlink()
    with tempfile.TemporaryDirectory() as folder:
        cloud = Cloud(Path(folder))
        for name in CASES:
            path(name).write_text(dry_run(cloud, name))
            print(path(name))
