"""Measures of classes against scikit-learn's (tests/golden/scores) and definitions by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mm.evals import calibration, classes
from mm.report.measures import area_under_roc, measure
from mm.report.outcomes import metrics

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/scores/classes.json").read_text())
LOGITS, LABELS, SCORES = (np.array(GOLDEN[key]) for key in ("logits", "labels", "scores"))
MANY = np.array(GOLDEN["many"], bool)


def calibrate(logits, labels):
    return metrics(calibration.calibration(np.arange(len(labels)), logits, labels))


def close(found, want):
    assert found.keys() == want.keys()
    for key, value in want.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-12, err_msg=key)


def test_measures_of_one_class_an_example_are_those_of_scikit_learn():
    want = dict(GOLDEN["one"])
    logits = LOGITS - 1e-9 * np.arange(LOGITS.shape[1])  # it takes the first of equals
    matrix = classes.confusion(LABELS, classes.found_class(logits), LOGITS.shape[1])
    np.testing.assert_array_equal(matrix, want.pop("confusion"))
    calibrated = calibrate(LOGITS, LABELS)
    for key in ("brier", "negative_log_likelihood"):
        np.testing.assert_allclose(calibrated[key], want.pop(key), rtol=1e-9)
    close(metrics(classes.of_one(np.arange(len(LABELS)), LABELS, logits)), want)


@given(arrays(np.int8, st.tuples(st.integers(1, 12), st.just(4)), elements=st.integers(0, 2)))
def test_ties_find_no_class(logits):
    labels = np.arange(len(logits)) % 4
    found = classes.found_class(logits)
    want = [row.index(max(row)) if row.count(max(row)) == 1 else -1 for row in logits.tolist()]
    np.testing.assert_array_equal(found, want)
    results = metrics(classes.of_one(np.arange(len(labels)), labels, logits))
    right = np.mean(labels == want)
    assert results["accuracy"] == right
    np.testing.assert_allclose(results["recall/micro"], right)
    told = sum(x >= 0 for x in want)
    np.testing.assert_allclose(results["precision/micro"] * told, right * len(labels))
    matrix = classes.confusion(labels, found, 4)
    np.testing.assert_array_equal(matrix.sum(1), np.bincount(labels, minlength=4))
    assert matrix[:, 4:].sum() == want.count(-1) and np.trace(matrix) == sum(labels == want)


def test_a_model_that_says_the_same_of_all_classes_is_right_about_none():
    found = calibrate(np.zeros((6, 4)), np.zeros(6, int))
    assert found["ece"] == pytest.approx(0.25)  # sure by a quarter, and never right


def test_measures_of_several_classes_an_example_are_those_of_scikit_learn():
    found = metrics(classes.of_several(np.arange(len(MANY)), MANY, SCORES))
    found["mean_average_precision"] = classes.mean_average_precision(MANY, SCORES)
    close(found, GOLDEN["several"])


def test_the_area_under_the_curve_is_that_of_scikit_learn():
    own, other = SCORES[MANY[:, 0], 0], SCORES[~MANY[:, 0], 0]
    np.testing.assert_allclose(area_under_roc(own, other), GOLDEN["area"], rtol=1e-12)


def test_the_area_under_the_curve_counts_what_is_no_number_as_wrong():
    assert area_under_roc(np.array([np.nan, 2.0]), np.array([0.0, 1.0])) == 0.5
    assert area_under_roc(np.array([1.0, 2.0]), np.array([0.0, np.nan])) == 0.5


def test_the_mean_over_several_classes_an_example_is_of_all_classes():
    # f1_score(labels, labels, average="macro", zero_division=0) is 2/3, by its definition
    labels = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0]], bool)
    assert metrics(classes.of_several(np.arange(3), labels, labels - 0.5))[
        "f1/macro"
    ] == pytest.approx(2 / 3)


def test_the_calibration_error_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    confidence = np.append(rng.uniform(0, 1, 200), [1 / 15, 2 / 15, 1.0])  # the ends of bins
    right = rng.random(203) < confidence**2
    want = 0.0
    for m in range(1, 16):
        inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if inside.any():
            want += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    told = np.stack([confidence, right], axis=1)
    found = measure("calibration_error", told, np.ones((1, 203)))
    np.testing.assert_allclose(found, want, rtol=1e-12)


def drawn(temperature, n=4000):
    """Labels drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (n, 5))
    noise = rng.gumbel(size=logits.shape)
    return logits, (logits / temperature + noise).argmax(1)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_the_temperature_that_labels_were_drawn_with_is_found(temperature):
    found = calibrate(*drawn(temperature))
    fitted = calibration.fit_temperature(*drawn(temperature))
    np.testing.assert_allclose(fitted, temperature, rtol=0.1)
    assert found["scaled/ece"] < 0.03 < 0.1 < found["ece"]
    assert found["scaled/brier"] < found["brier"]


def test_no_example_has_a_part_in_its_own_temperature():
    logits, labels = drawn(2.0, 40)
    labels[0] = logits[0].argmin()  # changes the temperature of the odd ones, not of the even
    changed = labels.copy()
    changed[0] = logits[0].argmax()
    odd = calibration.fit_temperature(logits[1::2], labels[1::2])
    even = [calibration.fit_temperature(logits[::2], y[::2]) for y in (labels, changed)]
    assert even[0] != even[1]
    log_p = [
        np.log(np.exp(logits[i::2] / t) / np.exp(logits[i::2] / t).sum(1, keepdims=True))
        for i, t in ((0, odd), (1, even[0]))
    ]
    want = -np.mean([log_p[i % 2][i // 2, label] for i, label in enumerate(labels)])
    found = calibrate(logits, labels)["scaled/negative_log_likelihood"]
    np.testing.assert_allclose(found, want, rtol=1e-9)
