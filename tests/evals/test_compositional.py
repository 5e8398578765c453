"""Hard negatives and quadruples, by embeddings and by a matching head."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from data.input import open_input
from data.preprocess.draws import example_keys
from mm import registry
from mm.config import BadInput
from mm.evals.base import Model
from mm.evals.compositional import higher
from mm.evals.winoground import scores
from tests.evals.test_retrieval import _mesh

SPEC = dict(name="synthetic", num_examples=21, image_size=16)


@pytest.fixture(scope="module")
def opened(tokenizer):
    ops = f'decode|resize(16)|caption("label")|tokenize("{tokenizer}", 8)'
    return open_input(dict(source=SPEC, preprocess=ops), "config.evals.words")


def build(opened, name="compositional", **keys):
    spec = dict(name=name, batch_size=8) | keys
    given = dict(source=keys.pop("source", opened.source), preprocess=opened.preprocess)
    spec.pop("source", None)
    return registry.build("evaluator", spec, "config.evals.words", **given)


def vectors(text, bag):
    """Unit vectors of the words, as a bag or with their places."""
    words = jnp.eye(64)[np.asarray(text)]
    found = words.sum(1) if bag else words.reshape(len(words), -1)
    return found / jnp.linalg.norm(found, axis=1, keepdims=True)


def model(devices, source, preprocess, bag=False):
    """Pictures whose vectors are those of their captions."""
    ids = np.arange(len(source))
    records = source.read(ids, preprocess.reads)
    columns = {key: [record[key] for record in records] for key in preprocess.reads}
    made = preprocess.apply(columns, example_keys(0, ids, ids * 0))
    known = {image.tobytes(): i for i, image in enumerate(made["image"])}

    def embed(batch):
        rows = [known[image.tobytes()] for image in np.asarray(batch["image"])]
        return vectors(made["text"][rows], bag), vectors(batch["text"], bag)

    def match(batch):
        zimg, ztxt = embed(batch)
        return -(zimg * ztxt).sum(-1)  # always wrong

    return Model(embed, None, match, NamedSharding(_mesh(devices), PartitionSpec(("a", "b"))))


def test_the_right_caption_wins_where_order_is_known_and_ties_lose(opened):
    evaluator = build(opened, kinds=("color", "shuffle"), match=True)
    given = opened.source, opened.preprocess
    found = evaluator.run(model(1, *given))
    assert found["color/accuracy"] == found["shuffle/accuracy"] == found["accuracy"] == 1
    assert found["match/color/accuracy"] == found["match/accuracy"] == 0
    assert found["color/count"] == 21  # each label has a colour
    assert evaluator.run(model(8, *given)) == found
    bag = build(opened, kinds=("color", "shuffle")).run(model(8, *given, bag=True))
    assert bag["color/accuracy"] == 1 and bag["shuffle/accuracy"] == 0
    assert bag["accuracy"] == 0.5 and "match/accuracy" not in bag


def test_what_differs_by_rounding_is_a_tie():
    own = np.array([0.5, 0.5, 0.5], np.float32)
    other = np.array([0.5, 0.49999994, 0.4999], np.float32)
    assert higher(own, other).tolist() == [False, False, True]


def test_captions_that_a_rule_leaves_do_not_count(tokenizer):
    caption = 'caption("label", "tags", max_tags=1, p_label=0.0)'
    ops = f'decode|resize(16)|{caption}|tokenize("{tokenizer}", 8)'
    opened = open_input(dict(source=SPEC, preprocess=ops), "x")
    evaluator = build(opened, kinds=("color",))
    found = evaluator.run(model(1, opened.source, opened.preprocess))
    assert 0 < found["color/count"] < 21 and found["color/accuracy"] == 1


def test_a_kind_that_no_caption_has_is_refused(opened):
    with pytest.raises(BadInput, match="words: kinds: no caption has what 'side' changes"):
        build(opened, kinds=("color", "side"))
    assert set(build(opened).wrong) == {"color", "shuffle"}  # of "red circle" and its like
    with pytest.raises(BadInput, match="expected one of"):
        build(opened, kinds=("colour",))


def test_winogrounds_scores_by_hand():
    found = np.array(
        [
            [[9, 1], [2, 8]],  # both
            [[9, 8], [2, 7]],  # text 1 prefers image 0
            [[5, 6], [1, 7]],  # image 0 prefers text 1
            [[5, 5], [5, 5]],  # ties
        ],
        float,
    )
    means = {name: right.mean() for name, right in scores(found).items()}
    assert means == {"text_score": 0.5, "image_score": 0.5, "group_score": 0.25}


class Quadruples:
    """Examples 2 k and 2 k + 1 of the synthetic source, as if they were quadruples."""

    def __init__(self, source, count):
        self.source, self.features, self.count = source, source.features, count

    def __len__(self):
        return self.count

    def read(self, ids, keys=None):
        return self.source.read(ids, keys)


def test_winoground_takes_pairs_in_turns_and_asks_the_matching_head(opened):
    source = Quadruples(opened.source, 18)
    evaluator = build(opened, "winoground", source=source, match=True)
    one, *others = (
        evaluator.run(model(devices, source, opened.preprocess)) for devices in (1, 2, 4, 8)
    )
    assert others == [one] * 3 and one["count"] == 9
    # Pictures of one label have the same text; all others are told apart.
    labels = [record["label"] for record in opened.source.read(np.arange(18), ("label",))]
    apart = np.mean([a != b for a, b in zip(labels[::2], labels[1::2], strict=True)])
    assert one["group_score"] == pytest.approx(apart) and one["match/group_score"] == 0


def test_an_odd_number_of_pairs_is_refused(opened):
    with pytest.raises(BadInput, match="21 examples are no quadruples"):
        build(opened, "winoground")
