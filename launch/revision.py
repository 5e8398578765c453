"""The code that a run gets: the checkout as it is, its revision, and what is not committed.

New files count, ignored ones do not. Nothing is written to the checkout, its index or its history
(but for unnamed objects in .git, which git collects).
"""

import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from launch.shell import REFUSED, Failure

ROOT = Path(__file__).resolve().parents[1]
ARCHIVE = "code.tar.gz"
REVISION = "revision.json"  # read by mm/runtime/workdir.py where there is no .git
DIFF = "dirty.diff"
MOST_BYTES = 64 * 2**20


class Code(NamedTuple):
    """archive: a .tar.gz of the checkout, with REVISION and DIFF at its root.

    diff: of what is not committed, new files included; empty if nothing.
    """

    revision: str
    diff: bytes
    changed: tuple[str, ...]
    archive: bytes

    def describe(self) -> str:
        if not self.diff:
            return f"code: {self.revision}, nothing uncommitted"
        return (
            f"code: {self.revision} and uncommitted changes "
            f"(sha256 {self.digest}) of {', '.join(self.changed)}"
        )

    def record(self) -> dict[str, object]:
        """What REVISION says, and the run's environment.json with it."""
        return {"revision": self.revision, "dirty": bool(self.diff), "diff_sha256": self.digest}

    def names(self) -> set[str]:
        """Of the files in the archive, from its root."""
        with tarfile.open(fileobj=io.BytesIO(self.archive)) as archive:
            return {one.name for one in archive if one.isfile()}

    @property
    def digest(self) -> str:
        """Of the diff, shortened."""
        return hashlib.sha256(self.diff).hexdigest()[:12] if self.diff else ""


def snapshot(folder: Path, exclude: Sequence[str] = ()) -> Code:
    """What `folder` holds now. exclude: folders at its root to leave out of the archive.

    Raises Failure where it is no git checkout, and when the archive has more than MOST_BYTES.
    """
    with tempfile.TemporaryDirectory(prefix="launch-code-") as temporary:
        index = {"GIT_INDEX_FILE": f"{temporary}/index"}
        revision = _git(folder, "rev-parse", "HEAD").decode().strip()
        _git(folder, "read-tree", "HEAD", **index)
        _git(folder, "add", "--all", ":/", **index)
        tree = _git(folder, "write-tree", **index).decode().strip()
        diff = _git(folder, "diff", "--binary", "--no-color", "--no-ext-diff", revision, tree)
        names = _git(folder, "diff", "--name-only", revision, tree).decode().splitlines()
        code = Code(revision, diff, tuple(names), b"")
        Path(temporary, REVISION).write_text(json.dumps(code.record()) + "\n")
        Path(temporary, DIFF).write_bytes(diff)
        archive = _git(
            folder,
            *("archive", "--format=tar.gz", "-9"),
            *(f"--add-file={temporary}/{name}" for name in (REVISION, DIFF)),
            tree,
            *("--", ".", *(f":(exclude){name}" for name in exclude)),
        )
    if len(archive) > MOST_BYTES:
        raise Failure(
            f"the code of {folder} is {len(archive) >> 20} MiB compressed, more than "
            f"{MOST_BYTES >> 20}: is there data that .gitignore should name?",
            REFUSED,
        )
    return code._replace(archive=archive)


def _git(folder: Path, *arguments: str, **environment: str) -> bytes:
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            env={**os.environ, **environment},
            capture_output=True,
            check=True,
        ).stdout
    except FileNotFoundError:
        raise Failure("git is not installed; it tells which code a run has", REFUSED) from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise Failure(f"git {arguments[0]} in {folder}: {said[-1]}", REFUSED) from None
