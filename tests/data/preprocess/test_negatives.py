"""Captions that are wrong by one thing."""

import numpy as np
import pytest

from data.preprocess.draws import Draws, example_keys
from data.preprocess.negatives import COLORS
from data.preprocess.parse import parse
from mm.config import BadInput


def changed(kind, texts, ids=None):
    """What the op makes of the texts, and which it says are other ones."""
    (op,) = parse(f"hard_negative({kind!r})", where="x").ops
    ids = np.arange(len(texts)) if ids is None else np.array(ids)

    columns = op.apply({"text": texts}, Draws(example_keys(0, ids, ids * 0), "hard_negative 1"))
    return columns["text"], columns["text_changed"].tolist()


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("swap", "apple left of dog", "dog left of apple"),
        ("swap", "A dog on the mat.", "The mat on a dog."),
        ("swap", "sun behind small cloud", "small cloud behind sun"),
        ("swap", "TV on desk", "desk on TV"),
        ("swap", "a dog", "a dog"),
        ("swap", "dog on dog", "dog on dog"),
        ("color", "a Red car and a blue dog", "a Blue car and a red dog"),
        ("color", "redder", "redder"),
        ("color", "a gray cat, a grey dog and a red fox", "a red cat, a grey dog and a gray fox"),
        ("number", "two dogs and three cats", "three dogs and two cats"),
        ("side", "the left one, on Top", "the right one, on Bottom"),
        ("side", "a cup in front of a plate", "a cup behind a plate"),
        ("side", "right arrow", "left arrow"),
        ("side", "an upright man", "an upright man"),
        ("shuffle", "one one", "one one"),
        ("shuffle", "first second", "second first"),
    ],
)
def test_a_rule_changes_what_it_names_and_says_so(kind, text, expected):
    [found], [said] = changed(kind, [text])
    assert (found, said) == (expected, text != expected)


def test_a_single_color_or_number_becomes_any_other():
    texts = ["a Gray cat"] * 300
    found, _ = changed("color", texts)
    assert {text.split()[1].lower() for text in found} == {*COLORS} - {"grey"}
    assert all(text.split()[1][0].isupper() for text in found)
    found, said = changed("number", ["one dog"] * 100)
    assert len({*found}) > 8 and all(said)


def test_words_of_a_shuffle_are_the_same_in_an_order_that_belongs_to_the_example():
    text = "one two three four five"
    found, said = changed("shuffle", [text] * 20)
    assert all(said) and all(sorted(x.split()) == sorted(text.split()) for x in found)
    assert len({*found}) > 10
    assert changed("shuffle", [text], ids=[7])[0] == [found[7]]


def test_it_goes_before_tokenize(tokenizer):
    ops = parse(f'caption("label")|tokenize("{tokenizer}", 8)|hard_negative("side")', where="x")
    with pytest.raises(BadInput, match="belongs between the op that writes the text and tokenize"):
        ops.apply({"label": ["left"]}, example_keys(0, np.zeros(1, int), np.zeros(1, int)))
