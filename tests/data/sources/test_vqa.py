import io
import json

import numpy as np
import pytest
from PIL import Image

from data.input import example, open_input
from data.sources import BadExample, Feature, open_source
from data.tokenizers.train import train
from mm.config import BadInput, load, plain
from mm.evals import vqa
from mm.evals.answers import Answers

QUESTIONS = {  # id -> picture, question, answers of ten people
    458000: (458, "What is it?", ["net"] * 6 + ["a net"] * 2 + ["mesh", "fence"]),
    262148000: (262148, "How many?", ["2"] * 10),
    262148001: (262148, "Is it red?", ["yes"] * 2 + ["no"] * 8),
}


def write(folder, split, answered=True):
    """Files as the benchmark has them: annotations in another order than the questions."""
    questions = [
        {"image_id": picture, "question": text, "question_id": number}
        for number, (picture, text, _) in QUESTIONS.items()
    ]
    head = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": split}
    named = folder / f"v2_OpenEnded_mscoco_{split}_questions.json"
    named.write_text(json.dumps(head | {"task_type": "Open-Ended", "questions": questions}))
    if answered:
        annotations = [
            {
                "question_id": number, "image_id": picture, "question_type": "what is",
                "answer_type": "other", "multiple_choice_answer": max(people, key=people.count),
                "answers": [
                    {"answer": said, "answer_confidence": "yes", "answer_id": i + 1}
                    for i, said in enumerate(people)
                ],
            }
            for number, (picture, _, people) in reversed(QUESTIONS.items())
        ]  # fmt: skip
        named = folder / f"v2_mscoco_{split}_annotations.json"
        named.write_text(json.dumps(head | {"annotations": annotations}))
    (folder / split).mkdir()
    for picture in {picture for picture, _, _ in QUESTIONS.values()}:
        out = io.BytesIO()
        Image.new("RGB", (16, 12), (picture % 256, 0, 0)).save(out, format="JPEG")
        (folder / split / f"COCO_{split}_{picture:012d}.jpg").write_bytes(out.getvalue())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vqa")
    for split in ("train2014", "val2014", "test2015"):
        write(folder, split, answered=split != "test2015")
    return folder


def opened(folder, **given):
    return open_source({"name": "vqav2", "path": str(folder)} | given, "config.input.source")


def test_an_example_is_a_question_with_its_picture_and_ten_answers(folder):
    source = opened(folder, split="val2014")
    assert source.features["answers"] == Feature("text", ragged=True)
    found = source.read(np.arange(3))
    first = dict(found[0])
    jpeg = (folder / "val2014/COCO_val2014_000000000458.jpg").read_bytes()
    assert first.pop("image") == jpeg
    assert first == {
        "question": "What is it?",
        "answer": "net",
        "answers": QUESTIONS[458000][2],
        "question_id": 458000,
        "image_id": 458,
        "question_type": "what is",
        "answer_type": "other",
    }
    assert [row["question_id"] for row in found] == list(QUESTIONS)
    assert [row["answer"] for row in found] == ["net", "2", "no"]
    assert len(opened(folder, first=0.5)) == 1


def test_pictures_may_be_elsewhere_and_a_missing_one_is_a_broken_example(folder, tmp_path):
    with pytest.raises(BadExample, match="questions.json row 0: picture 'COCO_train2014_00000000"):
        opened(folder, images=str(tmp_path)).read(np.array([0]))
    with pytest.raises(BadInput, match="no folder of pictures .*none; set images"):
        opened(folder, images=str(tmp_path / "none"))


def test_a_split_without_answers_is_refused(folder):
    with pytest.raises(BadInput, match="test2015_annotations.json: is missing; questions of a "):
        opened(folder, split="test2015")


def test_a_split_that_is_not_there_is_refused(folder):
    with pytest.raises(BadInput, match="v2_OpenEnded_mscoco_val2015_questions.json"):
        opened(folder, split="val2015")


@pytest.mark.parametrize(
    "kind, change, message",
    [
        ("questions", lambda found: "{", "is no JSON"),
        ("questions", lambda found: "[]", "has no list of questions"),
        ("annotations", lambda found: json.dumps({"annotations": []}), "no list of annotations"),
        ("annotations", lambda found: found.replace('"multiple_', '"few_'), "multiple_choice_ans"),
        ("annotations", lambda found: found.replace("458000", "458001"), "KeyError.458000"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, kind, change, message):
    write(tmp_path, "train2014")
    (path,) = tmp_path.glob(f"*_{kind}.json")
    path.write_text(change(path.read_text()))
    with pytest.raises(BadInput, match=message):
        opened(tmp_path)


@pytest.mark.parametrize("variant", ["tiny", "B/16"])
def test_the_recipe_asks_and_judges_by_the_answers_of_people(folder, tmp_path, variant):
    texts = [*(text for _, text, _ in QUESTIONS.values()), "a net mesh fence yes no 2"]
    (tmp_path / "words.json").write_text(train(texts * 2, 64, "sentencepiece_bpe"))
    arg = f"variant={variant},data=vqav2,path={folder},tokenizer={tmp_path}/words.json"
    config = plain(load(f"configs/instruct.py:{arg}"))
    shown = open_input(config["input"], "config.input")
    assert set(shown.preprocess.reads) == {"image", "question", "answers"}
    assert example(shown.source, shown.preprocess)["text_answer"].any()
    spec = config["evals"]["held_out"]
    asked = open_input(spec, "config.evals.held_out")
    assert (spec["name"], spec["references"]) == ("answers", "answers")
    judge = Answers(
        source=asked.source, preprocess=asked.preprocess, batch_size=2, references="answers"
    )
    people = judge.source.read(np.arange(3), ("answers",))
    accuracies = [vqa.accuracy("no", row["answers"]) for row in people]
    assert accuracies == [0, 0, 1] and vqa.accuracy("yes", people[2]["answers"]) == pytest.approx(
        (8 * 2 / 3 + 2 * 1 / 3) / 10  # a tenth leaves out each of the people
    )


def test_data_that_the_recipe_does_not_know_are_refused():
    with pytest.raises(BadInput, match="data=vqa: expected vqav2, with variant=tiny or B/16"):
        load("configs/instruct.py:data=vqa")
    with pytest.raises(BadInput, match="data=vqav2: expected vqav2, with variant=tiny or B/16"):
        load("configs/instruct.py:variant=captions,data=vqav2")
