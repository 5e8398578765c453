"""Probes against scikit-learn's on its digits, and what is refused before anything runs."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.special import softmax

from data.input import open_input
from mm import registry
from mm.config import BadInput
from mm.evals import few_shot, linear_probe
from mm.evals.base import Model
from mm.evals.knn import Knn
from mm.evals.labelled import Labelled, ranks_of, redrawn, standardize
from mm.report.measures import measure
from tests.evals.test_retrieval import _mesh

GOLDEN = Path(__file__).parents[1] / "golden/probes/digits.npz"


@pytest.fixture(scope="module")
def digits():
    """What scikit-learn says; "shown" and "asked" are the examples."""
    with np.load(GOLDEN) as file:
        found = dict(file)
    n = int(found["train"])
    x, y = found["x"].astype(np.float32), found["y"].astype(np.int32)
    sides = {"shown": Labelled(x[:n], y[:n], 10), "asked": Labelled(x[n:], y[n:], 10)}
    return found | sides


def test_ridge_is_that_of_scikit_learn(digits):
    shown, asked = standardize(digits["shown"].features, digits["asked"].features)
    labels = digits["shown"].labels
    targets = np.where(labels[:, None] == np.arange(10), 1.0, -1.0)
    for i, (weights, bias) in enumerate(few_shot.ridge(shown, targets, digits["l2"])):
        np.testing.assert_allclose(weights.T, digits[f"ridge_{i}"], atol=1e-9)
        np.testing.assert_allclose(bias, digits[f"intercept_{i}"], atol=1e-9)


def test_few_shot_is_right_where_scikit_learns_ridge_is(digits):
    shown, asked = digits["shown"], digits["asked"]
    for i, right in enumerate(few_shot.answers(shown, asked, digits["l2"])):
        np.testing.assert_array_equal(right, digits[f"ridge_answers_{i}"] == asked.labels)


def test_a_linear_probe_says_what_scikit_learns_logistic_regression_does(digits):
    shown, asked = digits["shown"], digits["asked"]
    for i, logits in enumerate(linear_probe.fit(shown, asked, digits["penalties"], 1000)):
        np.testing.assert_allclose(softmax(logits, axis=1), digits[f"logistic_{i}"], atol=1e-5)


def test_processes_add_up_to_the_last_bit_of_float64(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    own, others = np.array([1e-17, 3.0]), np.array([1.0, 1e17])

    def process_allgather(bits):
        return np.stack([np.asarray(jax.numpy.asarray(x)) for x in (bits, others.view(np.uint32))])

    monkeypatch.setattr(linear_probe.multihost_utils, "process_allgather", process_allgather)
    np.testing.assert_array_equal(linear_probe.summed(own), own + others)


@pytest.mark.parametrize("devices", [1, 8])
def test_neighbours_vote_as_scikit_learns_do(digits, devices):
    probe = Knn(k=int(digits["k"]), temperature=float(digits["temperature"]), draws=1)
    found, _ = probe.run(digits["shown"], digits["asked"], _mesh(devices), 0)
    want = digits["knn_answers"] == digits["asked"].labels
    np.testing.assert_array_equal(found["accuracy"], want)


def test_what_is_drawn_depends_on_the_seed_alone_and_grows_with_k(digits):
    probe = few_shot.FewShot(shots=(8, 1), draws=3, held_out=2)
    run = [probe.run(digits["shown"], digits["asked"], None, seed) for seed in (0, 0, 1)]
    (first, more), (again, same), (other, _) = run
    for key, values in first.items():
        np.testing.assert_array_equal(values, again[key])
        assert not np.array_equal(values, other[key])
    assert more == same
    assert 0.3 < first["1_shot/accuracy"].mean() < first["8_shot/accuracy"].mean() < 1
    each = first["8_shot/accuracy"] * 3
    assert set(np.round(each).tolist()) <= {0, 1, 2, 3} and more["8_shot/accuracy_spread"] > 0


def test_the_penalty_is_chosen_by_examples_that_are_held_out(digits):
    """Of 60 features two say something; weak penalties fit the noise of the others."""
    rng = np.random.default_rng(0)
    y = np.arange(300) % 2
    x = rng.normal(size=(300, 60)) + 1.5 * y[:, None] * (np.arange(60) < 2)
    train, test = Labelled(x[:150], y[:150], 2), Labelled(x[150:], y[150:], 2)
    probe = linear_probe.LinearProbe(l2=(1e-3, 1e-1, 1.0), draws=2)
    found, more = probe.run(train, test, _mesh(1), 0)
    weak = ranks_of(linear_probe.fit(train, test, (1e-3,), 1000)[0], test.labels) < 1
    assert more["l2"] > 1e-3 and found["accuracy"].mean() > weak.mean()
    assert set(found) == {"accuracy"}


def test_other_training_examples_give_a_mean_and_a_spread():
    """Of as many of each class; one draw alone has no spread, and none changes the accuracy."""
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    x = rng.normal(size=(90, 4)) + np.eye(4)[y]
    train, test = Labelled(x[:45], y[:45], 3), Labelled(x[45:], y[45:], 3)
    rows = redrawn(train.labels, 3, (0, 1))
    assert np.bincount(train.labels[rows]).tolist() == [15] * 3 and len({*rows.tolist()}) < 45
    for probe in (linear_probe.LinearProbe, functools.partial(Knn, k=5)):
        (found, more), (again, one) = (
            probe(draws=draws).run(train, test, _mesh(1), 0) for draws in (4, 1)
        )
        np.testing.assert_array_equal(found["accuracy"], again["accuracy"])
        assert 0 < more["redrawn/accuracy_spread"] < 0.2 and "redrawn/accuracy_spread" not in one
        assert abs(more["redrawn/accuracy"] - found["accuracy"].mean()) < 0.2


def test_a_feature_that_does_not_vary_counts_for_nothing():
    train = np.array([[1, 1e3], [2, 1e3], [3, 1e3 + 1e-4]])
    shown, asked = standardize(train, np.array([[2.0, 7.0]]))
    np.testing.assert_allclose(shown.std(axis=0), [1, 0])
    np.testing.assert_allclose(asked, [[0, 0]])


def test_ties_and_nan_are_not_right():
    scores = np.array([[1, 1, 0], [2, 1, 0], [np.nan, 0, 0]])
    np.testing.assert_array_equal(ranks_of(scores, np.zeros(3, int)), [1, 0, 3])


def test_each_class_counts_as_much_as_another():
    pairs = np.array([[0, 1], [0, 1], [0, 1], [2, 0]])
    assert measure("per_class", pairs, np.ones((1, 4))) == 0.5


OPS = "decode|resize(16)|label('label', classes=%s)"
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "grey")
SHAPES = ("circle", "square", "diamond", "cross")
CLASSES = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)


def built(classes=CLASSES, num_train=2000, **keys):
    spec = dict(
        source=dict(name="synthetic", num_examples=20, image_size=16),
        preprocess=OPS % (classes,),
        name="probes",
        batch_size=8,
        train=dict(name="synthetic", num_examples=num_train, image_size=16, seed=1),
        methods=dict(knn=dict(name="knn", k=3)),
    )
    source, preprocess, rest = open_input(spec | keys, "config.evals.x")
    given = dict(source=source, preprocess=preprocess)
    return registry.build("evaluator", rest, "config.evals.x", **given)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (dict(classes=CLASSES[:-1]), r"'grey cross' is no class; did you mean .*; add it to"),
        (dict(classes=(*CLASSES, "pink blob")), r"methods.knn: knn needs 1 training examples of "
         r"each class, and 'pink blob' has 0"),
        (dict(num_train=40, methods=dict(f=dict(name="few_shot", shots=(4,)))),
         r"methods.f: shots=4 and one to choose l2 by needs 5 training examples of each class"),
        (dict(num_train=40, methods=dict(f=dict(name="few_shot", shots=(4,), l2=1.0))),
         r"methods.f: shots=4 needs 4 training"),
        (dict(methods=dict(knn=dict(name="knn", k=2001))), r"k=2001: there are 2000 training"),
        (dict(methods=dict(knn=dict(name="knm"))), r"x.methods.knn: no probe 'knm'; did you mean"),
        (dict(methods={}), r"x: methods: is empty; name some of \['few_shot', 'knn', 'linear_pr"),
        (dict(preprocess="decode|resize(16)"), r"x: probes: needs the op label\(FIELD, classes"),
        (dict(train=dict(name="synthetic", num_examples=0)), r"config.evals.x.train: num_examples"),
        (dict(train=dict(name="text", path="nowhere")), r"config.evals.x.train: .*nowhere"),
    ],
)  # fmt: skip
def test_what_could_not_run_is_refused_when_it_is_opened(keys, message):
    with pytest.raises(BadInput, match=message):
        built(**keys)


def test_methods_share_features_and_leave_outcomes():
    evaluator = built(per_class=20, methods=dict(
        knn=dict(name="knn", k=3), few=dict(name="few_shot", shots=(1, 2), draws=2),
    ))  # fmt: skip
    sharding = jax.sharding.NamedSharding(_mesh(8), jax.sharding.PartitionSpec(("a", "b")))
    asked = []

    def apply(function):
        def features(batch):  # the mean colour
            asked.append(len(batch["image"]))
            return batch["image"].astype("float32").mean(axis=(1, 2))

        return features

    kept = {}
    found = evaluator.run(Model(None, None, None, sharding, apply, keep=kept.update))
    train = min(20 * 32, int(found["train_examples"]))
    assert found["examples"] == 20 and found["classes"] == 32 and train > 500
    assert sum(asked) == 24 + -(-train // 8) * 8  # each picture once, for both methods
    names = "knn/accuracy", "few/1_shot/accuracy", "few/2_shot/accuracy"
    assert set(kept) == {*names, *(f"{name}_per_class" for name in names)}
    for name, outcome in kept.items():
        assert outcome.metric == found[name] and outcome.ids.tolist() == list(range(20))
