import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mm.program import build_program
from tests.tiny import get_config

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_objective_of_the_readme_runs_beside_the_contrastive_one():
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "class" in block
    ]
    exec(compile(code, "README.md", "exec"), {})
    config = get_config()
    config.objectives.contrastive.image_keep = 1.0
    config.objectives["alignment"] = dict(name="alignment", weight=0.1)
    program = build_program(config, jax.devices()[:1])
    spec = program.batch_spec
    batch = {name: jnp.ones(x.shape, x.dtype) for name, x in spec.items()}
    (loss, (metrics, _)), _ = program.gradients(program.init(0), batch)
    want = metrics["contrastive/loss"] + 0.1 * metrics["alignment/loss"]
    np.testing.assert_allclose(loss, want, rtol=1e-5)


def test_every_file_of_the_layout_exists():
    table = README.split("## How the code is laid out")[1].split("## ")[0]
    for line in table.splitlines():
        for name in re.findall(r"`([\w./]+)`", line.split("|")[1] if "|" in line else ""):
            assert (Path(__file__).parents[1] / name).exists(), name
