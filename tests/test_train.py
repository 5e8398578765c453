"""The whole of a run: what it writes, how it continues, and how it refuses."""

import json
import math
import os
import tarfile

import jax
import numpy as np
import pytest
from PIL import Image

import main
from data.order import example_at
from data.tokenizers.train import train as train_tokenizer
from mm.evals.retrieval import Retrieval
from mm.report import run as report
from mm.runtime import goodput, metrics, preemption
from mm.runtime.checkpoint import Checkpointer
from tests.runs import assert_same_run, column
from tests.tiny import TEXTS


@pytest.fixture
def run(tokenizer, capsys):
    """run(workdir, "--config.seed=1", ...) -> (exit code, stdout, stderr)."""

    def call(workdir, *flags):
        arguments = [f"--config=tests/tiny.py:tokenizer={tokenizer}", f"--workdir={workdir}"]
        with pytest.raises(SystemExit) as stopped:
            main.main([*arguments, *flags])
        return stopped.value.code or 0, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def finished(tokenizer, tmp_path_factory):
    """A run that was never interrupted."""
    workdir = tmp_path_factory.mktemp("finished")
    with pytest.raises(SystemExit) as stopped:
        main.main([f"--config=tests/tiny.py:tokenizer={tokenizer}", f"--workdir={workdir}"])
    assert not stopped.value.code
    return workdir


