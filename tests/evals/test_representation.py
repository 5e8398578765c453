"""Statistics of embeddings, each by its definition with loops, or where it is known."""

import itertools

import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

from data.input import open_input
from mm.config import BadInput
from mm.evals import representation
from mm.evals.base import Model
from mm.evals.representation import (
    Representation,
    alignment,
    effective_rank,
    linear_cka,
    modality_gap,
    uniformity,
)
from tests.evals.test_retrieval import _mesh


def unit(*shape, seed=0):
    z = np.random.default_rng(seed).normal(size=shape)
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def test_alignment_and_gap_by_hand():
    zimg, ztxt = np.array([[1.0, 0], [0, 1]]), np.array([[1.0, 0], [1, 0]])
    assert alignment(zimg, ztxt) == 1.0  # 0 and 2
    assert modality_gap(zimg, ztxt) == pytest.approx(np.hypot(0.5, 0.5))


def test_uniformity_is_that_of_all_pairs(monkeypatch):
    z = unit(23, 5)
    pairs = itertools.combinations(z, 2)
    expected = np.log(np.mean([np.exp(-2 * np.sum((x - y) ** 2)) for x, y in pairs]))
    monkeypatch.setattr(representation, "_BLOCK", 7)  # 23 does not divide
    assert uniformity(z) == pytest.approx(expected, rel=1e-12)
    assert uniformity(np.tile(z[:1], (5, 1))) == pytest.approx(0, abs=1e-9)


def test_effective_rank_of_known_spectra():
    plane = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]], float) + 5  # the mean is lost
    assert effective_rank(plane) == pytest.approx(2)
    uneven = np.array([[3, 0], [-3, 0], [0, 1], [0, -1]], float)  # singular values 3 to 1
    expected = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert effective_rank(uneven) == pytest.approx(expected)
    assert effective_rank(np.ones((4, 3))) == 0


def test_cka_is_that_of_gram_matrices():
    x, y = unit(12, 4), unit(12, 6, seed=1)
    centre = np.eye(12) - 1 / 12
    k, l = (centre @ (z @ z.T) @ centre for z in (x, y))  # noqa: E741  (as the paper calls them)
    expected = (k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum())  # HSIC, eqs. 3 and 4
    assert linear_cka(x, y) == pytest.approx(expected, rel=1e-12)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(4, 4)))[0]
    assert linear_cka(x, 3 * x @ rotation) == pytest.approx(1)
    assert np.isnan(linear_cka(x, np.ones((12, 2))))


@pytest.fixture(scope="module")
def opened(tokenizer):
    ops = f'decode|resize(16)|caption("label")|tokenize("{tokenizer}", 8)'
    spec = dict(name="synthetic", num_examples=21, image_size=16)
    return open_input(dict(source=spec, preprocess=ops), "test")


def test_the_same_on_any_number_of_devices_and_neighbours_are_drawn(opened, tmp_path):
    zimg, ztxt = unit(21, 6), unit(21, 6, seed=1)
    evaluator = Representation(source=opened.source, preprocess=opened.preprocess, batch_size=8)

    def run(devices, picture=None):
        def embed(batch):
            ids = np.minimum(np.asarray(batch["id"]), 20)
            return zimg[ids].astype(np.float32), ztxt[ids].astype(np.float32)

        sharding = NamedSharding(_mesh(devices), PartitionSpec(("a", "b")))
        return evaluator.run(Model(embed, None, None, sharding), picture)

    one = run(1, tmp_path / "space.png")
    assert one == run(2) == run(4) == run(8) and one["pool_size"] == 21
    expected = representation.statistics(zimg, ztxt)
    assert one == pytest.approx(expected, abs=1e-6)
    assert Image.open(tmp_path / "space.png").height > 500


def test_one_example_is_refused(opened):
    with pytest.raises(BadInput, match="needs 2 examples, the source has 1"):
        Representation(source=[0], preprocess=opened.preprocess, batch_size=8)
