"""Evaluators of written texts: who writes what, and every measure over all examples once."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data.preprocess.parse import parse
from data.tokenizers import train
from mm.config import BadInput
from mm.evals import vqa
from mm.evals.answers import Answers
from mm.evals.caption_scores import caption_scores, words
from mm.evals.captions import Captions, Similar
from mm.evals.writing import Writer, read_references
from mm.generation import Prompt, generate
from mm.objectives import Views
from mm.objectives.combine import System
from mm.report import examples
from mm.report.measures import measure
from tests.evals.given import SIZE, Source, feed, model
from tests.models.test_decoder import batch
from tests.models.test_decoder import model as decoder
from tests.tiny import TEXTS

END, LENGTH = 2, 24
RNG = np.random.default_rng(0)
ANSWERS = [TEXTS[i % 4] for i in range(SIZE)]
WRITTEN = [text if RNG.random() < 0.6 else TEXTS[3] for text in ANSWERS]
QUESTIONS = [("what?", "which?")[i % 2] for i in range(SIZE)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """One that tells where words end."""
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    corpus = [*TEXTS, "what?", "which?"]
    path.write_text(train.train(corpus * 2, 80, "sentencepiece_bpe"))
    return str(path)


def answering(tokenizer, tmp_path, references=None):
    """The evaluator of 21 questions, and the arrays of which it is made."""
    questions = {
        kind: {"field": "label", "train": [f"{kind}?"], "held_out": ["?"]}
        for kind in ("what", "which")
    }
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    ask = f"ask({str(tmp_path / 'questions.json')!r})"
    ops = parse(f"{ask}|tokenize_answer({tokenizer!r}, {LENGTH})", where="x")
    people = [[text] * 2 + ["none"] * 8 for text in ANSWERS]
    source = Source(label=ANSWERS, people=people)
    evaluator = Answers(source=source, preprocess=ops, batch_size=8, references=references)
    asked, right, written = (ops.tokenizer.encode(x)[0] for x in (QUESTIONS, ANSWERS, WRITTEN))
    arrays = dict(asked=asked, right=right, written=written, kind=np.arange(SIZE) % 2)
    evaluator.writer = lambda system, views: {
        "ids": views.batch["written"],
        "answers": views.batch["right"],
        "instructions": views.batch["asked"],
    }
    return evaluator, arrays


@pytest.mark.parametrize("devices, batch_size", [(1, 7), (4, 8), (8, 16)])
def test_answers_are_counted_by_kind_and_as_the_benchmark_does(
    monkeypatch, tokenizer, tmp_path, devices, batch_size
):
    evaluator, arrays = answering(tokenizer, tmp_path, references="people")
    evaluator.batch_size = batch_size
    feed(monkeypatch, **arrays)
    found = evaluator.run(model(devices))
    right = np.array([a == b for a, b in zip(ANSWERS, WRITTEN, strict=True)])
    pairs = zip(WRITTEN, evaluator.source.fields["people"], strict=True)
    want = {
        "exact_match": right.mean(),
        "exact_match/what": right[::2].mean(),
        "exact_match/which": right[1::2].mean(),
        "vqa_accuracy": np.mean([vqa.accuracy(*pair) for pair in pairs]),
        "examples": SIZE,
        "examples/what": 11,
        "examples/which": 10,
    }
    assert found == pytest.approx(want, abs=1e-9) and 0 < want["vqa_accuracy"] < right.mean() < 1


def captioning(tokenizer, **how):
    """The evaluator of captions, each with one or two references, and its arrays."""
    ops = parse(f"caption('label')|tokenize({tokenizer!r}, {LENGTH})", where="x")
    several = [[text, "a red square"][: 1 + i % 2] for i, text in enumerate(ANSWERS)]
    source = Source(label=ANSWERS, several=several)
    evaluator = Captions(source=source, preprocess=ops, batch_size=8, **how)
    return evaluator, dict(written=ops.tokenizer.encode(WRITTEN)[0])


@pytest.mark.parametrize("references", [None, "several"])
def test_captions_are_compared_with_all_their_references(monkeypatch, tokenizer, references):
    evaluator, arrays = captioning(tokenizer, references=references)
    evaluator.writer = lambda system, views: {"ids": views.batch["written"]}
    feed(monkeypatch, **arrays)
    found = evaluator.run(model(8))
    texts = evaluator.source.fields[references or "label"]
    texts = [[text] if isinstance(text, str) else text for text in texts]
    scores = caption_scores(
        [words(text) for text in WRITTEN], [[words(text) for text in row] for row in texts]
    )
    bleu = measure("bleu", scores.pop("bleu4"), np.ones((1, SIZE)))[0]
    want = {name: np.mean(value) for name, value in scores.items()}
    want |= {"examples": SIZE, "bleu4": bleu}
    assert found == pytest.approx(want, rel=1e-9) and found["rouge_l"] > 0


def test_what_was_written_is_shown_and_left_as_outcomes(monkeypatch, tokenizer, tmp_path):
    evaluator, arrays = answering(tokenizer, tmp_path)
    ops = parse("decode|resize(8)", where="x")
    names, parts = (ops.names + evaluator.preprocess.names, ops.ops + evaluator.preprocess.ops)
    evaluator.preprocess = evaluator.preprocess._replace(names=names, ops=parts)
    evaluator.source.fields["image"] = [np.full((8, 8, 3), 9, np.uint8)] * SIZE
    feed(monkeypatch, **arrays)
    kept = {}
    found = evaluator.run(model(keep=kept.update), tmp_path / "test.png")
    assert kept["exact_match"].metric == found["exact_match"]
    shown = json.loads((tmp_path / "report/test.json").read_text())
    [(heading, body)] = examples.sections({"test": shown})
    assert heading == "Texts: test" and len(shown["rows"]) == SIZE
    assert body.count("✓") == sum(row["right"] for row in shown["rows"]) < SIZE
    assert "which?" in body and ANSWERS[0] in body


@pytest.fixture(scope="module")
def writers():
    """What writers write with a model of random weights, and what `generate` does."""
    a_model = decoder(inputs="text_tower", embed_dim=16)
    graphdef, params = nnx.split(a_model)
    arrays = batch() | {"text_answer": jnp.arange(8) >= jnp.array([[2], [5], [1], [1]])}
    arrays["text_mask"] = jnp.arange(8) < jnp.array([[4], [8], [3], [2]])

    @jax.jit
    def run(params):
        views = Views(nnx.merge(graphdef, params), arrays, None)
        prompt = Prompt(arrays["text"], arrays["text_mask"] & ~arrays["text_answer"])
        how = dict(end_id=END, pad_id=0)
        plain, after = (
            generate(views.model, views.memory(), prompt=p, **how) for p in (None, prompt)
        )
        similar = Similar(END, 0)(None, Views(views.model, arrays, None))
        answers = Writer(END, 0, answers=True)(None, views)
        ended = jnp.cumsum(plain.ids == END, 1) - (plain.ids == END)
        views.batch |= {"text": plain.ids, "text_mask": ended == 0}
        again = Views(views.model, views.batch, None)
        cosine = (again.image_embedding().z * again.text_embedding().z).sum(-1)
        return plain.ids, after.ids, prompt.mask, answers, similar, cosine

    return arrays, jax.device_get(run(params))


def test_a_writer_goes_on_from_instructions_and_keeps_what_it_wrote_alone(writers):
    arrays, (_, after, given, answers, _, _) = writers
    np.testing.assert_array_equal(answers["ids"], np.where(given, 0, after))
    text, answer = np.asarray(arrays["text"]), np.asarray(arrays["text_answer"])
    np.testing.assert_array_equal(answers["instructions"], np.where(given, text, 0))
    np.testing.assert_array_equal(answers["answers"], np.where(answer, text, 0))


def test_similarity_is_that_of_the_towers(writers):
    _, (plain, _, _, _, similar, cosine) = writers
    np.testing.assert_array_equal(similar["ids"], plain)
    np.testing.assert_allclose(similar["similarity"], cosine, atol=1e-5)
    assert np.ptp(cosine) > 1e-3


def test_a_decoder_that_reads_the_text_is_refused():
    system = SimpleNamespace(model=decoder(memory="fused"))
    with pytest.raises(BadInput, match="evals.x: needs a decoder that reads no text.*'fused'"):
        System.need(system, "evals.x", "writes")


def test_equal_writers_are_one_function():
    assert Writer(2, 0) == Writer(2, 0) != dataclasses.replace(Writer(2, 0), beam=3)
    assert hash(Writer(2, 0)) == hash(Writer(2, 0))


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda t: Answers(source=Source(), preprocess=parse("decode", where="x"), batch_size=8),
            "end them with tokenize_answer",
        ),
        (lambda t: captioning(t, references="sevral"), "no such field; did you mean 'several'"),
    ],
)
def test_what_could_not_run_is_refused_when_it_is_built(make, message, tokenizer):
    with pytest.raises(BadInput, match=message):
        make(tokenizer)


def test_a_tokenizer_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "bpe.json").write_text(train.train(TEXTS * 2, 64))
    with pytest.raises(BadInput, match="captions: the tokenizer does not say where a word ends"):
        captioning(str(tmp_path / "bpe.json"))


def test_references_are_one_text_or_several_and_an_example_without_is_named():
    source = Source(3, own=["a cup", ["a cup", "cups"], ["a dog"]], bad=["a", [], None])
    assert read_references(source, "own", np.arange(3)) == [["a cup"], ["a cup", "cups"], ["a dog"]]
    with pytest.raises(BadInput, match="references='bad': example 1 has no text"):
        read_references(source, "bad", np.arange(3))
