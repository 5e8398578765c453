"""Two runs by their outcomes: what is printed, what is told apart, and what is refused."""

import json
import re

import numpy as np
import pytest
from etils import epath

from mm.report import compare, outcomes
from mm.report.outcomes import Outcome
from mm.report.statistics import bootstrap_pairs

EVALUATOR = dict(name="retrieval", batch_size=8, rerank=0)
OF = dict(
    source=dict(name="jsonl", path="a.jsonl"), preprocess="decode|resize(8)", evaluator=EVALUATOR
)


def leave(path, right, ids=None, of=OF, **more):
    """A folder as an evaluation leaves it."""
    ids = np.arange(len(right)) if ids is None else ids
    found = {"recall@1": Outcome(ids, np.asarray(right))}
    outcomes.write(epath.Path(path) / "outcomes" / "seen.npz", found, of)
    results = {"seen/recall@1": found["recall@1"].metric, "seen/pool_size": len(right)} | more
    (path / "results.json").write_text(json.dumps(results))
    return str(path)


def two(tmp_path, first, second, **ids):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    return leave(tmp_path / "a", first), leave(tmp_path / "b", second, **ids)


def test_what_is_printed_is_what_the_results_say(tmp_path, capsys):
    rng = np.random.default_rng(0)
    first = rng.random(1000) < 0.6
    second = np.where(rng.random(1000) < 0.1, True, first)
    assert compare.main(two(tmp_path, first, second)) == 0
    printed = capsys.readouterr().out
    assert f"{100 * first.mean():.1f}  " in printed and f"{100 * second.mean():.1f}  " in printed
    difference = f"+{100 * (second.mean() - first.mean()):.1f}"
    assert difference in printed and "second is higher" in printed
    assert "so without an interval: seen/pool_size" in printed


def test_what_one_run_alone_has_is_named(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    more = [{"unseen/mrr": 0.5}, {}]
    folders = [leave(tmp_path / n, np.ones(9), **m) for n, m in zip("ab", more, strict=True)]
    assert compare.main(folders) == 0
    assert "\nonly in first: unseen/mrr\n" in capsys.readouterr().out
    assert compare.main(folders[::-1]) == 0
    assert "\nonly in second: unseen/mrr\n" in capsys.readouterr().out


def test_other_values_of_the_same_examples_are_refused(tmp_path, capsys):
    folders = two(tmp_path, np.ones(10), np.ones((10, 2)))
    assert compare.main(folders) == 2
    assert "keep other things of the same examples" in capsys.readouterr().err


def test_no_difference_is_told_from_noise(tmp_path, capsys):
    rng = np.random.default_rng(1)
    assert compare.main(two(tmp_path, *(rng.random((2, 400)) < 0.5))) == 0
    assert "not distinguishable" in capsys.readouterr().out


def test_the_interval_is_that_of_drawing_examples():
    """Against resamples of the examples themselves, and the normal approximation."""
    rng = np.random.default_rng(2)
    base, arm = rng.random((2, 300)) < [[0.5], [0.6]]
    mean, (low, high) = bootstrap_pairs(base, arm)
    differences = arm.astype(float) - base
    assert mean == pytest.approx(differences.mean())
    chosen = rng.integers(300, size=(20_000, 300))
    want = np.quantile(differences[chosen].mean(axis=1), (0.025, 0.975))
    np.testing.assert_allclose((low, high), want, atol=0.006)
    reach = 1.96 * differences.std() / np.sqrt(300)
    np.testing.assert_allclose((low, high), (mean - reach, mean + reach), atol=0.006)


def test_the_interval_covers_as_often_as_it_says():
    """Of a true difference of 5 points, over 200 samples of 400 examples."""
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        hard = rng.random(400)
        base, arm = hard < 0.5, (hard + 0.05 * rng.normal(size=400)) < 0.55
        _, (low, high) = bootstrap_pairs(base, arm)
        covered += low <= 0.05 <= high
    assert 180 <= covered <= 199


def test_captions_of_a_picture_are_drawn_together():
    """Five captions that are always alike say as much as one."""
    rng = np.random.default_rng(4)
    alone = rng.random((2, 60)) < [[0.4], [0.6]]
    base, arm = np.repeat(alone, 5, axis=1)
    _, want = bootstrap_pairs(*alone)
    _, together = bootstrap_pairs(base, arm, clusters=np.repeat(np.arange(60), 5))
    _, apart = bootstrap_pairs(base, arm)
    np.testing.assert_allclose(together, want, atol=0.02)
    assert np.ptp(apart) < 0.6 * np.ptp(want)


def test_pairs_that_differ_by_no_example_have_an_interval_of_zero():
    assert bootstrap_pairs([1, 0, 1], [1, 0, 1]) == (0, (0, 0))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.arange(1, 11), "was evaluated on 10 examples, .* on 10, not the same ones"),
        (np.arange(9), "was evaluated on 10 examples, .* on 9, not the same ones"),
    ],
)
def test_other_examples_are_refused(tmp_path, capsys, ids, message):
    folders = two(tmp_path, np.ones(10), np.ones(len(ids)), ids=ids)
    assert compare.main(folders) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "source",
            dict(name="jsonl", path="b.jsonl"),
            r"seen: .*another source .*path \(given \"b",
        ),
        ("preprocess", "decode|grayscale|resize(8)", r"seen: .*different ops \(.* and grayscale\)"),
    ],
)
def test_evaluations_of_one_name_on_other_data_are_refused(tmp_path, capsys, key, value, message):
    folders = two(tmp_path, np.ones(10), np.ones(10), of=OF | {key: value})
    assert compare.main(folders) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert compare.main([*folders, "--other_preprocess"]) == (2 if key == "source" else 0)


