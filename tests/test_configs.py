"""Every file in configs/ is built at full size, and trained for three steps when shrunken."""

import json
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from data.sources import open_source
from mm.config import load
from mm.optim.paths import flatten
from mm.program import build_program
from mm.runtime import metrics
from mm.train import train

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").rglob("*.py"))
PAIRS = 120  # the last 1% is one of them
BATCH = 16
# What is smaller in a test, and how small; a number that is smaller already stays.
SMALL = dict(
    width=16, mlp_dim=32, pool_dim=32, embed_dim=16, cell_width=8, hidden=16,
    num_heads=2, depth=2, vocab_size=64, global_batch_size=BATCH, batch_size=BATCH,
    total_steps=3, warmup_steps=1, every_steps=3,
)  # fmt: skip

each_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A pairs.jsonl with pictures made up by the synthetic source."""
    folder = tmp_path_factory.mktemp("pairs")
    source = open_source({"name": "synthetic", "num_examples": PAIRS, "image_size": 20}, "pairs")
    lines = []
    for i, example in enumerate(source.read(np.arange(PAIRS))):
        (folder / f"{i}.png").write_bytes(example["image"])
        lines.append(json.dumps({"image": f"{i}.png", "caption": example["label"]}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder / "pairs.jsonl"


@pytest.fixture
def open_config(pairs, tokenizer):
    """path -> its config, with the arguments that it needs."""
    arguments = {"pairs": f":path={pairs},tokenizer={tokenizer}"}
    return lambda path: load(f"{path}{arguments.get(path.stem, '')}")


@pytest.fixture
def shrunken(open_config, tokenizer):
    """path -> its config, small and without downloads, otherwise as it is."""

    def shrink(path):
        config = open_config(path)
        with config.unlocked():
            image_size = 2 * config.model.image.patch_size
            config.model.image.image_size = image_size
            visit(config, image_size, tokenizer)
        return config

    return shrink


def visit(node: ConfigDict, image_size: int, tokenizer: Path) -> None:
    """Shrinks the numbers of SMALL, and what a preprocessing string and a source say."""
    for key, value in node.items():
        if key == "source" and value.name == "tfds":
            node[key] = dict(name="synthetic", num_examples=40, image_size=20)
        elif isinstance(value, ConfigDict):
            visit(value, image_size, tokenizer)
        elif key == "preprocess":
            value = re.sub(r"(resize|random_resized_crop)\(\d+", rf"\1({image_size}", value)
            node[key] = re.sub(r"tokenize\([^,]+,", f'tokenize("{tokenizer}",', value)
        elif key in SMALL and value is not None:
            node[key] = min(value, SMALL[key])


@each_config
@pytest.mark.parametrize("num_devices", [1, 8])
def test_a_config_builds_at_full_size(path, num_devices, open_config):
    config = open_config(path)
    program = build_program(config, jax.devices()[:num_devices])
    leaves = flatten(program.state.params)
    assert len(program.mesh.devices.flat) == num_devices
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves.values())
    split = sum(leaf.size for leaf in leaves.values() if not leaf.sharding.is_fully_replicated)
    total = sum(leaf.size for leaf in leaves.values())
    if config.sharding.rules == "dp" or num_devices == 1:
        assert split == 0
    else:
        assert split > 0.99 * total


@each_config
def test_a_shrunken_config_trains_and_evaluates(path, shrunken, tmp_path):
    config = shrunken(path)
    assert train(config, str(tmp_path)) == 0
    lines = metrics.read(tmp_path / "metrics.jsonl")
    assert lines[-1]["step"] == 3 and all(math.isfinite(line["loss"]) for line in lines)
    results = json.loads((tmp_path / "results.json").read_text())
    assert {key.split("/")[0] for key in results} == set(config.evals)
    assert config.checkpoint.get("keep_best") in {*results, None}
