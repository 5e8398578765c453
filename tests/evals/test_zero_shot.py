"""Zero-shot by hand, and every evaluator on 1, 2, 4 and 8 devices."""

import functools
import json

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from data.input import open_input
from mm.config import BadInput
from mm.evals.base import Model
from mm.evals.zero_shot import ZeroShot, class_vectors, embed_image, embed_text
from mm.evaluate import open_evaluations, run_evaluations
from mm.program import build_program
from mm.report import outcomes
from tests.evals.test_probes import COLORS, SHAPES
from tests.evals.test_retrieval import _mesh
from tests.tiny import get_config

CLASSES = {shape: [f"{color} {shape}" for color in COLORS] for shape in SHAPES}
TEMPLATES = ("{}", "a red {}", "{} black")
COUNT, BATCH = 21, 8  # the last batch is uneven


def config_of(tokenizer):
    """All evaluators but those of other files, on a model with embeddings and a matching head."""
    config = get_config(f"tokenizer={tokenizer}")
    ops = (
        f'decode|resize(16)|value_range(-1, 1)|caption("label")|tokenize("{tokenizer}", 8)'
        f'|label("label", classes={CLASSES!r})|group("concept")'
    )
    source = dict(name="synthetic", num_examples=COUNT, image_size=16, seed=1)
    given = dict(source=source, preprocess=ops, batch_size=BATCH)
    methods = dict(
        few_shot=dict(name="few_shot", shots=(1, 2), draws=2, held_out=4),
        linear_probe=dict(name="linear_probe", l2=(1e-2, 1.0)),
        knn=dict(name="knn", k=3),
    )
    config.evals = dict(
        retrieval=dict(name="retrieval", rerank=3, image_id="concept", **given),
        losses=dict(name="losses", **given),
        zero_shot=dict(name="zero_shot", templates=TEMPLATES, **given),
        probes=dict(name="probes", train=source | dict(num_examples=53), methods=methods, **given),
    )
    config.checkpoint.keep_best = None
    for tower in (config.model.image, config.model.text):
        tower.depth = 1
    config.model.fusion = dict(name="cross", width=16, depth=1, num_heads=2)
    config.objectives.matching = dict(name="matching")
    return config


@pytest.fixture(scope="module")
def on(tokenizer):
    """devices -> (program, its first state, evaluations)."""

    @functools.cache
    def built(devices):
        program = build_program(config_of(tokenizer), jax.devices()[:devices])
        return program, program.init(0), open_evaluations(program)

    return built


@pytest.fixture(scope="module")
def found(on, tmp_path_factory):
    """devices -> (results, outcomes of each evaluator; of 8 devices alone)."""

    @functools.cache
    def run(devices):
        path = tmp_path_factory.mktemp("outcomes") if devices == 8 else None
        results = run_evaluations(*on(devices), path)
        kept = {} if path is None else (path / "outcomes").iterdir()
        return results, {x.stem: outcomes.read(x) for x in kept}

    return run


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_every_evaluator_finds_the_same_on_any_number_of_devices(found, devices):
    alone, together = found(1)[0], found(devices)[0]
    assert alone.keys() == together.keys() and len(alone) > 35
    assert together == pytest.approx(alone, rel=1e-6, abs=1e-6)
    assert 0 < alone["zero_shot/accuracy"] < 1 and 0 < alone["probes/knn/accuracy"] < 1


def test_outcomes_are_of_every_example_and_their_means_are_the_results(found):
    results, kept = found(8)
    assert set(kept) == {"retrieval", "zero_shot", "probes"}  # a loss is of a batch
    for name, metrics in kept.items():
        for metric, outcome in metrics.items():
            assert outcome.metric == pytest.approx(results[f"{name}/{metric}"], rel=1e-9)
            if metric.endswith("text_to_image/recall@1") or name != "retrieval":
                assert outcome.ids.tolist() == list(range(COUNT))


def test_a_class_is_the_mean_of_its_normalized_prompts_normalized(on, found):
    program, state, evaluations = on(1)
    evaluator = evaluations["zero_shot"].evaluator
    tokenize = evaluator.preprocess.tokenizer.encode
    image = np.zeros((BATCH, 16, 16, 3), np.float32)
    vectors = []
    for name in SHAPES:
        total = np.zeros(16)
        for template in TEMPLATES:
            text, mask = tokenize([template.format(name)] * BATCH)
            ztxt = program.embed(state, {"image": image, "text": text, "text_mask": mask})[1][0]
            total += ztxt / np.linalg.norm(ztxt)
        vectors.append(total / np.linalg.norm(total))
    records = evaluator.source.read(np.arange(COUNT))
    right = 0
    for start in range(0, COUNT, BATCH):
        some = [records[min(start + i, COUNT - 1)] for i in range(BATCH)]
        columns = {key: [record[key] for record in some] for key in evaluator.preprocess.reads}
        made = evaluator.preprocess.apply(columns, np.zeros(BATCH, np.uint64))
        batch = {name: made[name] for name in ("image", "text", "text_mask")}
        zimg = np.asarray(program.embed(state, batch)[0])
        for z, record in list(zip(zimg, some, strict=True))[: COUNT - start]:
            best = int(np.argmax([float(z @ vector) for vector in vectors]))
            right += SHAPES[best] == record["label"].split()[1]
    assert found(1)[0]["zero_shot/accuracy"] == right / COUNT


def test_an_average_of_embeddings_is_of_their_directions():
    ztxt = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, -1.0]]])
    np.testing.assert_allclose(class_vectors(ztxt), [[2**-0.5, 2**-0.5], [0, 0]], atol=1e-7)


def evaluator_of(tokenizer, **keys):
    ops = f'decode|resize(16)|caption("label")|tokenize("{tokenizer}", 8)'
    spec = dict(source=dict(name="synthetic", num_examples=COUNT, image_size=16, seed=1))
    spec |= dict(preprocess=f'{ops}|label("label", classes={CLASSES!r})') | keys
    source, preprocess, rest = open_input(spec, "config.evals.x")
    return ZeroShot(source=source, preprocess=preprocess, batch_size=BATCH, **rest)


def test_top_1_top_5_and_the_mean_over_classes_are_counted_by_hand(tokenizer):
    """Of eight classes; two of them have no example, and pictures are their number."""
    evaluator = evaluator_of(tokenizer)
    evaluator.num_classes = 8
    evaluator.labels = np.arange(COUNT) % 6
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
