"""Zero-shot by hand; with a real model, and on several devices: tests/evals/test_every.py."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from data.input import open_input
from mm.config import BadInput
from mm.evals.base import Model
from mm.evals.zero_shot import ZeroShot, class_vectors, embed_image, embed_text
from tests.evals.test_probes import COLORS, SHAPES
from tests.evals.test_retrieval import _mesh

CLASSES = {shape: [f"{color} {shape}" for color in COLORS] for shape in SHAPES}
COUNT, BATCH = 21, 8  # the last batch is uneven


def test_an_average_of_embeddings_is_of_their_directions():
    ztxt = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, -1.0]]])
    np.testing.assert_allclose(class_vectors(ztxt), [[2**-0.5, 2**-0.5], [0, 0]], atol=1e-7)


def evaluator_of(tokenizer, **keys):
    ops = f'decode|resize(16)|caption("label")|tokenize("{tokenizer}", 8)'
    spec = dict(source=dict(name="synthetic", num_examples=COUNT, image_size=16, seed=1))
    spec |= dict(preprocess=f'{ops}|label("label", classes={CLASSES!r})') | keys
    source, preprocess, rest = open_input(spec, "config.evals.x")
    return ZeroShot(source=source, preprocess=preprocess, batch_size=BATCH, **rest)


def test_top_1_top_5_and_the_mean_over_classes_are_counted_by_hand(tokenizer, monkeypatch):
    """Of eight classes; two of them have no example, and pictures are their number."""
    evaluator = evaluator_of(tokenizer)
    evaluator.num_classes = 8

    def of_six(see, batch):
        return {"seen": see(batch), "labels": batch["id"] % 6}

    monkeypatch.setattr("mm.evals.zero_shot.seen", of_six)
    evaluator.prompts = {"text": np.arange(8)[:, None], "text_mask": np.ones((8, 1), bool)}
    sharding = NamedSharding(_mesh(8), PartitionSpec(("a", "b")))
    order = np.random.default_rng(0).permuted(np.tile(np.arange(8), (COUNT, 1)), axis=1)
    scores = np.zeros((COUNT, 8), np.float32)
    np.put_along_axis(scores, order, np.arange(8, 0, -1, dtype=np.float32)[None], axis=1)
    seen = []

    def apply(function):
        def of_images(batch):
            seen.append(len(batch["image"]))
            rows = np.minimum(np.arange(sum(seen) - BATCH, sum(seen)), COUNT - 1)
            return jax.device_put(scores[rows], sharding)

        def of_texts(batch):
            return jax.nn.one_hot(batch["text"][:, 0], 8)

        return {embed_image: of_images, embed_text: of_texts}[function]

    found = evaluator.run(Model(None, None, None, sharding, apply))
    place = np.array([list(order[i]).index(i % 6) for i in range(COUNT)])
    each = [np.mean(place[np.arange(COUNT) % 6 == c] == 0) for c in range(6)]
    rng, drawn = np.random.default_rng(1), []
    for _ in range(2000):  # classes, with replacement
        rows = [np.flatnonzero(np.arange(COUNT) % 6 == c) for c in rng.integers(6, size=6)]
        drawn.append(np.mean(place[np.concatenate(rows)] == 0))
    assert found.pop("accuracy_spread") == pytest.approx(np.std(drawn), rel=0.1)
    assert found == pytest.approx({
        "accuracy": np.mean(place == 0), "accuracy@5": np.mean(place < 5),
        "accuracy_per_class": np.mean(each), "examples": COUNT, "classes": 8,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (dict(templates=("a picture",)), "expected {} once in each"),
        (dict(templates=()), "expected {} once in each"),
        (dict(preprocess="decode|resize(16)|label('label', classes=3)"), "'.*' is no class"),
        (dict(preprocess="decode|resize(16)"), "zero_shot: needs the op label"),
        (dict(preprocess=f"decode|resize(16)|label('label', classes={json.dumps(CLASSES)})"),
         r"zero_shot: the ops make no text; add caption\(FIELD\)\|tokenize"),
    ],
)  # fmt: skip
def test_what_could_not_run_is_refused_when_it_is_opened(tokenizer, keys, message):
    with pytest.raises(BadInput, match=message):
        evaluator_of(tokenizer, **keys)
