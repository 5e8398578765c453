import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image

from data.input import open_input
from mm import registry
from mm.config import BadInput
from mm.evals import ranks, retrieval
from mm.evals.base import Model
from mm.report import outcomes
from tests.tiny import TEXTS


def _mesh(devices):
    shape = (devices // 2, 2) if devices > 1 else (1, 1)
    return jax.make_mesh(
        shape, ("a", "b"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:devices]
    )


def _grid(rng, *shape):
    """Multiples of 1/8, small: every product and sum is exact in float32, in any order."""
    return rng.integers(-3, 4, shape).astype(np.float32) / 8


def _metrics(zimg, ztxt, devices):
    sides = retrieval.directions(zimg, ztxt)
    found = {k: retrieval.ranks(*v, _mesh(devices)) for k, v in sides.items()}
    of = dict.fromkeys(sides, (np.arange(len(zimg)), None))
    return retrieval.sizes(found) | outcomes.metrics(retrieval.metrics(found, of))


def _reference(queries, candidates):
    """The rule in float64, with the whole matrix and loops."""
    scores = queries.astype(np.float64) @ candidates.astype(np.float64).T
    n = len(scores)
    ranks = []
    for i in range(n):
        own = scores[i, i]
        worse_or_equal = [j for j in range(n) if j != i and scores[i, j] >= own]
        ranks.append(n if np.isnan(own) else len(worse_or_equal))
    return np.array(ranks)


@settings(max_examples=25, deadline=None)
@given(
    n=st.sampled_from([1, 9, 128, 129, 300]),
    width=st.sampled_from([1, 3, 6]),  # narrow: many ties
    nans=st.integers(0, 3),
    devices=st.sampled_from([1, 8]),
    seed=st.integers(0, 10**6),
)
def test_ranks_equal_a_dense_reference_with_ties_and_nan(n, width, nans, devices, seed):
    rng = np.random.default_rng(seed)
    queries, candidates = _grid(rng, n, width), _grid(rng, n, width)
    for side in (queries, candidates):
        side[rng.integers(0, n, nans), 0] = np.nan
    found = retrieval.ranks(queries, candidates, _mesh(devices))
    np.testing.assert_array_equal(found, _reference(queries, candidates))


def test_one_and_eight_devices_agree_on_real_numbers():
    rng = np.random.default_rng(0)
    zimg = rng.normal(size=(700, 24)).astype(np.float32)
    ztxt = zimg + rng.normal(size=zimg.shape).astype(np.float32)
    one, eight = (_metrics(zimg, ztxt, devices) for devices in (1, 8))
    assert one == eight
    assert 0.05 < one["text_to_image/recall@1"] < 0.95


@pytest.mark.parametrize("n", [11, 127, 167, 513])
@pytest.mark.parametrize("width", [7, 192])
def test_constant_embeddings_find_nothing(n, width):
    row = np.random.default_rng(n).normal(size=width).astype(np.float32)
    same = np.tile(row / np.linalg.norm(row), (n, 1))
    np.testing.assert_array_equal(retrieval.ranks(same, same, _mesh(8)), n - 1)
    found = _metrics(same, same, 8)
    assert found["text_to_image/recall@10"] == 0 and found["image_to_text/median_rank"] == n


def test_identical_rows_anywhere_in_the_pool_tie_exactly():
    rng = np.random.default_rng(3)
    different = rng.normal(size=(150, 64)).astype(np.float32)
    pool = np.concatenate([different, different])
    assert retrieval.ranks(pool, pool, _mesh(8)).min() >= 1


def test_nan_everywhere_finds_nothing():
    nan = np.full((20, 4), np.nan, np.float32)
    found = _metrics(nan, nan, 8)
    assert found["text_to_image/recall@10"] == 0 and found["text_to_image/median_rank"] == 21


def test_perfect_embeddings_find_everything():
    found = _metrics(np.eye(30), np.eye(30), 8)
    assert found.pop("pool_size") == 30
    assert set(found.values()) == {1.0}
    assert sorted(found) == sorted(
        f"{way}/{what}"
        for way in ("text_to_image", "image_to_text")
        for what in ("recall@1", "recall@5", "recall@10", "median_rank")
    )


def test_the_two_directions_are_not_mixed_up():
    zimg = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    ztxt = np.array([[1, 0], [1, 0.5], [0, 1]], np.float32)
    found = _metrics(zimg, ztxt, 1)
    np.testing.assert_array_equal(retrieval.ranks(ztxt, zimg, _mesh(1)), [1, 1, 0])
    np.testing.assert_array_equal(retrieval.ranks(zimg, ztxt, _mesh(1)), [1, 1, 0])
    assert (
        found["text_to_image/recall@1"] == found["image_to_text/recall@1"] == pytest.approx(1 / 3)
    )
    zimg[0] *= 2  # now every text prefers image 0 of the first two; each image ranks as before
    found = _metrics(zimg, ztxt, 1)
    assert found["text_to_image/recall@1"] == pytest.approx(2 / 3)
    assert found["image_to_text/recall@1"] == pytest.approx(1 / 3)


def test_no_device_holds_the_matrix():
    n, width = 8192, 8
    mesh = _mesh(8)
    split = NamedSharding(mesh, PartitionSpec(("a", "b")))
    whole = NamedSharding(mesh, PartitionSpec())
    blocks = n // 128
    compiled = (
        ranks._ranks(mesh)
        .lower(
            jax.ShapeDtypeStruct((blocks, 128, width), np.float32, sharding=split),
            jax.ShapeDtypeStruct((blocks, 128), np.int32, sharding=split),
            jax.ShapeDtypeStruct((n, width), np.float32, sharding=whole),
            jax.ShapeDtypeStruct((n,), np.int32, sharding=whole),
        )
        .compile()
    )
    one_block = 128 * n * 4
    share_of_the_matrix = n * n * 4 // 8
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * one_block < share_of_the_matrix


@pytest.mark.parametrize("devices", [1, 8])
def test_a_picture_is_found_by_any_of_its_captions(devices):
    """COCO's rule in loops: the best of a picture's own captions against those of others."""
    rng = np.random.default_rng(8)
    shows = np.array([0, 1, 0, 2, 2, 0, 3, 1] * 20)
    zimg, ztxt = _grid(rng, 4, 5), _grid(rng, len(shows), 5)  # many ties
    ztxt[3] = np.nan
    scores = ztxt @ zimg.T
    own = retrieval.belonging(shows)
    sides = retrieval.directions(zimg, ztxt)
    found = {k: retrieval.ranks(*v, _mesh(devices), **own[k]) for k, v in sides.items()}
    for i, picture in enumerate(shows):
        others = [scores[i, j] for j in range(4) if j != picture]
        want = 4 if i == 3 else sum(score >= scores[i, picture] for score in others)
        assert found["text_to_image"][i] == want
    for j in range(4):
        best = np.nanmax(scores[shows == j, j])
        assert found["image_to_text"][j] == (scores[shows != j, j] >= best).sum()


def test_several_captions_of_a_picture_change_the_numbers_as_told(tmp_path, tokenizer):
    """Captions of the same picture are each other's rivals only where image_id does not say so."""
    lines = [{"image": f"{i // 3}.png", "caption": TEXTS[i % 5], "of": i // 3} for i in range(15)]
    for i in range(5):
        Image.new("RGB", (16, 16), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ops = f'decode|resize(16)|caption("caption")|tokenize("{tokenizer}", 8)'
    spec = dict(source=dict(name="jsonl", path=str(tmp_path / "pairs.jsonl")), preprocess=ops)
    source, preprocess, _ = open_input(spec, "test")
    sharding = NamedSharding(_mesh(8), PartitionSpec(("a", "b")))

    def embed(batch):
        z = jax.nn.one_hot(batch["id"] // 3, 5)
        return z, z + 0.01 * jax.nn.one_hot(batch["id"] % 3, 5)

    given = dict(source=source, preprocess=preprocess, batch_size=8)
    apart = retrieval.Retrieval(**given).run(Model(embed, None, None, sharding))
    kept = {}
    together = retrieval.Retrieval(**given, image_id="of").run(
        Model(embed, None, None, sharding, keep=kept.update), tmp_path / "seen.png"
    )
    assert apart["pool_size"] == 15 and apart["text_to_image/recall@1"] == 0
    assert together["pool_size"] == 5 and together["captions"] == 15
    assert together["text_to_image/recall@1"] == together["image_to_text/recall@1"] == 1
    assert len(kept["text_to_image/recall@1"].ids) == 15
    assert kept["text_to_image/median_rank"].clusters.tolist() == [i // 3 for i in range(15)]
    assert kept["image_to_text/recall@1"].ids.tolist() == [0, 3, 6, 9, 12]
    assert json.loads((tmp_path / "report" / "seen.json").read_text())["pool_size"] == 5
    with pytest.raises(BadInput, match="image_id='off': the source has no such field; did you"):
        retrieval.Retrieval(**given, image_id="off")


def test_pools_of_different_length_are_refused():
    with pytest.raises(ValueError, match="3 queries but 4 candidates"):
        retrieval.ranks(np.ones((3, 2)), np.ones((4, 2)), _mesh(1))


_STEPS = "decode|resize(8)|value_range(-1, 1)"


class _Source:
    def __init__(self, size):
        self.features, self._size = {"image": None}, size

    def __len__(self):
        return self._size


@pytest.fixture
def pool(monkeypatch):
    """A pool of 21 pairs behind data.loader.eval_batches, the last batch padded with garbage."""
    rng = np.random.default_rng(5)
    zimg, ztxt = rng.normal(size=(2, 21, 6)).astype(np.float32)

    def eval_batches(source, preprocess, *, batch_size, sharding, max_bad_share):
        assert preprocess == _STEPS and len(source) == 21
        for start in range(0, 21, batch_size):
            rows = np.arange(start, start + batch_size)
            batch = {"image": zimg[rows % 21], "text": ztxt[rows % 21], "valid": rows < 21}
            batch["id"] = rows.astype(np.uint32)
            yield {key: jax.device_put(value, sharding) for key, value in batch.items()}

    monkeypatch.setattr("data.loader.eval_batches", eval_batches)
    return zimg, ztxt


@pytest.mark.parametrize("batch_size", [8, 16, 24])
def test_the_evaluator_drops_padding_and_keeps_order(pool, batch_size):
    zimg, ztxt = pool
    sharding = NamedSharding(_mesh(8), PartitionSpec(("a", "b")))
    spec = {"name": "retrieval", "batch_size": batch_size}
    given = {"source": _Source(21), "preprocess": _STEPS}
    evaluator = registry.build("evaluator", spec, "config.evals.seen", **given)
    embed = jax.jit(lambda batch: (batch["image"], batch["text"].astype(jnp.float32)))
    assert evaluator.run(Model(embed, None, None, sharding)) == _metrics(zimg, ztxt, 1)


def test_pictures_that_cannot_be_made_are_told_and_fail_nothing(tmp_path, capsys, tokenizer):
    """Nor does anything fail with maps=0, of which none are asked for."""
    ops = f'decode|resize(16)|caption("label")|tokenize("{tokenizer}", 8)'
    spec = dict(name="synthetic", num_examples=16, image_size=16)
    source, preprocess, _ = open_input(dict(source=spec, preprocess=ops), "test")
    evaluator = retrieval.Retrieval(source=source, preprocess=preprocess, batch_size=16)
    sharding = NamedSharding(_mesh(8), PartitionSpec(("a", "b")))

    def embed(batch):
        z = jax.nn.one_hot(jnp.arange(16), 16)
        return z, z

    def fail(_):
        raise ValueError("a map of nothing")

    found = evaluator.run(Model(embed, None, None, sharding, fail), tmp_path / "seen.png")
    assert found["text_to_image/recall@1"] == 1.0
    assert "no pictures of seen: ValueError: a map of nothing" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    evaluator.maps = 0  # as if it had been given
    evaluator.run(Model(embed, None, None, sharding, fail), tmp_path / "seen.png")
    assert (tmp_path / "seen.png").exists()
    assert json.loads((tmp_path / "report" / "seen.json").read_text())["maps"] is None
