"""Every file in configs/ is built at full size, and trained for three steps when shrunken."""

import functools
import json
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.menu import resize
from data.sources import open_source
from data.sources.synthetic import SHAPES
from data.tokenizers.train import train as train_tokenizer
from mm.config import BadInput, load
from mm.optim.paths import flatten
from mm.program import build_program
from mm.runtime import metrics
from mm.train import train
from tests import runs
from tests.resolved import GOLDEN, built, cases, text
from tests.tiny import TEXTS

CASES = cases()
# One variant a recipe is trained, and the phases that begin with what another left.
TRAINED = {
    "ablations-quickstart": None, "clip-B-32": None, "flip-L-16": None, "lit-B-16": "siglip-B-16",
    "flip-phase-tune": "flip-L-16", "pairs": None, "quickstart": None, "siglip-B-16": None,
    "distill-T-16": None, "eval_emoji": None, "icons-tiny": None, "menu": None,
    "video-size-tiny": None, "probe-parts-all-languages-de": None,
    "classify-group": "quickstart", "instruct-tiny": "quickstart", "vqa-tiny": None,
    "finetune": "quickstart", "finetune-method-prompts": "quickstart",
} | {f"{recipe}-tiny": None for recipe in (
    "albef", "beit3", "blip", "cappa", "coca", "flava", "m3ae", "mae", "moco_mm", "siglip2", "slip",
    "vilbert",
)}  # fmt: skip
PAIRS = 120  # the last 1% is one of them
BATCH, LENGTH = 16, 12
# What is smaller in a test, and how small; a number that is smaller already stays.
SMALL = dict(
    width=16, mlp_dim=32, pool_dim=32, embed_dim=16, cell_width=8, hidden=16,
    num_heads=2, depth=1, vocab_size=64, global_batch_size=BATCH, batch_size=BATCH,
    total_steps=3, warmup_steps=1, cooldown_steps=2, every_steps=3, length=LENGTH, from_step=1,
    queue_size=64, num_codes=16, prototypes=16, out=16, bottleneck=8, base_width=8, groups=4,
    num_classes=len(SHAPES),
)  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A pairs.jsonl with pictures made up by the synthetic source; beside it what `ask` needs."""
    folder = tmp_path_factory.mktemp("pairs")
    source = open_source({"name": "synthetic", "num_examples": PAIRS, "image_size": 20}, "pairs")
    lines = []
    for i, example in enumerate(source.read(np.arange(PAIRS))):
        (folder / f"{i}.png").write_bytes(example["image"])
        taught = {f"teacher_{side}": [i % 7 + 0.5] * SMALL["width"] for side in ("image", "text")}
        asked = {"question": "what is it?", "answers": [example["label"].split()[-1]]}
        line = {"image": f"{i}.png", "caption": example["label"]} | taught | asked
        lines.append(json.dumps(line))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    # What is asked, and a tokenizer that tells where words end.
    what = {"field": "label", "train": ["red?"], "held_out": ["blue?"]}
    (folder / "questions.json").write_text(json.dumps({"what": what}))
    words = train_tokenizer([*TEXTS, "red? blue?"] * 2, SMALL["vocab_size"], "sentencepiece_bpe")
    (folder / "words.json").write_text(words)
    return folder / "pairs.jsonl"


@pytest.fixture(scope="module")
def trained(pairs, tokenizer, tmp_path_factory):
    """name in TRAINED -> (its shrunken config, the workdir of its run)."""

    @functools.cache
    def run(name):
        config = shrunken(CASES[name], pairs, tokenizer)
        if before := TRAINED[name]:
            config.model_init.path = f"run:{run(before)[1]}"
        workdir = tmp_path_factory.mktemp(name)
        assert train(config, str(workdir)) == 0
        return config, workdir

    return run


def shrunken(path_and_arg: str, pairs: Path, tokenizer: Path) -> ConfigDict:
    """The config, small and without downloads, otherwise as it is.

    Its groups of chips are as small as the 8 devices: replica 2, and so fsdp 4.
    """
    config = load(path_and_arg)
    with config.unlocked():
        if config.sharding.mesh.replica > 2:
            config.sharding.mesh.replica = 2
        image_size = 2 * config.model.image.get("patch_size", 16)
        config.model.image.image_size = image_size
        resize(config, SMALL, {})
        visit(config, image_size, tokenizer, pairs)
    return config


def visit(node: ConfigDict, image_size: int, tokenizer: Path, pairs: Path) -> None:
    """Replaces what a preprocessing string and a source say."""
    for key, value in node.items():
        if key in ("source", "train") and isinstance(value, ConfigDict):
            if value.name in ("tfds", "quadruples"):
                count = 120 if key == "train" else 40  # of which probes draw 17 a class
                node[key] = dict(name="synthetic", num_examples=count, image_size=20)
            elif value.name == "jsonl":
                value.path = str(pairs)
        elif isinstance(value, ConfigDict):
            visit(value, image_size, tokenizer, pairs)
        elif key == "strengths":
            node[key] = value[-1:]  # of corruptions, each an evaluation
        elif key == "preprocess":
            other = r'caption\("(labels/\w+|caption)"\)(?=\|tokenize\("emoji")'
            value = re.sub(other, 'caption("label")', value)  # what the synthetic source has
            value = re.sub(r"(resize|random_resized_crop)\(\d+", rf"\1({image_size}", value)
            value = re.sub(r"(numbers\(\"\w+\"), \d+", rf"\1, {SMALL['width']}", value)
            value = re.sub(r'label\("\w+", .+?\)(?=\||$)', f'label("group", {SHAPES})', value)
            value = re.sub(
                r'labels\((.+?), classes="[^"]+"', rf"labels(\1, classes={SHAPES}", value
            )
            value = re.sub(r'ask\("\w+"', f'ask("{pairs.parent / "questions.json"}"', value)
            value = re.sub(r"tokenize\([^,]+, \d+", f'tokenize("{tokenizer}", {LENGTH}', value)
            speller = f'tokenize_answer("{pairs.parent / "words.json"}", {LENGTH}'
            node[key] = re.sub(r"tokenize_answer\([^,]+, \d+", speller, value)
        elif key == "view_size" and value is not None:
            node[key] = image_size


@pytest.mark.parametrize("name", CASES)
def test_a_config_with_its_defaults_is_the_golden_one(name):
    assert text(CASES[name]) == (GOLDEN / f"{name}.txt").read_text(), (
        "make golden, look at the diff"
    )


def test_every_golden_config_is_of_a_recipe():
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_config_is_split_over_its_pod(name):
    program, _ = built(CASES[name])
    leaves = flatten(program.state.params).values()
    split = sum(leaf.size for leaf in leaves if not leaf.sharding.is_fully_replicated)
    if program.recipe.sharding["rules"] == "dp":
        assert split == 0
    else:
        assert split > 0.99 * sum(leaf.size for leaf in leaves)


@pytest.mark.parametrize("name", [name for name in CASES if name.endswith("-tiny")])
def test_a_tiny_variant_is_evaluated_on_whole_pictures(name):
    """Augmentation would make the figures of an ablation noise; views are an objective's own."""
    config = load(CASES[name])
    for evaluation in config.evals.values():
        plain = re.sub(r'view\("\w+", "[^"]+"\)\|', "", evaluation.preprocess)
        whole = (
            r"(decode|decode_video\(\d+\))\|resize\(\d+\)|decode_audio\([\d.]+\)\|log_mel\(\d+\)"
        )
        assert re.match(rf"({whole})(\|patch_mask\([^)]+\))?(\|(caption|ask)\(|$)", plain), plain


