"""Scores of captions against others' programs (sacrebleu, tests/golden/scores) and by hand."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu import corpus_bleu

from mm.evals import caption_scores as scores
from mm.report.measures import measure

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/scores/captions.json").read_text())


def bleu(candidates, references):
    counts = scores.bleu_counts(candidates, references)
    return measure("bleu", counts, np.ones((1, len(counts))))[0]


texts = st.lists(st.sampled_from(["a", "b", "'s"]), max_size=9)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=5))
def test_bleu_of_any_corpus_is_that_of_sacrebleu(pairs):
    candidates, references = map(list, zip(*pairs, strict=True))
    lines = [" ".join(candidate) for candidate in candidates]
    columns = itertools.zip_longest(*([" ".join(own) for own in rows] for rows in references))
    want = corpus_bleu(lines, list(columns), tokenize="none", smooth_method="none")
    np.testing.assert_allclose(bleu(candidates, references), want.score / 100, rtol=1e-9)


@pytest.mark.parametrize("name", ["rouge_l", "cider"])
def test_scores_are_those_of_the_program_of_cocos_server(name):
    found = scores.caption_scores(GOLDEN["candidates"], GOLDEN["references"])[name]
    np.testing.assert_allclose(found, GOLDEN[name], rtol=1e-9)


def test_meteor_is_that_of_nltk_without_synonyms():
    pairs = zip(GOLDEN["meteor_candidates"], GOLDEN["meteor_references"], strict=True)
    found = [scores.meteor(*pair) for pair in pairs]
    np.testing.assert_allclose(found, GOLDEN["meteor"], rtol=1e-9)


def test_meteor_by_hand():
    """Six of seven words match, by stem, in two chunks: "the cat sat" and "on the mat"."""
    candidate = "the cats sat quietly on the mat".split()
    reference = "the cat sat on the mat".split()
    precision, recall = 6 / 7, 1.0
    mean = 10 * precision * recall / (recall + 9 * precision)
    want = mean * (1 - 0.5 * (2 / 6) ** 3)
    np.testing.assert_allclose(scores.meteor(candidate, [reference]), want)
    assert scores.meteor(candidate, [["dog"], reference]) == scores.meteor(candidate, [reference])
    assert scores.meteor(candidate, [["dog"]]) == 0


def every_alignment(candidate, reference):
    """The fewest chunks of all alignments with the most matches, then the most exact ones."""
    found = []
    places = [[None, *(j for j, w in enumerate(reference) if w.stem == c.stem)] for c in candidate]
    for chosen in itertools.product(*places):
        taken = [j for j in chosen if j is not None]
        if len(set(taken)) < len(taken):
            continue
        exact = sum(j is not None and reference[j] == candidate[i] for i, j in enumerate(chosen))
        joined = sum(
            i > 0 and None not in chosen[i - 1 : i + 1] and j == chosen[i - 1] + 1
            for i, j in enumerate(chosen)
        )
        found.append((-len(taken), -exact, len(taken) - joined))
    return min(found)[2]


@settings(max_examples=60, deadline=None)
@given(*[st.lists(st.sampled_from("aAbc"), min_size=1, max_size=6)] * 2)
def test_the_fewest_chunks_are_those_of_every_alignment_tried(candidate, reference):
    """Letters are words, and their capitals others of the same stem."""
    words = [[scores.Word(text.lower(), text) for text in side] for side in (candidate, reference)]
    assert scores.fewest_chunks(*words) == every_alignment(*words)


def test_bleu_is_without_mercy_for_short_candidates_and_for_missing_fours():
    text = "a b c d e f g h".split()
    np.testing.assert_allclose(bleu([text[:4]], [[text]]), np.exp(1 - 8 / 4))
    assert bleu([text[:3]], [[text]]) == 0
    assert bleu([[]], [[text]]) == 0


def test_what_a_candidate_repeats_counts_no_more():
    references = [["red", "apple"]], [["blue", "house"]]
    once, often = (
        scores.cider([["red"], []], references),
        scores.cider([["red"] * 2, []], references),
    )
    assert once[0] > often[0] > 0 == once[1]


def test_words_are_lower_case_without_punctuation():
    found = scores.words("Man’s T-shirt: 3 o'clock, (don't)!")
    assert found == ["man", "'s", "t-shirt", "3", "o", "'clock", "don", "'t"]


@given(st.text())
def test_words_have_no_space_inside(text):
    """sacrebleu takes them joined by spaces."""
    assert " ".join(scores.words(text)).split() == scores.words(text)


def test_a_candidate_without_references_is_refused():
    with pytest.raises(ValueError, match="as many lists of references"):
        scores.caption_scores([["a"]], [[]])
