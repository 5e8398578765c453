"""docs/launch.md names every flag; pins are the same wherever they are."""

import re
import subprocess
import sys

import pytest

from tests.launch.cloud import ROOT


@pytest.mark.parametrize("launcher", ["local", "tpu_vm", "gke", "slurm"])
def test_every_flag_is_documented(launcher):
    command = [sys.executable, "-m", f"launch.{launcher}", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    flags = set(re.findall(r"^  (--\w+)", shown, re.M))
    page = (ROOT / "docs" / "launch.md").read_text()
    assert len(flags) > 5
    assert sorted(flag for flag in flags if f"`{flag}" not in page) == []


def test_tpus_get_the_jax_that_is_pinned():
    everywhere = (ROOT / "requirements.txt").read_text()
    on_tpus = (ROOT / "requirements-tpu.txt").read_text()
    (pin,) = re.findall(r"^jax==(\S+)$", everywhere, re.M)
    assert re.findall(r"^jax\[tpu\]==(\S+)$", on_tpus, re.M) == [pin]
    assert set(re.findall(r"jax\[\w+\]==([\d.]+)", everywhere)) == {pin}
    page = (ROOT / "docs" / "launch.md").read_text()
    assert set(re.findall(r"jax\[\w+\]==([\d.]+)", page)) == {pin}
