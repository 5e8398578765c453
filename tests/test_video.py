"""Clips and sounds through the whole program: configs/video.py."""

import math

import pytest

from data.tokenizers.train import train as train_tokenizer
from mm.config import BadInput, load
from mm.program import build_program
from mm.runtime import metrics
from mm.train import train
from tests.resolved import built

SHAPES = {"video": (8, 48, 48, 3), "audio": (64, 128, 1)}


def tiny(modality, tokenizer="tokenizer.json"):
    return load(f"configs/video.py:modality={modality},size=tiny,tokenizer={tokenizer}")


@pytest.mark.parametrize("modality", SHAPES)
def test_the_model_reads_what_the_input_makes(modality):
    import jax

    program = build_program(tiny(modality), jax.devices()[:1])
    image = program.batch_spec["image"]
    assert image.shape == (64, *SHAPES[modality])
    assert image.dtype == ("uint8" if modality == "video" else "float32")


@pytest.mark.parametrize("argument", ["", "modality=audio"])
def test_the_full_size_builds(argument):
    program, _ = built(f"configs/video.py:{argument}".rstrip(":"))
    want = (128, 1024, 1) if argument else (16, 224, 224, 3)
    assert program.batch_spec["image"].shape[1:] == want


@pytest.mark.parametrize("argument", ["modality=vidio", "size=huge"])
def test_an_unknown_argument_is_refused(argument):
    with pytest.raises(BadInput, match=f"{argument}: expected one of"):
        load(f"configs/video.py:{argument}")


@pytest.mark.slow
@pytest.mark.parametrize("modality", SHAPES)
def test_eight_steps_on_made_up_examples(modality, tmp_path):
    texts = ["red circle moves left", "soft low rising tone"] * 2
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(train_tokenizer(texts, 300))
    config = tiny(modality, tokenizer)
    with config.unlocked():
        config.total_steps, config.global_batch_size, config.log.every_steps = 8, 32, 1
        config.optimizer.schedule.warmup_steps = 2
        config.evals.held_out.source.num_examples = 32
        config.evals.held_out.batch_size = 32
        config.evals.held_out.every_steps = 8
    assert train(config, str(tmp_path / "run")) == 0
    lines = metrics.read(tmp_path / "run/metrics.jsonl")
    assert lines[-1]["step"] == 8 and all(math.isfinite(line["loss"]) for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"]
