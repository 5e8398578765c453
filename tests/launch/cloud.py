"""A checkout to send, fakes of gcloud, kubectl and sbatch on PATH, and what they were asked."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from launch.revision import snapshot

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SECONDS = 120  # the longest that anything here may take; nothing waits that long


def checkout(folder: Path) -> Path:
    """A small git checkout with one commit."""
    shutil.copytree(HERE / "fakes" / "program", folder)
    (folder / "launch").mkdir()
    shutil.copy(ROOT / "launch" / "worker.sh", folder / "launch" / "worker.sh")
    for name in ("requirements.txt", "requirements-tpu.txt", "constraints.txt"):
        (folder / name).write_text(f"# {name}\n")
    (folder / ".gitignore").write_text("launches/\n")
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=First")
    return folder


def checkout_of_this(folder: Path) -> Path:
    """A clone of this repository with the changes that it has."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    with tarfile.open(fileobj=io.BytesIO(snapshot(ROOT).archive)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def git(folder: Path, *arguments: str) -> str:
    who = {
        f"GIT_{role}_{key}": value
        for role in ("AUTHOR", "COMMITTER")
        for key, value in (
            ("NAME", "test"),
            ("EMAIL", "test@example.org"),
            ("DATE", "2026-01-01T00:00:00Z"),
        )
    }
    none = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    return subprocess.run(
        ["git", "-C", str(folder), "-c", "core.autocrlf=false", *arguments],
        env={**os.environ, **who, **none},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


class Cloud:
    """The state of the fakes, in a folder."""

    def __init__(self, folder: Path, **script):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.code = checkout(folder / "code")
        (folder / "script.json").write_text(json.dumps(script))
        self.variables: dict[str, str] = {}

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{HERE / 'fakes'}:{HERE / 'fakes' / 'slurm'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "FAKE_CLOUD": str(self.folder),
            "FAKE_PYTHON": sys.executable,
            **self.variables,
        }

    def start(self, launcher: str, *arguments: str) -> subprocess.Popen:
        # A sweep asks what its arms cost, by JAX.
        fake = [str(HERE / "fakes.py"), "sweep"] if launcher == "sweep" else None
        return subprocess.Popen(
            [sys.executable, *(fake or ["-m", f"launch.{launcher}"]), *arguments],
            env=self.environment(),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # The tests may run under nohup, whose deafness a launcher keeps.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )

    def run(
        self, launcher: str, *arguments: str, seconds: float = SECONDS
    ) -> subprocess.CompletedProcess:
        return finish(self.start(launcher, *arguments), seconds)

    def calls(self) -> list[list[str]]:
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def verbs(self) -> list[str]:
        """Of gcloud: `create`, `describe`, ..."""
        return [call[3] for call in self.calls()]

    def resources(self) -> list[str]:
        """What costs money now."""
        return sorted(path.stem for path in self.folder.glob("resources/*.json"))

    def wait_for(self, condition, what: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"never: {what}"
            time.sleep(0.02)

    def normalized(self, text: str) -> str:
        revision = git(self.code, "rev-parse", "HEAD").strip()
        return text.replace(str(self.code), "CODE").replace(revision, "REVISION")


def finish(process: subprocess.Popen, seconds: float = SECONDS) -> subprocess.CompletedProcess:
    output, error = process.communicate(timeout=seconds)
    return subprocess.CompletedProcess(process.args, process.returncode, output, error)
