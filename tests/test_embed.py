"""`--mode=embed`: what it writes, how it goes on, and what it refuses."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

import main
from data.prepare.scores import read_scores
from data.sources import open_source
from mm import embed
from mm.config import load
from mm.evaluate import restored
from mm.program import build_program
from tests.tiny import TEXTS


@pytest.fixture(scope="module")
def finished(tokenizer, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    call(tokenizer, workdir, "--config.total_steps=2")
    return workdir


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Forty pairs, of which number 21 has a broken picture."""
    folder = tmp_path_factory.mktemp("pairs")
    records = open_source(dict(name="synthetic", num_examples=40, image_size=16), "x").read(
        np.arange(40), ["image"]
    )
    lines = []
    for i, record in enumerate(records):
        (folder / f"{i}.png").write_bytes(b"broken" if i == 21 else record["image"])
        lines.append(json.dumps({"image": f"{i}.png", "label": TEXTS[i % 4]}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder / "pairs.jsonl"


def call(tokenizer, workdir, *flags):
    with pytest.raises(SystemExit) as stopped:
        main.main([f"--config=tests/tiny.py:tokenizer={tokenizer}", f"--workdir={workdir}", *flags])
    return stopped.value.code or 0


@pytest.fixture
def run(tokenizer, finished, capsys, monkeypatch):
    """run("--source=...", ...) -> (exit code, stdout, stderr)."""
    monkeypatch.setattr(embed, "_PART_ROWS", 16)
    capsys.readouterr()

    def run(*flags):
        return call(tokenizer, finished, "--mode=embed", *flags), *capsys.readouterr()

    return run


def source(path):
    return f"--source={dict(name='jsonl', path=str(path), caption_key='label')}"


def test_a_table_has_the_columns_that_the_run_trained_on(tokenizer, pairs):
    config = load(f"tests/tiny.py:tokenizer={tokenizer}")
    named = dict(name="jsonl", path=str(pairs), caption_key="label")
    config.input.source = named
    program = build_program(config)
    assert embed._input(program, str(pairs), None)[0] == named
    assert embed._input(program, f"{dict(name='csv', path='a')}", None)[0] == {
        "name": "csv",
        "path": "a",
    }


def ops(tokenizer):
    words = f'caption("caption")|tokenize("{tokenizer}", 8)'
    return f"--preprocess=decode|resize(16)|value_range(-1, 1)|{words}"


def parts(output):
    return [pq.read_table(path) for path in sorted(output.glob("part-*.parquet"))]


def test_all_whole_pairs_are_embedded_and_scored(run, pairs, tokenizer, tmp_path):
    code, out, err = run(source(pairs), ops(tokenizer), f"--output={tmp_path}/found")
    assert code == 0 and "39 of 40 pairs embedded in" in out, err
    tables = parts(tmp_path / "found")
    assert [len(table) for table in tables] == [16, 15, 8]
    assert np.concatenate([t["id"] for t in tables]).tolist() == [i for i in range(40) if i != 21]
    image, text = (
        np.concatenate([np.stack(t[key].to_numpy()) for t in tables]) for key in ("image", "text")
    )
    assert image.shape == text.shape == (39, 16) and image.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(text[0], text[4])  # the same words
    scores = read_scores(str(tmp_path / "found" / "scores.npz"), "score")
    assert scores.num_examples == 40 and np.isnan(scores.of(21))
    assert sum(score >= scores.threshold(0.5) for score in scores.values) in (20, 21)  # of 39
    found = [scores.of(i) for i in range(40) if i != 21]
    np.testing.assert_allclose(found, (image.astype(np.float64) * text).sum(1), atol=1e-6)


def test_by_default_they_are_those_of_the_training_pairs(run, finished, tokenizer):
    code, out, err = run()
    assert code == 0 and "40 of 40 pairs embedded" in out, err
    facts = json.loads((finished / "embeddings-2" / "embeddings.json").read_text())
    assert facts["source"]["num_examples"] == 40 and facts["step"] == 2
    assert "resize(16)" in facts["preprocess"] and "random" not in facts["preprocess"]
    config = load(f"tests/tiny.py:tokenizer={tokenizer}")
    program = build_program(config)
    state, _ = restored(program, str(finished), "latest")
    held_out = embed.open_source(config.input.source, "x")
    _, preprocess, _ = embed._input(program, None, None)
    batch = next(
        embed.eval_batches(held_out, preprocess, batch_size=16, sharding=program.batch_sharding)
    )
    want, _ = program.embed(state, batch)
    first = np.stack(parts(finished / "embeddings-2")[0]["image"].to_numpy())
    np.testing.assert_allclose(first, want, atol=1e-6)


def test_a_killed_run_goes_on_at_the_file_where_it_was(run, pairs, tokenizer, tmp_path):
    output = tmp_path / "found"
    flags = source(pairs), ops(tokenizer), f"--output={output}"
    assert run(*flags)[0] == 0
    whole = {path.name: path.read_bytes() for path in output.iterdir()}
    (output / "part-000001.parquet").unlink()
    (output / "part-000002.parquet").unlink()
    before = (output / "part-000000.parquet").stat().st_mtime_ns
    code, out, err = run(*flags)
    assert code == 0 and "1 of 3 files" not in out and "3 of 3 files written" in out, err
    assert (output / "part-000000.parquet").stat().st_mtime_ns == before
    assert {path.name: path.read_bytes() for path in output.iterdir()} == whole


def test_a_folder_with_embeddings_of_something_else_is_left_alone(run, pairs, tokenizer, tmp_path):
    output = f"--output={tmp_path}/found"
    assert run(source(pairs), ops(tokenizer), output)[0] == 0
    code, _, err = run(output)
    assert code == 2 and "has embeddings of something else: preprocess (given" in err
    assert len(err.splitlines()) == 1 and err.endswith("set --output\n")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--source={1}"], "--source={1}: is a set; expected a mapping"),
        (["--source=none.jsonl"], "none.jsonl: cannot be read"),
        (["--preprocess=decode|resize(8)"], "--preprocess: makes "),
        (["--preprocess=decode|resize(8"], "--preprocess"),
        (["--step=7"], "no checkpoint of step 7"),
        (["--topology=v5e:4x4"], "--topology=v5e:4x4: goes with --mode=plan, not embed"),
    ],
)
def test_wrong_input_is_said_in_one_line(run, flags, message):
    code, _, err = run(*flags)
    assert code == 2 and message in err and len(err.splitlines()) == 1


def test_ops_that_do_not_fit_the_source_say_which_flag_gives_others(run, pairs):
    code, _, err = run(source(pairs))
    assert code == 2 and "; give ops for it with --preprocess (now: decode|resize(16)" in err


def test_its_flags_go_with_no_other_mode(run):
    code, _, err = run("--mode=eval", "--source=pairs.jsonl")
    assert code == 2 and "--source=pairs.jsonl: goes with --mode=embed, not eval" in err
