"""Every evaluator with a model that has all they ask for: on 1, 2, 4 and 8 devices, and refused."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from data.input import open_input
from data.loader import eval_batches
from data.tokenizers import train
from mm import registry
from mm.config import BadInput
from mm.evals.pool import of_pairs
from mm.evaluate import open_evaluations, run_evaluations
from mm.optim.paths import map_paths
from mm.program import build_program
from mm.report import outcomes
from tests.tiny import TOWER, get_config

COLORS, SHAPES = ("red", "green", "blue"), ("circle", "square")
LABELS = [f"{color} {shape} left of cup" for color in COLORS for shape in SHAPES]
TEMPLATES = ("{}", "a red {}")
COUNT, BATCH, LENGTH = 22, 8, 32  # the last batch is uneven


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures with all that evaluators read, questions about them, and a tokenizer."""
    path = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(COUNT):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(path / f"{i}.png")
        label = LABELS[i % 6]
        shape = label.split()[1]
        lines.append({
            "image": f"{i}.png", "caption": label, "shape": shape, "tags": [shape],
            "size": rng.normal(size=2).tolist(), "one": "same",
            "odd": [1.0, 2.0][: 1 if i % 5 == 4 else 2],
        })  # fmt: skip
    (path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    questions = {"what": {"field": "shape", "train": ["what?"], "held_out": ["which?"]}}
    (path / "questions.json").write_text(json.dumps(questions))
    corpus = [*LABELS, "what?", "which?"]
    (path / "words.json").write_text(train.train(corpus * 2, 80, "sentencepiece_bpe"))
    return path


def evaluations_of(folder: Path) -> dict:
    """A group for each evaluator."""
    given = dict(source=dict(name="jsonl", path=str(folder / "pairs.jsonl")), batch_size=BATCH)
    see, words = "decode|resize(16)|value_range(-1, 1)", f'"{folder}/words.json", {LENGTH}'
    ops = f'{see}|caption("caption")|tokenize({words})|label("shape", classes={SHAPES})'
    given["preprocess"] = ops + '|group("caption")|numbers("size", 2, "target")'
    ask = f'{see}|ask("{folder}/questions.json")|tokenize_answer({words})'
    methods = dict(
        few_shot=dict(name="few_shot", shots=(1, 2), draws=2, held_out=4),
        linear_probe=dict(name="linear_probe", l2=(1e-2, 1.0), draws=2),
        knn=dict(name="knn", k=3, draws=2),
    )
    own = dict(
        answers=dict(preprocess=ask),
        captions=dict(similarity=True),
        compositional=dict(kinds=("color", "swap"), match=True),
        explanations=dict(count=3),
        probes=dict(train=given["source"], methods=methods),
        retrieval=dict(rerank=3, image_id="caption"),
        robustness=dict(
            of=dict(name="zero_shot", templates=TEMPLATES), corruptions=("fog",), strengths=(3,)
        ),
        winoground=dict(match=True),
        zero_shot=dict(templates=TEMPLATES),
    )
    names = registry.names("evaluator")
    return {name: dict(name=name, **given | own.get(name, {})) for name in names}


def config_of(folder: Path) -> ConfigDict:
    config = get_config("tokenizer=")
    tower = dict(depth=1, dropout=0.0)
    config.model.image.update(tower)
    config.model.text.update(tower | dict(vocab_size=80, length=LENGTH))
    config.model.fusion = dict(name="cross", **TOWER)
    config.model.decoder = dict(name="transformer", **TOWER)
    config.objectives = dict(
        contrastive=dict(name="contrastive", kind="sigmoid"),
        matching=dict(name="matching"),
        classification=dict(name="classification", num_classes=2),
        regression=dict(name="regression", size=2),
        captioning=dict(name="captioning"),
    )
    config.evals = evaluations_of(folder)
    config.checkpoint.keep_best = None
    return config


@pytest.fixture(scope="module")
def on(folder):
    """devices -> (program, a state, evaluations)."""

    def moved(name, x):  # heads begin with zeros, which say the same of everything
        if not name.startswith("objectives/"):
            return x
        draw = np.random.default_rng(len(name)).normal(size=x.shape).astype(np.float32)
        return x + jax.device_put(draw, x.sharding)

    @functools.cache
    def built(devices):
        program = build_program(config_of(folder), jax.devices()[:devices])
        state = program.init(0)
        state = state._replace(params=map_paths(moved, state.params))
        return program, state, open_evaluations(program)

    return built


@pytest.fixture(scope="module")
def found(on, tmp_path_factory):
    """devices -> (results, outcomes of each evaluator; of one device alone)."""

    @functools.cache
    def run(devices):
        path = tmp_path_factory.mktemp("outcomes") if devices == 1 else None
        results = run_evaluations(*on(devices), path)
        kept = {} if path is None else (path / "outcomes").iterdir()
        return results, {x.stem: outcomes.read(x) for x in kept}

    return run


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_every_evaluator_finds_the_same_on_any_number_of_devices(found, devices):
    alone, together = found(1)[0], found(devices)[0]
    assert {key.split("/")[0] for key in alone} == {*registry.names("evaluator")}
    assert alone.keys() == together.keys() and len(alone) > 100
    assert together == pytest.approx(alone, rel=1e-6, abs=1e-6)
    assert 0 < alone["matching/area_under_roc"] < 1
    assert abs(alone["classification/brier"] - 0.5) > 0.01  # that of a head of zeros


def test_zero_shot_of_clean_pictures_is_what_robustness_compares_with(found):
    results = found(1)[0]
    assert results["robustness/accuracy/clean"] == results["zero_shot/accuracy"]
    assert "robustness/accuracy/fog" in results


def test_outcomes_make_the_results(found):
    results, kept = found(1)
    assert {*registry.names("evaluator")} - {*kept} == {"losses", "representation", "explanations"}
    for name, metrics in kept.items():
        for metric, outcome in metrics.items():
            assert outcome.metric == pytest.approx(results[f"{name}/{metric}"], rel=1e-9)
            assert len(outcome.ids) == len(outcome.values) > 0


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
    records = evaluator.source.read(np.arange(COUNT), evaluator.preprocess.reads)
    right = 0
    for start in range(0, COUNT, BATCH):
        some = [records[min(start + i, COUNT - 1)] for i in range(BATCH)]
        columns = {key: [record[key] for record in some] for key in evaluator.preprocess.reads}
        made = evaluator.preprocess.apply(columns, np.zeros(BATCH, np.uint64))
        batch = {name: made[name] for name in ("image", "text", "text_mask")}
        zimg = np.asarray(program.embed(state, batch)[0])
        for z, record in list(zip(zimg, some, strict=True))[: COUNT - start]:
            best = int(np.argmax([float(z @ vector) for vector in vectors]))
            right += SHAPES[best] == record["shape"]
    assert found(1)[0]["zero_shot/accuracy"] == right / COUNT


def test_pairs_are_ranked_by_the_matching_objective(on, found):
    program, state, evaluations = on(1)
    evaluator, results = evaluations["losses"].evaluator, found(1)[0]
    given = dict(batch_size=BATCH, sharding=program.batch_sharding)
    with eval_batches(evaluator.source, evaluator.preprocess, **given) as batches:
        batch = next(batches)
    own = np.mean(np.asarray(program.match(state, of_pairs(batch))) > 0)
    assert own == program.losses(state, batch)["matching/own_accuracy"]
    for name in ("text_to_image", "image_to_text"):  # three change places among themselves
        plain, better = (results[f"retrieval/{kind}{name}/recall@5"] for kind in ("", "reranked/"))
        assert plain == better


WITHOUT_LABEL = 'decode|resize(16)|value_range(-1, 1)|caption("caption")|tokenize({words})'


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("classification", dict(ops='labels("tags", classes=("circle", "hexagon"))'),
         "evals.x.preprocess: .*'square' is no class"),
        ("matching", dict(ops='group("one")'), "evals.x: matching: all pairs are of one group"),
        ("answers", dict(preprocess='ask("{folder}/wrong.json")|tokenize_answer({words})'),
         r"evals.x.preprocess: ask.*what: answers: .*invalid group reference 2"),
        ("winoground", dict(source=dict(first=0.15)), "19 examples are no quadruples"),
        ("probes", dict(methods=dict(k=dict(name="knn", k=23))), "k=23: there are 22 training"),
        ("probes", dict(methods=dict(f=dict(name="few_shot", shots=(11,)))),
         "needs 12 training examples of each class, and 'circle' has 11"),
        ("regression", dict(ops='numbers("odd", 2, "target")'),
         "evals.x: 4 of 22 examples are broken, more than max_bad_share=0.01"),
        ("robustness", dict(ops='label("shape", classes=("circle", "square"))|numbers("odd", 2)'),
         "evals.x: 4 of 22 examples are broken, more than max_bad_share=0.01"),
        ("losses", dict(batch_size=32), "batch_size=32 must be from 1 to the 22 examples"),
        ("representation", dict(source=dict(first=0.95)), "needs 2 examples, the source has 1"),
        ("matching", dict(source=dict(first=0.95)), "needs two pairs at least"),
        ("retrieval", dict(batch_size=0), "evals.x.batch_size=0: expected at least 1"),
    ],
)  # fmt: skip
def test_what_could_not_run_is_refused_before_training(folder, on, name, changes, message):
    wrong = {"what": {"field": "shape", "train": ["a?"], "held_out": ["b?"]}}
    wrong["what"]["answers"] = {"(circle)|square": "\\2"}
    (folder / "wrong.json").write_text(json.dumps(wrong))
    spec = evaluations_of(folder)[name] | {k: x for k, x in changes.items() if k != "source"}
    spec["source"] = spec["source"] | changes.get("source", {})
    words = f'"{folder}/words.json", {LENGTH}'
    spec["preprocess"] = spec["preprocess"].replace("{words}", words)
    spec["preprocess"] = spec["preprocess"].replace("{folder}", str(folder))
    if ops := spec.pop("ops", None):
        spec["preprocess"] = WITHOUT_LABEL.replace("{words}", words) + f"|{ops}"
    with pytest.raises(BadInput, match=message):
        open_with(on(1)[0], x=spec)


def test_a_source_without_examples_is_refused_before_training(folder, on, monkeypatch):
    spec = evaluations_of(folder)["explanations"]
    opened = open_input(spec, "config.evals.x")._replace(source=())
    monkeypatch.setattr("mm.evaluate.open_input", lambda *_: opened)
    with pytest.raises(BadInput, match="evals.x.source: is empty; expected one example"):
        open_with(on(1)[0], x=spec)


def test_how_it_was_evaluated_is_kept_with_the_defaults_of_all_parts(on):
    _, _, evaluations = on(1)
    kept = {
        name: json.loads(json.dumps(each.of["evaluator"])) for name, each in evaluations.items()
    }
    assert {each["name"] for each in kept.values()} == {*registry.names("evaluator")}
    (robust,) = (each for each in kept.values() if each["name"] == "robustness")
    assert robust["of.max_bad_share"] == 0.01 and robust["strengths"] == [3]


def open_with(program, **evals):
    recipe = dataclasses.replace(program.recipe, evals=evals)
    return open_evaluations(dataclasses.replace(program, recipe=recipe))
