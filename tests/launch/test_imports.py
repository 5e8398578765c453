"""A laptop without JAX can submit."""

import subprocess
import sys

import pytest

from tests.launch.cloud import ROOT

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ROOT.glob("launch/**/*.py")
)


@pytest.mark.parametrize("module", MODULES)
def test_launch_imports_no_jax_tensorflow_or_numpy(module):
    code = (
        f"import sys, importlib; importlib.import_module({module!r})\n"
        "print([m for m in ('jax', 'tensorflow', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "command", [["main.py", "--config=c.py", "--workdir=w"], ["-m", "launch.sweep", "s.py"]]
)
def test_without_the_packages_one_line_says_what_to_do(command):
    done = subprocess.run(  # -S: nothing that was installed
        [sys.executable, "-S", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "has no jax: activate the environment" in done.stderr


@pytest.mark.parametrize("launcher", ["local", "tpu_vm", "gke", "slurm"])
def test_a_launcher_needs_no_packages(launcher):
    command = [sys.executable, "-S", "-m", f"launch.{launcher}", "--help"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
