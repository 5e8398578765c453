"""Real runs in processes of their own, and what they leave behind."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from mm.runtime import metrics

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 300  # the longest that a start, with imports and compilation, may take


def command(config: str, workdir: Path, *flags: str) -> list[str]:
    return [sys.executable, "main.py", f"--config={config}", f"--workdir={workdir}", *flags]


def environment(devices: int, optimize: bool = False) -> dict[str, str]:
    """As in conftest.py, but for the devices.

    optimize: compile as users do, which takes longer; the steps of the quick start are then 2.5
    times as fast.
    """
    flags = f"--xla_force_host_platform_device_count={devices}"
    if not optimize:
        flags = re.sub(r"--\S*device_count=\d+", flags, os.environ["XLA_FLAGS"])
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def finish(arguments: list[str], devices: int = 1, optimize: bool = False) -> str:
    """Runs to the end; returns what was printed. Fails with it if the exit code is not 0."""
    done = subprocess.run(
        arguments, cwd=ROOT, env=environment(devices, optimize), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def kill(
    arguments: list[str], workdir: Path, when: str, rng: random.Random, optimize: bool = False
) -> bool:
    """Starts a run and kills it with -9; returns whether it was caught alive, and at `when`.

    when: "save", while a checkpoint is being written; "step", up to two seconds after a new step
    was logged; "start", up to ten seconds after the start. A save may end between the look at it
    and the kill: so the run is held, looked at again, and let go if it is too late.
    """
    before = lines(workdir)
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=environment(1, optimize),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def reached() -> bool:
        if when == "save":
            if unfinished_saves(workdir):
                os.killpg(process.pid, signal.SIGSTOP)
                if unfinished_saves(workdir):
                    return True
                os.killpg(process.pid, signal.SIGCONT)
            return False
        return when == "start" or lines(workdir) > max(before, 1)

    deadline = time.monotonic() + START_SECONDS
    while not reached() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001 if when == "save" else 0.02)
    if when != "save":
        time.sleep(rng.uniform(0, 10 if when == "start" else 2))
    caught = process.poll() is None
    if caught:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return caught and (when != "save" or bool(unfinished_saves(workdir)))


def unfinished_saves(workdir: Path) -> list[Path]:
    """What an asynchronous save writes to before it renames."""
    return list((workdir / "checkpoints").glob("*tmp*"))


def lines(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def column(workdir: Path, key: str) -> list[float]:
    return [line[key] for line in metrics.read(workdir / "metrics.jsonl")]


def parameters(workdir: Path) -> dict[str, np.ndarray]:
    """The last checkpoint's parameters by path."""
    last = max((workdir / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    state = ocp.PyTreeCheckpointer().restore(last / "state")
    leaves = jax.tree_util.tree_leaves_with_path(state["params"])
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_run(workdir: Path, want: Path) -> None:
    """Every step once, every logged loss and every final parameter bit-identical."""
    assert column(workdir, "step") == column(want, "step")
    assert column(workdir, "loss") == column(want, "loss")
    got, wanted = parameters(workdir), parameters(want)
    assert got.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_array_equal(got[path], value, err_msg=path)
