"""Ops that make questions and answers: those of a source, or made of what a source says.

`decode|resize(48)|ask("emoji")|tokenize_answer("words.json", 32)`: from a picture and its labels to
an instruction and its answer, side by side in one text.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from data import builders, files, tokenizers
from data.preprocess import Columns, Op
from data.preprocess.draws import Draws
from data.sources import BadExample
from mm import registry
from mm.config import BadInput, Positive, suggest


class Kind(NamedTuple):
    """Questions of one kind: which field answers them, and how.

    answers: pairs of a pattern of the whole value and the answer, where \\1 is what its first group
    found; the first that fits counts. Without any, the value is the answer. templates: the
    questions; those with {one} and {two} name the answer and another one, in any order.
    """

    name: str
    field: str
    answers: tuple[tuple[re.Pattern, str], ...]
    templates: tuple[str, ...]
    weight: float

    @property
    def choices(self) -> tuple[str, ...]:
        """The answers that do not depend on the value."""
        return tuple(dict.fromkeys(text for _, text in self.answers if "\\" not in text))

    def answer(self, value: Any) -> str | None:
        """None where the value has none."""
        if not self.answers:
            return str(value).strip() or None
        for pattern, text in self.answers:
            if found := pattern.fullmatch(str(value)):
                return found.expand(text)
        return None


@registry.register("op", "ask")
def ask(
    *,
    questions: str,
    templates: Literal["train", "held_out"] = "train",
    kinds: Sequence[str] = (),
) -> Op:
    """Writes `instruction` and `answer`, a question that the example's fields answer; and `kind`,
    int32 [b], the number of its kind.

    questions: a JSON file, or the name of a data set that has one, "emoji" (see docs/tasks.md for
    what is in it). templates: those to train with, or those that are held out. kinds: of these
    alone, by default all. Of those that an example can answer each is as likely as its weight, and
    of its templates each as likely as the others. An example that answers none is a BadExample.
    """
    known = read_questions(questions, templates)
    for name in kinds:
        if name not in [kind.name for kind in known]:
            have = [kind.name for kind in known]
            raise BadInput(f"kinds: no {name!r}{suggest(name, have)} (have {have})")
    asked = [kind for kind in known if not kinds or kind.name in kinds]

    def apply(columns: Columns, draws: Draws) -> Columns:
        drawn = draws.uniform(4).T.tolist()
        made = [
            _question(asked, {kind.field: columns[kind.field][row] for kind in asked}, numbers)
            for row, numbers in enumerate(drawn)
        ]
        number, instruction, answer = zip(*made, strict=True)
        texts = {"instruction": list(instruction), "answer": list(answer)}
        return columns | texts | {"kind": np.array(number, np.int32)}

    reads = tuple(dict.fromkeys(kind.field for kind in asked))
    return Op(apply, reads=reads, stage="text", classes=tuple(kind.name for kind in asked))


def _question(
    kinds: Sequence[Kind], values: Mapping[str, Any], numbers: Sequence[float]
) -> tuple[int, str, str]:
    """The number of a kind, a question and its answer, of four numbers in [0, 1)."""
    answers = [kind.answer(values[kind.field]) for kind in kinds]
    weights = [kind.weight if answer else 0.0 for kind, answer in zip(kinds, answers, strict=True)]
    if not any(weights):
        raise BadExample(f"{values} answers no question", "answers no question")
    which, template, choice, order = numbers
    chosen = int(np.searchsorted(np.cumsum(weights), which * sum(weights), side="right"))
    kind, answer = kinds[chosen], answers[chosen]
    text = kind.templates[int(template * len(kind.templates))]
    if "{one}" in text:
        others = [other for other in kind.choices if other != answer]
        both = answer, others[int(choice * len(others))]
        one, two = both if order < 0.5 else both[::-1]
        text = text.replace("{one}", one).replace("{two}", two)
    return chosen, text, answer


def read_questions(name: str, templates: str) -> list[Kind]:
    """The kinds in a JSON file, or of a data set. Raises BadInput for what is none."""
    shipped = Path(builders.__file__).parent / name / "questions.json"
    path = str(shipped) if shipped.exists() else os.path.expanduser(name)
    what = f"questions={name!r}"
    try:
        found = json.loads(files.read(path))
    except ValueError as error:
        raise BadInput(f"{what}: is no JSON ({error})") from error
    if not isinstance(found, Mapping) or not found:
        raise BadInput(f'{what}: expected {{"what": {{"field": "label", "train": [...], ...}}}}')
    return [
        registry.call(_kind, spec, f"{what}: {kind}", name=kind, templates=templates)
        for kind, spec in found.items()
    ]


def _kind(
    *,
    field: str,
    train: Sequence[str],
    held_out: Sequence[str],
    answers: Mapping = {},
    weight: float = 1.0,
    name: str,
    templates: str,
) -> Kind:
    try:
        patterns = tuple((re.compile(pattern), text) for pattern, text in answers.items())
    except re.error as error:
        raise BadInput(f"answers: {error.pattern!r} is no regular expression: {error}") from error
    for pattern, text in patterns:
        try:
            pattern.sub(text, "")  # reads the text even where nothing is found
        except (re.error, IndexError) as error:
            raise BadInput(
                f"answers: {text!r} of {pattern.pattern!r}: {error}; \\1 is its first group"
            ) from error
    if not train or not held_out or set(train) & set(held_out):
        raise BadInput("expected templates in train and in held_out, none in both")
    made = Kind(name, field, patterns, tuple({"train": train}.get(templates, held_out)), weight)
    for text in (*train, *held_out):
        if ("{one}" in text) != ("{two}" in text):
            raise BadInput(f"{text!r}: has one of {{one}} and {{two}}; expected both or none")
        if "{one}" in text and len(made.choices) < 2:
            raise BadInput(f"{text!r}: names two answers; answers has {len(made.choices)} of them")
    if weight <= 0:
        raise BadInput(f"weight={weight}: expected more than 0")
    return made


@registry.register("op", "instruct")
def instruct(*, instruction: str, answer: str) -> Op:
    """Writes `instruction` and `answer` of two fields, texts.

    Of an answer that is a list, as that of ten people, each is as likely, another in another epoch.
    """

    def apply(columns: Columns, draws: Draws) -> Columns:
        found = []
        for row, place in zip(columns[answer], draws.uniform(1)[0].tolist(), strict=True):
            listed = [row] if isinstance(row, str) else list(row)
            if not listed:
                raise BadExample(f"{answer!r} is an empty list", "there is no answer")
            found.append(listed[int(place * len(listed))])
        return columns | {"instruction": list(columns[instruction]), "answer": found}

    return Op(apply, reads=(instruction, answer), stage="text")


@registry.register("op", "tokenize_answer")
def tokenize_answer(*, name: str, length: Positive, data_dir: str | None = None) -> Op:
    """Turns `instruction` and `answer` into one `text`, int32 [b, length], and its `text_mask`.

    And `text_answer`, bool [b, length], True for the tokens of the answer and the end mark. There
    is no end mark between the two. name, data_dir: as in `tokenize`. A pair that does not fit into
    the length is a BadExample, and so is one of which either is blank.
    """
    tokenizer = tokenizers.load(tokenizers.find(name, data_dir), length)
    marks = tokenizer.manifest()
    before, after = len(marks["ids_before"]), len(marks["ids_after"])
    if not after:
        raise BadInput(f"{name!r} has no end mark, which ends an answer; use another tokenizer")

    def apply(columns: Columns, draws: Draws) -> Columns:
        sides = []
        for key in ("instruction", "answer"):
            if not isinstance(columns.get(key), list):
                raise BadInput("belongs after the op that writes questions, ask or instruct")
            if blank := [text for text in columns[key] if not str(text).strip()]:
                raise BadExample(f"the {key} is blank ({blank[0]!r})", f"{key} is empty")
            sides.append(tokenizer.encode(columns[key]))
        (questions, asked), (answers, answered) = sides
        first, rest = asked.sum(1) - after, answered.sum(1) - before
        if (first + rest).max() > length:
            row = int((first + rest).argmax())
            raise BadExample(
                f"{columns['instruction'][row]!r} and its answer do not fit into {length} tokens",
                "instruction and answer are too long",
            )
        place = np.arange(length)[None]
        mask, is_answer = place < (first + rest)[:, None], place >= first[:, None]
        moved = np.clip(place - first[:, None] + before, 0, length - 1)
        ids = np.where(is_answer, np.take_along_axis(answers, moved, 1), questions)
        found = {
            "text": np.where(mask, ids, tokenizer.pad_id).astype(np.int32),
            "text_mask": mask,
            "text_answer": mask & is_answer,
        }
        kept = {k: x for k, x in columns.items() if k not in ("instruction", "answer")}
        return kept | found

    return Op(apply, tokenizer=tokenizer)