@pytest.mark.parametrize("name", TRAINED)
def test_a_config_builds_on_one_device(name):
    config = load(CASES[name])
    config.sharding.mesh.replica = 1  # as the recipes' docstrings say
    program = build_program(config, jax.devices()[:1])
    assert program.mesh.size == 1 and program.train_step is not None


def test_each_recipe_is_trained_in_one_variant():
    assert {CASES[name].split(":")[0] for name in TRAINED} == {
        case.split(":")[0] for case in CASES.values()
    }


@pytest.mark.parametrize("name", TRAINED)
def test_a_shrunken_config_trains_and_evaluates(name, trained):
    config, workdir = trained(name)
    lines = metrics.read(workdir / "metrics.jsonl")
    assert lines[-1]["step"] == 3 and all(math.isfinite(line["loss"]) for line in lines)
    results = json.loads((workdir / "results.json").read_text())
    assert {key.split("/")[0] for key in results} == set(config.evals)
    assert config.checkpoint.get("keep_best") in {*results, None}


def test_a_locked_tower_stays_that_of_the_run_it_came_from(trained):
    (_, source), (_, workdir) = trained("siglip-B-16"), trained("lit-B-16")
    before, after = runs.parameters(source), runs.parameters(workdir)
    same = {path for path in after if np.array_equal(before.get(path), after[path])}
    assert same == {path for path in after if "['image" in path}


@pytest.mark.parametrize(
    ("argument", "message"),
    [("init=a+b,share=1.5", "share=1.5: expected 0 to 1"), ("share=0.3", "is for two runs")],
)
def test_a_share_that_means_nothing_is_refused(argument, message):
    with pytest.raises(BadInput, match=message):
        load(f"configs/finetune.py:{argument}")
