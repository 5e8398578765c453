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
