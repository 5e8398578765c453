"""Questions about pictures, each with the answers of ten people: the files of VQAv2.

In memory are the questions and the answers, about 400 bytes a question; while it is opened the
files are parsed whole, some 3 GB for the 443,757 questions of training. Pictures are read when they
are asked for.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from data import files
from data.sources import Source
from data.sources.arrow import Groups, lists, strings
from data.sources.table import open_table
from mm import registry
from mm.config import BadInput

_QUESTIONS = "v2_OpenEnded_mscoco_{}_questions.json"
_ANNOTATIONS = "v2_mscoco_{}_annotations.json"


@registry.register("source", "vqav2")
def vqav2(
    *,
    path: str,
    split: str = "train2014",
    images: str | None = None,
    first: float = 0.0,
    last: float = 1.0,
) -> Source:
    """One example a question: `image`, `question`, `answers` (of ten people), `answer` (which most
    gave), `question_id`, `image_id`, `question_type`, `answer_type`, in the order of the file.

    From the share `first` of all to `last`. Of VQAv2 (Goyal et al. 2017) as it is unpacked: path is
    the folder with v2_OpenEnded_mscoco_train2014_questions.json and
    v2_mscoco_train2014_annotations.json, images that of the pictures, by default train2014/ in it,
    with COCO_train2014_000000000009.jpg. split: train2014 or val2014; test2015 has no answers.
    Raises BadInput where a file or the folder is not there, or holds something else.
    """
    path = os.path.expanduser(path)
    asked_in = files.join(path, _QUESTIONS.format(split))
    answered_in = files.join(path, _ANNOTATIONS.format(split))
    folder = os.path.expanduser(images or files.join(path, split))
    questions = _entries(asked_in, "questions")
    if not files.exists(answered_in):
        why = "; questions of a test split have none, to train on or to judge by"
        raise BadInput(f"{answered_in}: is missing{why if split.startswith('test') else ''}")
    answers = {entry.get("question_id"): entry for entry in _entries(answered_in, "annotations")}
    if not files.is_remote(folder) and not os.path.isdir(folder):
        raise BadInput(f"{path}: no folder of pictures {folder}; set images to where they are")
    try:
        table = _table(questions, answers, split)
    except (KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise BadInput(
            f"{asked_in}, {answered_in}: are not as VQAv2 has them, an annotation for every "
            f"question ({error!r})"
        ) from error
    rows = Groups(table.schema, [len(table)], lambda *_: table, [asked_in], lambda _: folder)
    return open_table(rows, image_key="image", first=first, last=last)


def _table(
    questions: Sequence[Mapping[str, Any]], answers: Mapping[int, Mapping[str, Any]], split: str
) -> pa.Table:
    found = [answers[question["question_id"]] for question in questions]
    numbers = [question["image_id"] for question in questions]
    names = [f"COCO_{split}_{number:012d}.jpg" for number in numbers]
    of_people = [[person["answer"] for person in entry["answers"]] for entry in found]
    columns = {
        "image": strings(names),
        "question": strings(question["question"] for question in questions),
        "answer": strings(entry["multiple_choice_answer"] for entry in found),
        "answers": lists(of_people),
        "question_id": pa.array([question["question_id"] for question in questions], pa.int64()),
        "image_id": pa.array(numbers, pa.int64()),
    }
    for name in ("question_type", "answer_type"):
        columns[name] = strings(entry[name] for entry in found).dictionary_encode()
    return pa.table(columns)


def _entries(path: str, name: str) -> Sequence[Mapping[str, Any]]:
    """The list that a file of the benchmark holds under a name."""
    try:
        found = json.loads(files.read(path))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: is no JSON ({error})") from error
    entries = found.get(name) if isinstance(found, dict) else None
    if not isinstance(entries, list) or not entries or not isinstance(entries[0], dict):
        raise BadInput(f"{path}: has no list of {name}, as VQAv2's files have")
    return entries
