"""The accuracy of answers against the benchmark's program (tests/golden/scores) and by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from mm.evals import vqa

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/scores/vqa.json").read_text())


def test_accuracies_are_those_of_the_benchmarks_program():
    found = [vqa.accuracy(q["answer"], q["references"]) for q in GOLDEN["questions"]]
    want = [q["accuracy"] for q in GOLDEN["questions"]]
    np.testing.assert_allclose(found, want, atol=1e-8)
    assert len(set(want)) > 4


def test_answers_are_normalized_as_by_the_benchmarks_program():
    found = {text: vqa.normalized(text) for text in GOLDEN["normalized"]}
    assert found == GOLDEN["normalized"]


@pytest.mark.parametrize(
    "references, want",
    [(["cat"], 1), (["dog"], 0), (["cat"] * 2, 1), (["cat", "dog"], 0.5), (["cat"] * 3, 1)],
)
def test_what_few_people_all_say_is_right(references, want):
    """Of two who differ: one way leaves who agrees, one leaves the other."""
    assert vqa.accuracy("cat", references) == want


@pytest.mark.parametrize("agree, want", [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0)])
def test_four_of_ten_who_agree_are_enough(agree, want):
    """Of 3 who agree: 7 ways leave all 3, 1.0 each; 3 ways leave 2, 2/3 each: 0.9."""
    references = ["cat"] * agree + [f"dog {i}" for i in range(10 - agree)]
    assert vqa.accuracy("cat", references) == pytest.approx(want)


def test_what_has_nothing_left_when_normalized_is_compared_as_it_is():
    assert vqa.same("The cat.", "cat") and vqa.same("a", "a")
    assert not vqa.same("", "a") and not vqa.same("the", "a")
