import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.builders.icons.names import concept, label


@pytest.mark.parametrize(
    ("name", "words", "what"),
    [
        ("arrow-left-bold", "arrow left bold", "arrow left"),
        ("left-arrow", "left arrow", "arrow left"),
        ("accessibility-24-regular", "accessibility regular", "accessibility"),
        ("us-4x3", "us", "us"),
        ("appointment-01", "appointment", "appointment"),
        ("baseball-1-duo", "baseball 1 duo", "baseball"),
        ("armchair-2-bold-duotone", "armchair 2 bold duotone", "armchair"),
        ("number-24-hours", "number 24 hours", "24 hours number"),
        ("outline-home", "home outline", "home"),
        ("bold", "bold", "bold"),
        ("16", "16", "16"),
    ],
)
def test_a_name_is_words_and_a_concept(name, words, what):
    assert label(name, ("outline",)) == words
    assert concept(words) == what


WORDS = st.sampled_from(["home", "left", "bold", "fill", "24", "2", "01", "16px", "outline"])


@given(st.lists(WORDS, min_size=1, max_size=5))
def test_labels_and_concepts_are_never_empty_and_keep_no_more_than_the_name(words):
    found = label("-".join(words))
    assert found and set(found.split()) <= set(words)
    what = concept(found)
    assert what and set(what.split()) <= set(found.split())
    assert what.split() == sorted(set(what.split()))


@given(st.lists(WORDS, min_size=1, max_size=4), st.sampled_from(["bold", "fill", "outline"]))
def test_a_style_at_the_end_makes_no_other_concept(words, style):
    name = "-".join(["house", *words])
    assert concept(label(f"{name}-{style}")) == concept(label(name))
