import os
import subprocess
import sys
from pathlib import Path

import pytest

from mm.config import BadInput
from mm.planning import topology
from mm.planning.topology import CHIPS, GPUS, open_topology, parse


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("v5e:16x16", (1, "v5e", "16x16")),
        ("2*v5p:8x8x8", (2, "v5p", "8x8x8")),
        ("h100:64", (1, "h100", "64")),
    ],
)
def test_a_name_says_slices_kind_and_shape(name, parsed):
    assert parse(name) == parsed


def test_gpus_need_no_compiler_and_stand_in_for_devices():
    found = open_topology("2*h100:8")
    assert len(found.devices) == 16 and found.chip == GPUS["h100"]
    assert found.chip.compiler_hertz is None and all(c.compiler_hertz for c in CHIPS.values())


@pytest.mark.slow
def test_a_device_is_a_chip_whatever_cores_it_has():
    """v4 and v5p have two a chip, v5e and v6e one; in a process of its own, as libtpu wants it."""
    names = ["v4:2x2x1", "2*v4:2x2x2", "v5p:2x2x1", "v5e:2x2", "v6e:2x2"]
    code = (
        "from mm.planning.topology import open_topology\n"
        f"print([len(open_topology(name).devices) for name in {names}])"
    )
    clean = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean, capture_output=True, text=True,
        cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    assert done.stdout == "[4, 16, 4, 4, 4]\n", done.stderr


def test_without_libtpu_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    for key, value in topology.ENVIRONMENT.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(BadInput, match="needs libtpu, the TPU compiler: `make plan-tools`"):
        open_topology("v5e:2x2")
