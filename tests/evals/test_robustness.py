"""An evaluator under corruptions."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

from data.input import open_input
from mm import registry
from mm.config import BadInput
from mm.evals.base import Model
from mm.evals.robustness import errors
from tests.evals.test_retrieval import _mesh

SPEC = dict(name="synthetic", num_examples=21, image_size=16)


@pytest.fixture(scope="module")
def opened(tokenizer):
    ops = f'decode|resize(16)|value_range(-1, 1)|caption("label")|tokenize("{tokenizer}", 8)'
    return open_input(dict(source=SPEC, preprocess=ops), "config.evals.robust")


def build(opened, **keys):
    spec = dict(name="robustness", of=dict(name="retrieval"), batch_size=8) | keys
    given = dict(source=opened.source, preprocess=opened.preprocess)
    return registry.build("evaluator", spec, "config.evals.robust", **given)


def seeing(devices):
    """A model that knows a picture by its pixels: its text is the clean one, told by its id."""
    sharding = NamedSharding(_mesh(devices), PartitionSpec(("a", "b")))
    known = []

    def embed(batch):
        pixels = np.asarray(batch["image"]).reshape(len(batch["id"]), -1)
        if len(known) < 3:  # the clean batches come first
            known.append(pixels)
        clean = np.concatenate(known)
        own = clean[np.minimum(np.asarray(batch["id"]), len(clean) - 1)]

        def unit(x):
            x = x - x.mean(1, keepdims=True)
            z = x / np.linalg.norm(x, axis=1, keepdims=True)
            return jax.device_put(jnp.asarray(z), sharding)

        return unit(pixels), unit(own)

    return Model(embed, None, None, sharding)


def test_each_score_is_the_evaluators_on_pictures_that_the_op_corrupted(opened, tmp_path):
    evaluator = build(opened, corruptions=("fog", "gaussian_noise"), strengths=(5, 1))
    found = evaluator.run(seeing(8), tmp_path / "robust.png")
    score = "text_to_image/recall@1"
    assert [key for key in found if key.startswith(score)] == [
        f"{score}/{what}" for what in ("clean", "strength_1", "strength_5", "gaussian_noise", "fog")
    ]
    with open(tmp_path / "robust.csv") as file:
        header, _, *rows = csv.reader(file)
    assert header == ["corruption", "1", "5"]
    table = {name: list(map(float, values)) for name, *values in rows}
    for name, values in table.items():
        assert found[f"{score}/{name}"] == pytest.approx(np.mean(values))
    # The same through the preprocessing of a user, at one strength.
    ops = opened.preprocess.text.replace("|value_range", '|corrupt("fog", 5)|value_range')
    written = open_input(dict(source=SPEC, preprocess=ops), "test").preprocess
    plain = registry.find("evaluator", "retrieval", "")
    alone = plain(source=opened.source, preprocess=written, batch_size=8)
    model = seeing(8)
    evaluator.clean.run(model)  # what it knows
    assert alone.run(model)[score] == table["fog"][1]
    assert Image.open(tmp_path / "robust.png").width > 500


def test_the_same_on_any_number_of_devices(opened):
    evaluator = build(opened, corruptions=("impulse_noise",), strengths=(3,))
    one, eight = (evaluator.run(seeing(devices)) for devices in (1, 8))
    assert one == eight and 0 < one["mean_corruption_error"] < 1


def test_errors_are_means_of_what_is_lost():
    scores = {"fog": [0.5, 0.3], "snow": [0.6, 0.2]}
    found = errors(0.7, scores)
    assert found["mean_corruption_error"] == pytest.approx(0.6)
    assert found["relative_corruption_error"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (dict(corruptions=("fogg",)), "no 'fogg'; did you mean 'fog'"),
        (dict(strengths=(0,)), "strengths from 1 to 5"),
        (dict(of=dict(name="losses")), "of.name='losses': has no score"),
        (dict(of=dict(name="retrieval", rerank=-1)), "robust.of.rerank=-1: expected at least 0"),
    ],
)
def test_mistakes_are_refused_when_it_is_built(opened, keys, message):
    with pytest.raises(BadInput, match=message):
        build(opened, **keys)


def test_without_pictures_it_is_refused(tokenizer):
    ops = f'caption("label")|tokenize("{tokenizer}", 8)'
    with pytest.raises(BadInput, match="has no op decode"):
        build(open_input(dict(source=SPEC, preprocess=ops), "test"))