def test_evaluations_of_one_name_by_other_keys_are_refused(tmp_path, capsys):
    other = OF | dict(evaluator=EVALUATOR | dict(rerank=16))
    assert compare.main(two(tmp_path, np.ones(10), np.ones(10), of=other)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"seen: .*in another way than .*rerank \(given 16, found 0\)", line)


def test_the_size_of_batches_makes_no_difference(tmp_path):
    other = OF | dict(evaluator=EVALUATOR | dict(batch_size=16))
    assert compare.main(two(tmp_path, np.ones(10), np.ones(10), of=other)) == 0


def test_outcomes_that_do_not_say_how_are_of_an_older_version(tmp_path, capsys):
    older = {key: value for key, value in OF.items() if key != "evaluator"}
    assert compare.main(two(tmp_path, np.ones(10), np.ones(10), of=older)) == 2
    assert "seen.npz: is of an older version; --mode=eval makes it again" in capsys.readouterr().err


def test_where_data_lies_makes_no_difference(tmp_path):
    moved = OF | dict(source=OF["source"] | dict(data_dir="/elsewhere"))
    assert compare.main(two(tmp_path, np.ones(10), np.ones(10), of=moved)) == 0


def test_where_training_examples_of_a_probe_lie_makes_no_difference(tmp_path):
    folders = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        train = dict(name="jsonl", path="c.jsonl", data_dir=f"/{name}")
        of = OF | dict(evaluator=dict(name="probes", train=train))
        folders.append(leave(tmp_path / name, np.ones(10), of=of))
    assert compare.main(folders) == 0


def test_outcomes_of_other_results_are_refused(tmp_path, capsys):
    first, second = two(tmp_path, np.ones(10), np.ones(10))
    (tmp_path / "b/results.json").write_text(json.dumps({"seen/recall@1": 0.5}))
    assert compare.main([first, second]) == 2
    assert "results.json says seen/recall@1 is 0.5, its outcomes say 1;" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("results.json", "has no results.json; expected a run that has ended"),
        ("outcomes/seen.npz", "has no outcomes/"),
    ],
)
def test_a_folder_without_them_is_refused(tmp_path, capsys, broken, message):
    folders = two(tmp_path, np.ones(10), np.ones(10))
    (tmp_path / "b" / broken).unlink()
    assert compare.main(folders) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_cut_off_is_refused(tmp_path, capsys):
    folders = two(tmp_path, np.ones(10), np.ones(10))
    file = tmp_path / "b/outcomes/seen.npz"
    file.write_bytes(file.read_bytes()[:100])
    assert compare.main(folders) == 2
    assert "seen.npz: is no file of outcomes" in capsys.readouterr().err


def test_a_file_of_an_older_version_is_refused(tmp_path, capsys):
    folders = two(tmp_path, np.ones(10), np.ones(10))
    file = tmp_path / "b/outcomes/seen.npz"
    np.savez(file, **{"recall@1/ids": np.arange(10), "recall@1/values": np.ones(10)})
    assert compare.main(folders) == 2
    assert "seen.npz: is of an older version; --mode=eval makes it" in capsys.readouterr().err


def test_runs_without_a_common_evaluation_are_refused(tmp_path, capsys):
    folders = two(tmp_path, np.ones(10), np.ones(10))
    (tmp_path / "b/outcomes/seen.npz").rename(tmp_path / "b/outcomes/unseen.npz")
    (tmp_path / "b/results.json").write_text(json.dumps({"unseen/recall@1": 1.0}))
    assert compare.main(folders) == 2
    assert "have no evaluation in common" in capsys.readouterr().err
