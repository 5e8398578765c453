"""Questions of labels, and an instruction beside its answer in one text."""

import json

import numpy as np
import pytest

from data.preprocess.draws import Draws, example_keys
from data.preprocess.parse import parse
from data.sources import BadExample
from data.tokenizers import fetch
from mm.config import BadInput

QUESTIONS = {
    "what": {"field": "label", "train": ["what is it?", "what is this?"], "held_out": ["name it"]},
    "colour": {
        "field": "label",
        "weight": 2,
        "answers": {"(red|grey|blue) .*": "\\1"},
        "train": ["which colour?"],
        "held_out": ["tell its colour"],
    },
    "either": {
        "field": "shape",
        "answers": {"round": "a circle", "flat": "a square", "long": "a line"},
        "train": ["is it {one} or {two}?"],
        "held_out": ["{one}, {two}?"],
    },
}
COLUMNS = {"label": ["red circle", "purple cross", "grey square"], "shape": ["round", "", "flat"]}


@pytest.fixture
def questions(tmp_path):
    def write(**changes):
        (tmp_path / "questions.json").write_text(json.dumps(QUESTIONS | changes))
        return str(tmp_path / "questions.json")

    return write


def keys(count):
    return example_keys(0, np.arange(count), np.zeros(count, np.int64))


def asked(path, count=600, **how):
    """Questions, answers and kinds of the three examples, again and again."""
    given = "".join(f", {key}={value!r}" for key, value in how.items())
    ops = parse(f"ask({path!r}{given})", where="x")
    columns = {key: values * (count // 3) for key, values in COLUMNS.items()}
    found = ops.ops[0].apply(columns, Draws(keys(count), "ask"))
    return found["instruction"], found["answer"], found["kind"]


def test_a_question_is_answered_by_its_field(questions):
    texts, answers, kinds = asked(questions())
    found = set(zip(texts[::3], answers[::3], kinds[::3].tolist(), strict=True))
    assert found == {
        ("what is it?", "red circle", 0),
        ("what is this?", "red circle", 0),
        ("which colour?", "red", 1),
        *((f"is it a circle or a {x}?", "a circle", 2) for x in ("square", "line")),
        *((f"is it a {x} or a circle?", "a circle", 2) for x in ("square", "line")),
    }
    assert set(kinds[1::3].tolist()) == {0}  # of the purple cross nothing else is known


def test_kinds_are_drawn_by_weight_and_can_be_named(questions):
    kinds = asked(questions(), 6000)[2][::3]
    np.testing.assert_allclose(np.bincount(kinds) / 2000, [1 / 4, 1 / 2, 1 / 4], atol=0.04)
    texts, _, kinds = asked(questions(), kinds=("what",))
    assert set(kinds.tolist()) == {0} and set(texts) == {"what is it?", "what is this?"}


def test_templates_that_are_held_out_are_others(questions):
    train, held_out = (set(asked(questions(), templates=x)[0]) for x in ("train", "held_out"))
    assert {"name it", "tell its colour"} <= held_out and not train & held_out


def test_an_example_that_answers_nothing_is_broken(questions):
    with pytest.raises(BadExample, match="purple cross.* answers no question"):
        asked(questions(), kinds=("colour",))


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(what={"field": "label", "train": ["a?"]}), "what: missing 'held_out'"),
        (dict(what=QUESTIONS["what"] | {"held_out": ["what is it?"]}), "none in both"),
        (dict(what=QUESTIONS["what"] | {"train": ["{one}?"]}), "expected both or none"),
        (dict(what=QUESTIONS["what"] | {"train": ["{one}{two}"]}), "answers has 0 of them"),
        (dict(what=QUESTIONS["what"] | {"answers": {"(": "a"}}), "no regular expression"),
        (dict(what=QUESTIONS["what"] | {"answers": {"(a)b": "\\2"}}), "invalid group reference 2"),
        (dict(what=QUESTIONS["what"] | {"answers": {"a": "\\g<b>"}}), "unknown group name 'b'"),
        (dict(what=QUESTIONS["what"] | {"weigth": 1}), "did you mean 'weight'"),
    ],
)
def test_questions_that_are_wrong_are_refused(questions, changes, message):
    with pytest.raises(BadInput, match=message):
        parse(f"ask({questions(**changes)!r})", where="x")


def test_of_several_answers_each_is_as_likely():
    ops = parse("instruct('question', 'answers')", where="x")
    columns = {"question": ["why?"] * 900, "answers": [["a", "b", "c"]] * 900}
    found = ops.ops[0].apply(columns, Draws(keys(900), "x"))["answer"]
    np.testing.assert_allclose([found.count(x) / 900 for x in "abc"], 1 / 3, atol=0.05)


@pytest.fixture(scope="module")
def pairs(tokenizer):
    """What `tokenize_answer` makes of two pairs, and the tokenizer."""
    ops = parse(f"instruct('q', 'a')|tokenize_answer({str(tokenizer)!r}, 10)", where="x")
    columns = {"q": ["red circle", "grey"], "a": ["blue", "purple cross"]}
    return ops.apply(columns, keys(2)), ops.tokenizer


def test_the_answer_follows_the_instruction_and_ends(pairs):
    found, tokenizer = pairs
    assert {name: x.dtype for name, x in found.items()} == {
        "text": np.int32, "text_mask": bool, "text_answer": bool,
    }  # fmt: skip
    for row, (question, answer) in enumerate([("red circle", "blue"), ("grey", "purple cross")]):
        ids, mask = tokenizer.encode([question, answer])
        want = [*ids[0][mask[0]][:-1], *ids[1][mask[1]]]  # one end mark, at the end
        real, own = found["text_mask"][row], found["text_answer"][row]
        assert found["text"][row][real].tolist() == want
        assert found["text"][row][own].tolist() == ids[1][mask[1]].tolist()
        assert (found["text"][row][~real] == tokenizer.pad_id).all()


@pytest.mark.parametrize(
    "question, answer, reason",
    [("red circle " * 6, "blue", "too long"), ("red", "  ", "answer is empty")],
)
def test_a_pair_that_does_not_fit_or_is_blank_is_broken(tokenizer, question, answer, reason):
    ops = parse(f"instruct('q', 'a')|tokenize_answer({str(tokenizer)!r}, 10)", where="x")
    with pytest.raises(BadExample) as error:
        ops.apply({"q": ["red", question], "a": ["red", answer]}, keys(2))
    assert reason in error.value.reason


def test_a_start_mark_stands_at_the_start_alone(tmp_path):
    (tmp_path / "clip.json").write_text(fetch.clip([("r", "e"), ("re", "d</w>")]))
    path = str(tmp_path / "clip.json")
    ops = parse(f"instruct('q', 'a')|tokenize_answer({path!r}, 8)", where="x")
    found = ops.apply({"q": ["red"], "a": ["red"]}, keys(1))
    marks = ops.tokenizer.manifest()
    want = [*marks["ids_before"], *[found["text"][0, 1]] * 2, *marks["ids_after"]]
    assert found["text"][0][found["text_mask"][0]].tolist() == want