def test_every_step_is_one_line_with_the_rates(finished):
    lines = metrics.read(finished / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert {"examples_per_second", "data_wait_fraction", "learning_rate"} <= lines[-1].keys()
    assert all(line["memory/step"] > 0 for line in lines)


def test_the_final_evaluation_is_one_flat_object(finished):
    results = json.loads((finished / "results.json").read_text())
    assert results.keys() == {
        f"held_out/{direction}/{metric}"
        for direction in ("text_to_image", "image_to_text")
        for metric in ("recall@1", "recall@5", "recall@10", "median_rank")
    } | {"held_out/pool_size"}
    last = metrics.read(finished / "metrics.jsonl")[-1]
    assert {key: last[key] for key in results} == results


def test_a_run_says_what_it_ran_and_where(finished):
    assert json.loads((finished / "config.json").read_text())["total_steps"] == 8
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__ and "git" in environment
    assert "model/image/encoder/blocks/mlp/up/kernel" in (finished / "parameters.txt").read_text()
    assert list((finished / "tensorboard").glob("events.*"))


def test_the_checkpoint_carries_preprocessing_and_tokenizer(finished, tokenizer):
    manifest = Checkpointer(finished / "checkpoints", read_only=True).manifest()
    assert manifest["version"] and manifest["format_version"]
    assert manifest["preprocess"].startswith("decode|random_resized_crop")
    assert manifest["tokenizer"]["length"] == 8 and manifest["tokenizer"]["lowercase"]
    assert manifest["tokenizer_json"] == tokenizer.read_text()


def test_a_run_leaves_its_page_its_recipe_and_where_its_time_went(finished, tokenizer):
    page = (finished / "report.html").read_text()
    assert "Retrieval: held_out" in page and "Where the model finds words" in page
    assert "painted over" in page and "(pooling)" in page  # no fusion; a pool that attends
    assert "finished" in page and f"As in <code>tests/tiny.py:tokenizer={tokenizer}</code>" in page
    assert "Left out" not in page and "No pictures" not in page
    [start] = goodput.read(finished / "goodput.json")
    assert (start["first_step"], start["last_step"], start["ended"]) == (0, 8, "finished")
    assert start["seconds"].keys() == {"start", "compile", "data", "train", "evaluate", "save"}


def test_the_page_of_a_run_can_be_drawn_again(finished):
    before = (finished / "report.html").read_text()
    assert report.build(finished) == before


def test_a_run_says_where_its_page_is(finished, run):
    _, out, _ = run(finished)
    assert out.splitlines()[-1] == f"all of it on one page: {finished}/report.html"


def test_the_recipe_is_kept_as_it_was_before_keys_were_set(run, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(main, "run", lambda flags, config: kept.append((flags.origin, config)) or 0)
    run(tmp_path, "--config.seed=5")
    [(origin, config)] = kept
    assert config.seed == 5 and origin["config"]["seed"] == 0
    assert origin["name"].startswith("tests/tiny.py:tokenizer=")


def test_a_start_does_not_import_keras_and_what_keras_imports(run, tmp_path, monkeypatch):
    """Which TensorFlow does, if this is not set before it is imported."""
    monkeypatch.delenv("TF_USE_LEGACY_KERAS")
    monkeypatch.setattr(main, "run", lambda flags, config: 0)
    run(tmp_path)
    assert os.environ["TF_USE_LEGACY_KERAS"] == "1"


def test_a_run_that_is_complete_only_evaluates_again(finished, run):
    before = (finished / "metrics.jsonl").read_text()
    code, out, _ = run(finished)
    assert code == 0 and "continuing from the checkpoint of step 8" in out
    assert (finished / "metrics.jsonl").read_text() == before


def test_eval_mode_gives_the_results_of_the_run(finished, run):
    code, _, _ = run(finished, "--mode=eval")
    results = json.loads((finished / "results.json").read_text())
    assert code == 0 and json.loads((finished / "eval-8" / "results.json").read_text()) == results
    assert (finished / "eval-8" / "held_out.png").exists()
    assert "evaluation eval-8" in (finished / "eval-8" / "report.html").read_text()


def test_eval_mode_takes_the_step_that_is_asked_for(finished, run):
    lines = {line["step"]: line for line in metrics.read(finished / "metrics.jsonl")}
    key = "held_out/text_to_image/recall@1"
    best = max((lines[step][key], step) for step in (4, 8))[1]
    code, out, err = run(finished, "--mode=eval", "--step=best")
    assert code == 0 and f"checkpoint of step {best}" in out, err
    code, out, _ = run(finished, "--mode=eval", "--step=4")
    results = json.loads((finished / "eval-4" / "results.json").read_text())
    assert code == 0 and results[key] == lines[4][key]
    code, _, err = run(finished, "--mode=eval", "--step=5")
    assert code == 2 and "no checkpoint of step 5" in err and "[4, 8]" in err


def test_the_config_of_a_run_can_be_run(finished, capsys):
    with pytest.raises(SystemExit) as stopped:
        main.main([f"--config={finished}/config.json", f"--workdir={finished}", "--mode=eval"])
    assert not stopped.value.code, capsys.readouterr().err


def test_a_device_without_room_is_told_in_one_line(run, tmp_path, monkeypatch):
    def fail(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: wanted 181 GB\nmore")

    monkeypatch.setattr(main, "run", fail)
    code, _, err = run(tmp_path)
    assert code == 1 and err.startswith("error: out of memory (RESOURCE_EXHAUSTED: wanted 181 GB);")
    assert len(err.splitlines()) == 1 and "config.global_batch_size" in err


def test_eval_mode_refuses_another_function_of_the_same_shapes(finished, run):
    config = json.loads((finished / "config.json").read_text())
    text = config["model"]["text"] | {"pool": "mean"}
    code, _, err = run(finished, "--mode=eval", f"--config.model.text={text}")
    assert code == 2 and 'text.pool (given "mean", found nothing)' in err, err
    code, _, _ = run(finished, "--mode=eval", "--config.model.image.dropout=0.0")
    assert code == 0


def test_a_stopped_run_continues_bit_for_bit(finished, run, tmp_path, monkeypatch):
    stop = preemption.StopSignals.stop_requested
    monkeypatch.setattr(preemption.StopSignals, "stop_requested", lambda self, step: step == 3)
    code, out, _ = run(tmp_path)
    assert code == preemption.PREEMPTED and "the same command continues" in out
    monkeypatch.setattr(preemption.StopSignals, "stop_requested", stop)
    code, out, _ = run(tmp_path)
    assert code == 0 and "continuing from the checkpoint of step 3" in out
    assert_same_run(tmp_path, finished)


def test_a_run_that_is_told_to_stop_saves_before_it_evaluates(run, tmp_path, monkeypatch):
    monkeypatch.setattr(preemption.StopSignals, "stop_requested", lambda self, step: step == 4)
    code, _, _ = run(tmp_path)
    assert "stopped" in (tmp_path / "report.html").read_text()
    last = metrics.read(tmp_path / "metrics.jsonl")[-1]
    assert code == preemption.PREEMPTED and (tmp_path / "checkpoints" / "4").is_dir()
    assert last["step"] == 4 and not any(key.startswith("held_out/") for key in last)


def test_pictures_are_drawn_when_all_is_saved(run, tmp_path, monkeypatch):
    """And what became of each example is written; what fails then is told and fails nothing."""
    saved = []

    def draw(*_):
        step = Checkpointer(tmp_path / "checkpoints", read_only=True).latest_step()
        saved.append((step, (tmp_path / "results.json").exists()))
        raise OSError("no space")

    monkeypatch.setattr(Retrieval, "_draw", draw)
    monkeypatch.setattr("mm.report.outcomes.write", draw)
    code, out, _ = run(tmp_path, "--config.total_steps=2")
    assert code == 0 and saved == [(2, True)] * 2
    for what in ("pictures", "outcomes"):
        assert f"warning: no {what} of held_out: OSError: no space" in out


def test_a_run_does_not_continue_on_a_changed_source(finished, run, monkeypatch):
    from data.sources import synthetic

    monkeypatch.setattr(synthetic.Made, "__len__", lambda self: self._num_examples + 1)
    code, _, err = run(finished)
    assert code == 2 and "has 41 examples, had 40 when this run began" in err


def broken_pairs(folder, broken, whole):
    """Lines of pictures that cannot be decoded, then of whole ones."""
    (folder / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (16, 16), (200, 0, 0)).save(folder / "whole.png")
    names = ["broken.png"] * broken + ["whole.png"] * whole
    rest = {"label": "red circle", "tags": ["red"], "concept": "z"}
    lines = "".join(json.dumps({"image": name, **rest}) + "\n" for name in names)
    (folder / "pairs.jsonl").write_text(lines)
    source = {"name": "jsonl", "path": str(folder / "pairs.jsonl")}
    return f"--config.input.source={source}"


def test_a_picture_that_cannot_be_decoded_is_named(run, tmp_path):
    code, _, err = run(tmp_path / "run", broken_pairs(tmp_path, 15, 0))
    assert code == 2 and "none of 15 examples all over the source is whole" in err, err
    assert "cannot be decoded" in err and "Traceback" not in err


def test_too_many_broken_examples_end_the_run_with_a_table(run, tmp_path):
    flags = broken_pairs(tmp_path, 5, 15), "--config.input.max_bad_share=0"
    code, _, err = run(tmp_path / "run", *flags)
    assert code == 2 and "examples are broken, more than max_bad_share=0" in err, err
    assert "picture cannot be decoded: example" in err and "Traceback" not in err


def test_broken_examples_are_counted_through_a_stop(run, tmp_path, monkeypatch):
    """As often as a run that was not stopped counts them, and as the order says."""

    def counts(workdir):
        return Checkpointer(workdir / "checkpoints", read_only=True).manifest()["bad_examples"]

    flags = broken_pairs(tmp_path, 1, 19), "--config.input.max_bad_share=0.5"
    code, _, err = run(tmp_path / "whole", *flags)
    assert code == 0 and "were replaced" in err, err
    stop = preemption.StopSignals.stop_requested
    monkeypatch.setattr(preemption.StopSignals, "stop_requested", lambda self, step: step == 3)
    assert run(tmp_path / "stopped", *flags)[0] == preemption.PREEMPTED
    monkeypatch.setattr(preemption.StopSignals, "stop_requested", stop)
    assert run(tmp_path / "stopped", *flags)[0] == 0
    drawn = example_at(np.arange(8 * 16), 20, 0)[0]
    want = {"picture cannot be decoded": int((drawn == 0).sum())}
    assert counts(tmp_path / "stopped") == counts(tmp_path / "whole") == want
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_pictures_grow_and_texts_get_longer_at_a_step(run, tmp_path, tokenizer, monkeypatch):
    """A stop before, or at, the change makes no difference."""
    ops = "decode|random_resized_crop(%d)|caption('label')|tokenize('%s', %d)|group('concept')"
    flags = [f"--config.input.preprocess={ops % (8, tokenizer, 6)}", "--config.total_steps=6"]
    flags += [f"--config.input.phases=((3, {ops % (16, tokenizer, 8)!r}),)"]
    code, _, err = run(tmp_path / "whole", *flags)
    assert code == 0, err
    stop = preemption.StopSignals.stop_requested
    for step in (2, 3):
        workdir = tmp_path / str(step)
        requested = lambda self, now, step=step: now == step  # noqa: E731
        monkeypatch.setattr(preemption.StopSignals, "stop_requested", requested)
        assert run(workdir, *flags)[0] == preemption.PREEMPTED
        monkeypatch.setattr(preemption.StopSignals, "stop_requested", stop)
        assert run(workdir, *flags)[0] == 0
        assert_same_run(workdir, tmp_path / "whole")
    manifest = Checkpointer(tmp_path / "whole/checkpoints", read_only=True).manifest()
    assert "random_resized_crop(16)" in manifest["preprocess"]


def test_a_mixture_of_shards_and_pairs_continues_bit_for_bit(run, tmp_path, tokenizer, monkeypatch):
    """Windows of shards, weights that change at a step, a stop just after."""
    broken_pairs(tmp_path, 0, 9)
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for i in range(11):
            (tmp_path / "caption.txt").write_text("red circle")
            tar.add(tmp_path / "whole.png", f"{i}.png")
            tar.add(tmp_path / "caption.txt", f"{i}.txt")
    parts = {
        "shards": {"name": "webdataset", "path": str(tmp_path / "0.tar")},
        "pairs": {"name": "jsonl", "path": str(tmp_path / "pairs.jsonl"), "caption_key": "label"},
    }
    weights = ((0, {"shards": 1, "pairs": 3}), (2, {"shards": 3, "pairs": 1}))
    source = {"name": "mixture", "parts": parts, "weights": weights}
    ops = (
        "decode|random_resized_crop(16)|flip|caption('caption')|tokenize('%s', 8)|group('caption')"
    )
    flags = [
        f"--config.input.source={source}",
        "--config.input.preprocess=" + ops % tokenizer,
        "--config.input.order={'name': 'windows', 'lanes': 2, 'size': 4}",
        "--config.total_steps=4",
    ]
    code, _, err = run(tmp_path / "whole", *flags)
    assert code == 0, err
    stop = preemption.StopSignals.stop_requested
    monkeypatch.setattr(preemption.StopSignals, "stop_requested", lambda self, step: step == 3)
    assert run(tmp_path / "stopped", *flags)[0] == preemption.PREEMPTED
    monkeypatch.setattr(preemption.StopSignals, "stop_requested", stop)
    assert run(tmp_path / "stopped", *flags)[0] == 0
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize(
    "phases, message",
    [
        ("((3, 'decode|resize(12)'),)", "config.input.phases[0]: makes no 'text'"),
        ("((3, 'decode|resise(12)'),)", "config.input.phases[0]: no op 'resise'; did you mean"),
        ("((3, 'decode'), (2, 'decode'))", "config.input.phases: step 2 after step 3"),
        ("(3,)", "config.input.phases: 3 is no (step, ops)"),
        (
            "((3, \"decode|resize(16)|caption('label')|tokenize('TOKENIZER', 8, lowercase=True)"
            "|group('concept')\"),)",
            "config.input.phases[0]: has another tokenizer than the ops before",
        ),
    ],
)
def test_phases_that_cannot_be_are_refused(run, tmp_path, tokenizer, phases, message):
    phases = phases.replace("TOKENIZER", str(tokenizer))
    code, _, err = run(tmp_path, f"--config.input.phases={phases}")
    assert code == 2 and message in err, err


def test_a_run_that_is_profiled_says_where_the_time_goes(run, tmp_path):
    code, _, err = run(tmp_path, "--config.input.profile=1", "--config.total_steps=4")
    last = metrics.read(tmp_path / "metrics.jsonl")[-1]
    assert code == 0 and "input, ms a batch: read " in err, err
    stages = ("read", "decode", "augment", "text", "tokenize", "transfer")
    assert {f"input/{stage}_seconds" for stage in stages} <= last.keys()


def test_a_run_continues_on_another_mesh(finished, run, tmp_path, monkeypatch):
    stop = preemption.StopSignals.stop_requested
    monkeypatch.setattr(preemption.StopSignals, "stop_requested", lambda self, step: step == 4)
    run(tmp_path)
    monkeypatch.setattr(preemption.StopSignals, "stop_requested", stop)
    flags = ("--config.sharding.rules=fsdp_tp", "--config.sharding.mesh={'fsdp': 4, 'tensor': 2}")
    code, out, err = run(tmp_path, *flags)
    assert code == 0 and "step 4; the mesh was {fsdp: 8}, is {fsdp: 4, tensor: 2}\n" in out, err
    np.testing.assert_allclose(column(tmp_path, "loss"), column(finished, "loss"), rtol=1e-4)
    assert column(tmp_path, "batch_hash") == column(finished, "batch_hash")


@pytest.fixture(scope="module")
def accumulated(tokenizer, tmp_path_factory):
    """The run of `finished`, in two micro-batches a step."""
    workdir = tmp_path_factory.mktemp("accumulated")
    config = f"--config=tests/tiny.py:tokenizer={tokenizer}"
    with pytest.raises(SystemExit) as stopped:
        main.main([config, f"--workdir={workdir}", "--config.accumulation_steps=2"])
    assert not stopped.value.code
    return workdir


def test_a_run_in_micro_batches_has_the_same_losses(finished, accumulated):
    np.testing.assert_allclose(column(accumulated, "loss"), column(finished, "loss"), rtol=1e-5)
    assert column(accumulated, "batch_hash") == column(finished, "batch_hash")


def test_a_run_may_continue_in_other_micro_batches(accumulated, run):
    code, out, err = run(accumulated)
    assert code == 0 and "continuing from the checkpoint of step 8" in out, err


def test_an_override_lands_in_the_saved_config(run, tmp_path):
    code, _, _ = run(tmp_path, "--config.total_steps=2", "--config.optimizer.learning_rate", "0.5")
    config = json.loads((tmp_path / "config.json").read_text())
    assert code == 0 and config["total_steps"] == 2
    assert config["optimizer"]["learning_rate"] == 0.5


def test_a_loss_that_is_not_finite_stops_the_run_in_one_line(run, tmp_path):
    code, _, err = run(tmp_path, "--config.optimizer.learning_rate=1e30")
    assert code == 1
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "the loss of step" in line and "learning_rate" in line
    assert "not finished" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--config.sed=1"], "config: unknown key 'sed'; did you mean 'seed'?"),
        (["--config.model_init=run:/nowhere"], "config.model_init: no checkpoints: /nowhere"),
        (["--config.model.image.wdith=1"], "did you mean 'width'?"),
        (["--config.seed=one"], "config.seed=one: expected int, got str"),
        (["--config.global_batch_size=20"], "must be a positive multiple of 8"),
        (["--config.model.image.num_heads=3"], "does not divide by num_heads=3"),
        (["--config.input.source.num_exmples=3"], "did you mean 'num_examples'?"),
        (["--config.input.preprocess=decode|resise(16)"], "did you mean 'resize'?"),
        (["--config.evals.held_out.batch_size=12"], "config.evals.held_out"),
        (["--config.evals.held_out.every_steps=0"], "expected a positive int or None"),
        (["--config.model.text.vocab_size=16"], "config.model.text.vocab_size=16"),
        (["--config.model.text.length=9"], "makes text int32[8], the model reads int32[9]"),
        (
            ["--config.evals.held_out.preprocess=decode|resize(24)"],
            "config.evals.held_out.preprocess: makes image uint8[24, 24, 3], the model reads",
        ),
        (["--config.log.every_steps=0"], "config.log: every_steps=0"),
        (["--config.checkpoint.keep_best=seen/r"], "no such evaluation in config.evals"),
        (["--config.model.image.dropout=1.0"], "dropout=1.0: expected at least 0 and less than 1"),
        (["--step=best"], "--step=best: goes with --mode=eval"),
        (["--mode=eval", "--step=last"], "no checkpoints"),
        (["--config.checkpoint.keep_lst=1"], "did you mean 'keep_last'?"),
        (
            [
                "--config.input.source={'name': 'tfds', 'dataset': 'emoji', 'split': 'train', "
                "'data_dir': '/nowhere'}"
            ],
            "prepare it with `python -m data.builders.emoji --data_dir=/nowhere`",
        ),
        (["--mode=eval"], "no checkpoints"),
    ],
)
def test_bad_input_is_one_line_and_a_code_before_training(run, tmp_path, flags, message):
    code, _, err = run(tmp_path, *flags)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and message in errors[0], err
    assert "Traceback" not in err and not (tmp_path / "results.json").exists()


def test_a_refused_start_does_not_bind_its_workdir(run, tmp_path):
    code, _, _ = run(tmp_path, "--config.model.text.length=9")
    assert code == 2
    code, _, err = run(tmp_path, "--config.total_steps=2")
    assert code == 0, err


def test_the_workdir_of_another_config_is_refused(finished, run):
    code, _, err = run(finished, "--config.optimizer.learning_rate=0.5")
    assert code == 2
    assert "optimizer.learning_rate (given 0.5, found 0.01)" in err


def test_an_unreadable_checkpoint_is_named(run, tmp_path):
    run(tmp_path, "--config.total_steps=4", "--config.optimizer.schedule.warmup_steps=1")
    for file in (tmp_path / "checkpoints" / "4" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    code, _, err = run(
        tmp_path, "--config.total_steps=4", "--config.optimizer.schedule.warmup_steps=1"
    )
    assert code == 2 and str(tmp_path / "checkpoints" / "4") in err and "delete that" in err


def test_another_tokenizer_is_refused_for_old_weights(finished, run, tmp_path):
    other = tmp_path / "other.json"
    other.write_text(train_tokenizer([*TEXTS, "zebra"], 60))
    config = json.loads((finished / "config.json").read_text())
    flag = config["evals"]["held_out"]["preprocess"]
    path = flag.split('tokenize("')[1].split('"')[0]
    code, _, err = run(
        finished,
        "--mode=eval",
        f"--config.evals.held_out.preprocess={flag.replace(path, str(other))}",
    )
    assert code == 2 and "was trained with another tokenizer" in err
