"""The run's directory: one owner at a time, one config for its life, and where it ran.

Also the one way files are written here: whole or not at all.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from mm.config import BadInput, differences, plain

_PACKAGES = (
    "jax jaxlib libtpu flax optax orbax-checkpoint tensorstore numpy tensorflow tensorflow-cpu "
    "tensorflow-datasets array-record tokenizers sentencepiece ftfy ml-collections einops"
).split()
_ROOT = Path(__file__).resolve().parents[2]
_LOCK_POLL_SECONDS = 0.2


def is_remote(path: os.PathLike | str) -> bool:
    """True for object stores such as gs://, which have no locks, appends or renames."""
    return "://" in os.fspath(path)


def write_atomic(path: os.PathLike | str, content: bytes | str) -> None:
    """Writes the file so that a reader, or a crash, sees the old content or the new, never a part.

    Locally: a temporary file in the same directory, fsync, rename, fsync of the directory. In an
    object store one write is atomic already.
    """
    data = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        epath.Path(path).write_bytes(data)
        return
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Makes a rename in this local directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: os.PathLike | str, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def lock(workdir: os.PathLike | str, wait_seconds: float = 0.0) -> Iterator[int | None]:
    """Holds the local workdir for this process; creates it if need be. Call it on process 0 only.

    Gives the file descriptor that does: a process that inherits it holds the workdir, too. The lock
    is the kernel's (flock), so it goes with the processes however they die. An object store has
    none (None): there the scheduler must not start a run twice.
    Raises BadInput with the owner's pid and host when the workdir is still in use by then.
    """
    epath.Path(workdir).mkdir(parents=True, exist_ok=True)
    if is_remote(workdir):
        yield None
        return
    with open(Path(workdir) / "lock", "a+") as file:
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(_LOCK_POLL_SECONDS)
                    continue
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise BadInput(
                    f"workdir {os.fspath(workdir)} is in use by {owner}, or by what it started; "
                    "wait for it, stop it, or give another --workdir"
                ) from None
        file.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"pid {os.getpid()} on {socket.gethostname()}, since {started}")
        file.flush()
        yield file.fileno()


def check_config(
    workdir: os.PathLike | str, config: Mapping, may_change: tuple[str, ...] = ()
) -> None:
    """Writes `config.json` on the first start; later, refuses a config that is another.

    Keys that `may_change` covers (see `mm.config.differences`) may differ between starts; the file
    then takes the new values. Hold the lock; process 0 only.
    Raises BadInput that lists each differing key with what was given and what was found.
    """
    path = epath.Path(workdir) / "config.json"
    given = json.loads(json.dumps(plain(config)))
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except ValueError:
            raise BadInput(f"{path} is not JSON; restore it or give another --workdir") from None
        if changed := differences(given, found, may_change):
            raise BadInput(
                f"workdir {os.fspath(workdir)} belongs to another config: {changed}; give another "
                "--workdir or the config as it was"
            )
        if found == given:
            return
    write_json(path, given)


def write_environment(directory: os.PathLike | str) -> None:
    """environment.json, and of a copy that a launcher made what was not committed: dirty.diff."""
    write_json(epath.Path(directory) / "environment.json", environment())
    if (diff := _ROOT / "dirty.diff").exists() and (_ROOT / "revision.json").exists():
        write_atomic(epath.Path(directory) / "dirty.diff", diff.read_bytes())


def environment() -> dict[str, Any]:
    """Where and with what this process runs. Starts the JAX backend if it is not up yet."""
    import jax

    devices = jax.devices()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [sys.executable, *sys.argv],
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "packages": _versions(),
        "git": git_state(_ROOT),
        "devices": {"kind": devices[0].device_kind, "count": len(devices)},
        "processes": jax.process_count(),
        "variables": {
            name: os.environ[name] for name in ("XLA_FLAGS", "JAX_PLATFORMS") if name in os.environ
        },
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_state(tree: Path) -> dict[str, Any] | None:
    """The revision of `tree` and whether it has changes; None without git or outside of it.

    Of a copy that a launcher made it is what launch/revision.py wrote there.
    """
    if (tree / "revision.json").exists():
        return json.loads((tree / "revision.json").read_text())

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(tree), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
