"""Evaluators of heads: exact over uneven batches, the same on any devices, refused in time."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data.preprocess.parse import parse
from mm.config import BadInput
from mm.evals import calibration, classes
from mm.evals.classification import Classification
from mm.evals.matching import Matching, others
from mm.evals.regression import Regression
from mm.report import examples
from mm.report.outcomes import metrics
from tests.evals.given import SIZE, Source, feed, model

NAMES = ("a", "b", "c")
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(SIZE, 3)).astype(np.float32)
LABELS = np.where(RNG.random(SIZE) < 0.6, LOGITS.argmax(1), RNG.integers(0, 3, SIZE))
MANY = (RNG.random((SIZE, 3)) < 0.5).astype(np.float32)
ONE = parse(f"label('class', classes={NAMES})", where="x")
SEVERAL = parse(f"labels('classes', classes={NAMES})", where="x")
DEVICES = pytest.mark.parametrize("devices, batch_size", [(1, 7), (2, 8), (4, 8), (8, 16)])


def head(label):
    objective = SimpleNamespace(label=label, classify=lambda views: views.batch["image"])
    return SimpleNamespace(first=lambda method: objective)


def source():
    many = [[name for name, there in zip(NAMES, row, strict=True) if there] for row in MANY]
    return Source(**{"class": [NAMES[i] for i in LABELS], "classes": many})


@DEVICES
def test_classes_are_measured_over_all_examples_once(monkeypatch, devices, batch_size):
    feed(monkeypatch, image=LOGITS, label=LABELS.astype(np.int32))
    evaluator = Classification(source=source(), preprocess=ONE, batch_size=batch_size)
    found = evaluator.run(model(devices, head("label")))
    logits, ids = LOGITS.astype(np.float64), np.arange(SIZE)
    want = classes.of_one(ids, LABELS, logits) | calibration.calibration(ids, logits, LABELS)
    want = metrics(want) | {"temperature": calibration.fit_temperature(logits, LABELS)}
    want |= {"examples": SIZE}
    assert found == pytest.approx(want, abs=1e-9)


def test_classes_that_are_answers_are_judged_by_what_people_said(monkeypatch):
    best = [NAMES[i] for i in LOGITS.argmax(1)]
    # All ten, two of ten (0.6 by the benchmark's mean over nine of them), none of ten.
    shares = [(10, 1.0), (2, 0.6), (0, 0.0)]
    given = [shares[i % 3] for i in range(SIZE)]
    people = [[name] * n + ["nobody"] * (10 - n) for name, (n, _) in zip(best, given, strict=True)]
    records = Source(classes=[list(NAMES)] * SIZE, said=people)
    feed(monkeypatch, image=LOGITS, labels=MANY)
    evaluator = Classification(source=records, preprocess=SEVERAL, batch_size=8, references="said")
    found = evaluator.run(model(1, head("labels")))
    assert found["vqa_accuracy"] == pytest.approx(np.mean([x for _, x in given]))
    with pytest.raises(BadInput, match="references='sad': the source has no such field"):
        Classification(source=records, preprocess=SEVERAL, batch_size=8, references="sad")


@pytest.mark.parametrize("said", [0.0, np.nan])
def test_a_model_that_says_the_same_of_all_classes_is_right_about_nothing(monkeypatch, said):
    feed(monkeypatch, image=np.full_like(LOGITS, said), label=LABELS.astype(np.int32))
    found = Classification(source=source(), preprocess=ONE, batch_size=8).run(
        model(1, head("label"))
    )
    assert found["accuracy"] == 0 and np.isfinite(list(found.values())).all()


@DEVICES
def test_several_classes_an_example_are_measured_over_all(monkeypatch, devices, batch_size):
    feed(monkeypatch, image=LOGITS, labels=MANY)
    evaluator = Classification(source=source(), preprocess=SEVERAL, batch_size=batch_size)
    found = evaluator.run(model(devices, head("labels")))
    want = metrics(classes.of_several(np.arange(SIZE), MANY > 0.5, LOGITS)) | {"examples": SIZE}
    want["mean_average_precision"] = classes.mean_average_precision(MANY > 0.5, LOGITS)
    assert found == pytest.approx(want, abs=1e-9)


def test_confusions_are_a_picture_a_part_of_the_page_and_outcomes(monkeypatch, tmp_path):
    feed(monkeypatch, image=LOGITS, label=LABELS.astype(np.int32))
    evaluator = Classification(source=source(), preprocess=ONE, batch_size=8)
    kept = {}
    found = evaluator.run(model(1, head("label"), keep=kept.update), tmp_path / "test.png")
    assert Image.open(tmp_path / "test.png").width >= 320
    shown = json.loads((tmp_path / "report/test.json").read_text())
    [(heading, body)] = examples.sections({"test": shown})
    wrong = (LOGITS.argmax(1) != LABELS).sum()
    assert heading == "Classes: test" and f" of {np.bincount(LABELS)[0]}" in body
    assert np.array(shown["confusion"]).sum() - np.trace(shown["confusion"]) == wrong > 0
    left = kept["accuracy"]
    assert left.metric == found["accuracy"] and left.ids.tolist() == list(range(SIZE))
    assert not {"temperature", "examples"} & set(kept) and kept["f1/macro"].values.shape == (
        SIZE,
        2,
    )


@DEVICES
def test_errors_of_numbers_are_those_of_all_examples(monkeypatch, devices, batch_size):
    target = RNG.normal(10, 2, (SIZE, 2)).astype(np.float32)
    guess = target + RNG.normal(size=(SIZE, 2)).astype(np.float32)
    feed(monkeypatch, image=guess, target=target)
    objective = SimpleNamespace(estimate=lambda views: views.batch["image"])
    system = SimpleNamespace(first=lambda method: objective)
    evaluator = Regression(source=source(), preprocess=None, batch_size=batch_size)
    found = evaluator.run(model(devices, system))
    error = (guess - target).astype(np.float64)
    told = [1 - (error[:, i] ** 2).mean() / target[:, i].astype(float).var() for i in (0, 1)]
    want = {
        "absolute_error": np.abs(error).mean(),
        "squared_error": (error**2).mean(),
        "r2": np.mean(told),
        "examples": SIZE,
    }
    assert found == pytest.approx(want, rel=1e-5)


@DEVICES
def test_matching_is_measured_on_pairs_and_on_those_that_are_none(monkeypatch, devices, batch_size):
    image = np.arange(SIZE, dtype=np.float32)
    text = image + RNG.normal(0, 3, SIZE).astype(np.float32)
    group = (np.arange(SIZE) // 2).astype(np.int32)
    feed(monkeypatch, image=image, text=text, group=group)
    evaluator = Matching(source=source(), preprocess=ONE, batch_size=batch_size, negatives=3)

    def match(batch):
        return 2 - jnp.abs(batch["image"] - batch["text"])

    found = evaluator.run(model(devices, match=match))
    rows = others(group, 3, 0)
    own, other = 2 - np.abs(image - text), 2 - np.abs(np.repeat(image, 3) - text[rows])
    wins = (own[:, None] > other).mean() + (own[:, None] == other).mean() / 2
    want = {
        "area_under_roc": wins,
        "own_accuracy": (own > 0).mean(),
        "other_accuracy": (other <= 0).mean(),
        "examples": SIZE,
    }
    assert found == pytest.approx(want, abs=1e-6) and 0.5 < wins < 1


def test_a_negative_is_of_another_group_even_where_nearly_all_are_of_one():
    group = np.array([5] * 400 + [7])
    rows = others(group, 2, 0)
    assert (group[rows] != np.repeat(group, 2)).all()
    with pytest.raises(BadInput, match="all pairs are of one group"):
        others(group[:9], 1, 0)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: Classification(
                source=source(), preprocess=parse("decode", where="x"), batch_size=8
            ),
            "number no classes; add label or labels",
        ),
        (
            lambda: Classification(
                source=Source(**{"class": ["a", "z"] * SIZE}), preprocess=ONE, batch_size=8
            ),
            "'z' is no class",
        ),
        (lambda: Matching(source=Source(1), preprocess=None, batch_size=8), "two pairs at least"),
    ],
)
def test_what_could_not_run_is_refused_when_it_is_built(make, message):
    with pytest.raises(BadInput, match=message):
        make()


def test_a_head_of_another_number_of_classes_is_what_the_evaluator_needs():
    evaluator = Classification(source=source(), preprocess=ONE, batch_size=8)
    assert evaluator.needs == ("classify", "classes=3")
