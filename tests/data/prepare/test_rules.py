"""What each rule keeps, and where scores come from."""

import json

import numpy as np
import pytest

from data.prepare import run
from data.prepare.rules import Example
from data.prepare.scores import read_scores
from mm import registry
from mm.config import BadInput


def keeps(name, example, **kwargs):
    return registry.build("rule", {"name": name} | kwargs, "config.rules.mine").keeps(example)


def pictured(height, width):
    return Example(0, height, width, ())


def captioned(*captions):
    return Example(0, 1, 1, captions)


@pytest.mark.parametrize(
    "rule, height, width, kept",
    [
        (dict(min_side=32), 32, 100, True),
        (dict(min_side=32), 100, 31, False),
        (dict(min_pixels=600), 20, 30, True),
        (dict(min_pixels=601), 20, 30, False),
        (dict(max_pixels=600), 20, 30, True),
        (dict(max_pixels=599), 20, 30, False),
    ],
)
def test_size(rule, height, width, kept):
    assert keeps("size", pictured(height, width), **rule) is kept


@pytest.mark.parametrize("sides, kept", [((30, 10), True), ((31, 10), False), ((5, 5), True)])
def test_aspect_is_the_same_lying_and_standing(sides, kept):
    assert keeps("aspect", pictured(*sides), max_ratio=3) is kept
    assert keeps("aspect", pictured(*sides[::-1]), max_ratio=3) is kept


@pytest.mark.parametrize(
    "rule, caption, kept",
    [
        (dict(min_characters=3), " ab ", False),
        (dict(min_characters=3), "abc", True),
        (dict(max_characters=3), "abcd", False),
        (dict(min_words=2), "bicycle", False),
        (dict(min_words=2), "red  bicycle", True),
        (dict(max_words=2), "a red bicycle", False),
        (dict(min_characters=0), "", True),
    ],
)
def test_caption_length(rule, caption, kept):
    assert keeps("caption_length", captioned(caption), **rule) is kept


def test_all_captions_of_a_picture_must_pass():
    assert keeps("caption_length", captioned("red car", "car"), min_characters=3)
    assert not keeps("caption_length", captioned("red car", "ab"), min_characters=3)


@pytest.mark.parametrize(
    "caption, kept",
    [
        ("a red bicycle leans against the wall of a house", True),
        ("ein rotes Fahrrad lehnt an der Wand eines Hauses", True),
        ("un vélo rouge est appuyé contre le mur d'une maison", False),
        ("vélo rouge", True),  # too short to tell
    ],
)
def test_language(caption, kept):
    run.find_beam()
    assert keeps("language", captioned(caption), keep=("en", "de")) is kept


def test_a_language_guessed_with_little_confidence_is_dropped():
    run.find_beam()
    example = captioned("a red bicycle leans against the wall of a house")
    assert keeps("language", example, keep=("en",), min_confidence=0.5)
    assert not keeps("language", example, keep=("en",), min_confidence=1.0)


@pytest.mark.parametrize(
    "caption, kept",
    [("red bicycle", True), ("красный велосипед", False), ("red велосипед", False),
     ("12 + 3", True), ("größe λ", True)],
)  # fmt: skip
def test_alphabet_is_the_share_of_letters(caption, kept):
    assert keeps("alphabet", captioned(caption), scripts=("LATIN",), min_share=0.8) is kept


@pytest.mark.parametrize(
    "rule, message",
    [
        (dict(name="sizes"), "config.rules.mine: no rule 'sizes'; did you mean 'size'?"),
        (dict(name="aspect", max_ratio=0.5), "max_ratio=0.5: expected at least 1"),
        (dict(name="alphabet", scripts=("LATN",)), "did you mean 'LATIN'?"),
        (dict(name="language", keep=("xx",)), "keep='xx': unknown language"),
        (dict(name="score", path="a.npz"), "min=None, top=None: give one of them"),
        (dict(name="score", path="a.npz", min=0.1, top=0.1), "give one of them"),
        (dict(name="score", path="a.csv", min=0.1), "expected scores in a .npz or .jsonl file"),
        (dict(name="score", path="none.npz", min=0.1), "none.npz: cannot be read"),
    ],
)
def test_a_rule_that_cannot_work_is_refused(rule, message):
    run.find_beam()
    with pytest.raises(BadInput) as error:
        registry.build("rule", rule, "config.rules.mine")
    assert message in str(error.value)


SCORES = {7: 0.5, 2: 0.25, 0: 0.75, 1: 0.5}


@pytest.fixture(params=["npz", "jsonl"])
def scores(request, tmp_path):
    """A file of scores, as --mode=embed writes it."""
    path = tmp_path / f"scores.{request.param}"
    if request.param == "npz":
        np.savez(path, id=list(SCORES), score=np.array(list(SCORES.values()), np.float32))
    else:
        lines = [json.dumps({"id": i, "score": s, "more": 1}) for i, s in SCORES.items()]
        path.write_text("\n".join(lines) + "\n\n")
    return path


def test_a_score_belongs_to_its_example(scores):
    found = read_scores(str(scores), "score")
    assert {i: found.of(i) for i in SCORES} == SCORES


@pytest.mark.parametrize(
    "rule, kept",
    [(dict(min=0.5), [0, 1, 7]), (dict(min=0.6), [0]), (dict(top=0.25), [0]),
     (dict(top=0.5), [0, 1, 7]), (dict(top=0.01), [0]), (dict(top=1.0), [0, 1, 2, 7])],
)  # fmt: skip
def test_scores_are_kept_from_a_threshold_or_the_best_share_with_its_ties(scores, rule, kept):
    spec = {"name": "score", "path": str(scores)} | rule
    found = registry.build("rule", spec, "config.rules.mine")
    assert [i for i in sorted(SCORES) if found.keeps(Example(i, 1, 1, ()))] == kept


def test_an_example_without_a_score_is_an_error(scores):
    with pytest.raises(BadInput, match="has no score of example 3"):
        read_scores(str(scores), "score").of(3)


@pytest.mark.parametrize(
    "arrays, message",
    [
        (dict(id=[1, 2], clip=[0.1, 0.2]), "has no 'score' (have ['clip'])"),
        (dict(id=[1, 2], score=[0.1]), "expected whole numbers [n] and [n]"),
        (dict(id=[0.5], score=[0.1]), "expected whole numbers [n] and [n]"),
        (dict(id=[1, 1], score=[0.1, 0.2]), "two scores for example 1"),
        (dict(id=[1, 2], score=[0.1, np.inf]), "a score that is infinite for example 2"),
        (dict(id=np.zeros(0, int), score=[]), "is empty"),
        (dict(id=np.array([{}]), score=[0.1]), "is no .npz of plain arrays"),
    ],
)
def test_a_file_of_scores_that_is_none_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(BadInput) as error:
        read_scores(str(tmp_path / "s.npz"), "score")
    assert message in str(error.value)


@pytest.mark.parametrize("line", ["x", "[]", '{"id": 3}', '{"id": "a", "score": 1}'])
def test_a_bad_line_of_scores_is_named(tmp_path, line):
    (tmp_path / "s.jsonl").write_text('{"id": 1, "score": 2}\n' + line)
    with pytest.raises(BadInput, match="s.jsonl line 2: expected"):
        read_scores(str(tmp_path / "s.jsonl"), "score")
