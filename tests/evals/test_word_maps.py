"""Words that are looked for in pictures."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from data.preprocess.parse import parse
from mm.evals.base import Model
from mm.evals.word_maps import find_tokens, find_words, look, word_maps
from mm.models.multimodal import Multimodal
from mm.objectives.views import Views
from tests.evals.test_retrieval import _mesh
from tests.tiny import IMAGE, TEXT, TOWER

SHARDING = NamedSharding(_mesh(8), PartitionSpec(("a", "b")))
CAPTIONS = ["red circle", "yellow orange black green"]


@pytest.fixture
def ops(tokenizer):
    return parse(f'decode|resize(16)|caption("label")|tokenize("{tokenizer}", 8)', where="test")


def records(count=2):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (count, 20, 20, 3)).astype(np.uint8)
    return [{"image": x, "label": c} for x, c in zip(pictures, CAPTIONS, strict=True)]


def test_the_longest_words_are_looked_for_in_the_order_of_the_caption():
    assert find_words("A red, yellow-ish bus on the street") == ["red", "yellow-ish", "street"]
    assert find_words("one one one") == ["one"] and find_words("... !") == []


def test_asked_for_words_are_those_that_the_caption_has():
    assert find_words("A Red bus", ("red", "street")) == ["Red"]


def test_the_tokens_of_a_word_are_what_it_adds(ops):
    ids, mask = ops.tokenizer.encode(["orange", "yellow orange black green"])
    tokens = find_tokens(ops.tokenizer, "yellow orange black green", "orange")
    marks = ops.tokenizer.manifest()
    alone = slice(len(marks["ids_before"]), mask[0].sum() - len(marks["ids_after"]))
    assert ids[1][tokens].tolist() == ids[0][alone].tolist() != []
    count = len(marks["ids_before"] + marks["ids_after"])
    everything = [
        find_tokens(ops.tokenizer, "yellow orange black green", word)
        for word in ("yellow", "orange", "black", "green")
    ]
    assert (np.sum(everything, 0) <= 1).all() and np.sum(everything) == np.sum(mask[1]) - count


def test_a_part_of_a_word_is_no_word(ops):
    with pytest.raises(ValueError, match="no word"):
        find_tokens(ops.tokenizer, "yellow", "low")


def finder(of_text):
    def embed(batch):
        quarters = batch["image"][..., 0].astype(jnp.float32).reshape(-1, 2, 8, 2, 8)
        zimg = quarters.mean((2, 4)).reshape(-1, 4)
        return zimg, jnp.tile(jnp.eye(4)[of_text], (len(zimg), 1))

    return Model(embed, None, None, SHARDING, lambda _: lambda batch: {})


def test_occlusion_falls_where_the_word_is(ops):
    """Of a model whose word is the upper right quarter, which alone is bright."""
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[:8, 8:] = 255
    found = word_maps(
        finder(of_text=1), ops, [{"image": picture, "label": "red circle"}], ["red circle"],
        batch_size=16,
    )  # fmt: skip
    [example] = found["examples"]
    assert found["kind"] == "occlusion" and example["pool"] is None
    assert [word for word, _ in example["words"]] == ["red circle", "red", "circle"]
    for _, fall in example["words"]:
        assert fall.shape == (7, 7) and fall[:3, 4:].min() > 0
        assert abs(fall[4:, :3]).max() < 1e-3
    np.testing.assert_array_equal(example["picture"], picture)


FUSIONS = {
    "cross": dict(name="cross", **TOWER),
    "cross_image": dict(name="cross", queries="image", **TOWER),
    "early": dict(name="early", cls_token=True, **TOWER),
    "coattention": dict(name="coattention", **TOWER),
    "hierarchical": dict(name="hierarchical", **TOWER),
    "multiway": dict(name="multiway", **TOWER),
}


def looking(**spec):
    """A Model whose `apply` looks at a random one of that spec."""
    given = dict(image=IMAGE, text=TEXT, embed_dim=16) | spec
    model = Multimodal(**given, rngs=nnx.Rngs(0))

    def apply(function, batch):
        return jax.jit(lambda batch: function(None, Views(model, batch, None, training=False)))(
            batch
        )

    return Model(None, None, None, SHARDING, lambda function: partial(apply, function))


@pytest.mark.parametrize("name", FUSIONS)
def test_a_fusion_that_attends_is_asked_for_its_attention(name, ops):
    found = word_maps(looking(fusion=FUSIONS[name]), ops, records(), CAPTIONS, batch_size=8)
    assert found["kind"] == "attention"
    words = [[word for word, _ in example["words"]] for example in found["examples"]]
    assert words == [["red", "circle"], ["yellow", "orange", "black"]]
    maps = np.array([x for example in found["examples"] for _, x in example["words"]])
    assert maps.shape == (5, 2, 2) and (maps > 0).all() and (maps.sum((1, 2)) < 4.0001).all()
    if name in ("cross", "coattention", "hierarchical"):  # others share it with other tokens
        np.testing.assert_allclose(maps.sum((1, 2)), 1, rtol=1e-5)
    assert len(np.unique(maps.round(6), axis=0)) == 5  # each word has its own


@pytest.mark.parametrize("name", ["cls", "map"])
def test_a_pool_that_attends_shows_where(name, ops):
    model = looking(image=IMAGE | dict(pool=name, registers=2))
    batch = {k: jnp.asarray(x) for k, x in ops.apply(*_columns(ops)).items()}
    found = model.apply(look)(batch)
    assert found.keys() == {"pool"} and found["pool"].shape == (2, 2, 2)
    total = np.asarray(found["pool"].sum((1, 2)))
    assert (total < 1).all() if name == "cls" else np.allclose(total, 1)  # it sees itself, too


def test_nothing_attends_for_a_mean(ops):
    model = looking(image=IMAGE | dict(pool="mean"), fusion=dict(name="late", kind="concatenate"))
    assert (
        model.apply(look)({k: jnp.asarray(x) for k, x in ops.apply(*_columns(ops)).items()}) == {}
    )


def _columns(ops):
    from data.preprocess.draws import example_keys

    rows = records()
    columns = {key: [row[key] for row in rows] for key in ops.reads}
    return columns, example_keys(0, np.arange(2), np.zeros(2, np.int64))
