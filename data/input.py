"""The part of a config that names data: a source and what happens to its examples."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from data.chunks import Maker, in_order
from data.faults import FaultCount
from data.preprocess import Preprocess
from data.preprocess.draws import example_keys
from data.preprocess.parse import parse
from data.sources import Source, first_whole, open_source
from data.tokenizers import same_ids
from mm.config import BadInput

_AT_ONCE = 512  # examples whose texts are read


class Input(NamedTuple):
    """An opened source, its parsed ops, and the other keys of the group.

    `rest["phases"]`, if there are any, are parsed as well: ((step, ops), ...).
    """

    source: Source
    preprocess: Preprocess
    rest: dict[str, Any]

    @property
    def last(self) -> Preprocess:
        """The ops of the last phase: those that the trained weights were used to."""
        return self.rest["phases"][-1][1] if self.rest.get("phases") else self.preprocess


def open_input(spec: Mapping[str, Any], where: str) -> Input:
    """Opens `source` and parses `preprocess` of {"source": {...}, "preprocess": "a|b", ...}.

    phases, as in ((5000, "a|c"), (9000, "a|d")), are the ops from a step on, instead of the first:
    larger pictures, longer texts. Each is a compiled program more. Tokenizers are looked for where
    the source's data is. Raises BadInput when one is missing, when the source cannot be read, and
    when an op reads a field that the source does not have.
    """
    for key in ("source", "preprocess"):
        if not spec.get(key):
            raise BadInput(f"{where}: has no {key!r}")
    source = open_source(spec["source"], f"{where}.source")
    data_dir = spec["source"].get("data_dir")
    preprocess = parse(spec["preprocess"], where=f"{where}.preprocess", data_dir=data_dir)
    preprocess.check(source.features)
    rest = {key: value for key, value in spec.items() if key not in ("source", "preprocess")}
    if spec.get("phases"):
        rest["phases"] = _phases(spec["phases"], f"{where}.phases", data_dir)
        for _, ops in rest["phases"]:
            ops.check(source.features)
    return Input(source, preprocess, rest)


def _phases(phases: Any, where: str, data_dir: str | None) -> tuple[tuple[int, Preprocess], ...]:
    found, before = [], 0
    for number, item in enumerate(phases):
        if not (isinstance(item, tuple | list) and [*map(type, item)] == [int, str]):
            raise BadInput(f"{where}: {item!r} is no (step, ops), as in (5000, 'decode|...')")
        step, ops = item
        if step <= before:
            raise BadInput(f"{where}: step {step} after step {before}; expected growing steps")
        found.append((step, parse(ops, where=f"{where}[{number}]", data_dir=data_dir)))
        before = step
    return tuple(found)


def example(source: Source, preprocess: Preprocess) -> dict[str, np.ndarray]:
    """What the ops make of the first example that is whole, with a leading axis of one.

    Raises BadInput if none of some, all over the source, is.
    """

    def made(number: int, record: dict[str, Any]) -> dict[str, np.ndarray]:
        columns = {key: [record[key]] for key in preprocess.reads}
        return preprocess.apply(columns, example_keys(0, np.array([number]), np.zeros(1, np.int64)))

    return first_whole(source, preprocess.reads, made)


def check_texts(source: Source, preprocess: Preprocess, max_bad_share: float) -> None:
    """Runs the ops on texts, labels and numbers over all examples, but none on pictures.

    Raises BadInput where `eval_batches` would, later: when too many are broken.
    """
    ops = preprocess.without_pictures()
    if not ops.reads:
        return
    maker = Maker(source, ops, in_order(len(source), _AT_ONCE), valid=True)
    faults = FaultCount(preprocess.group, max_bad_share, size=len(source))
    for step in range(maker.slots.stop or 0):
        chunk, found = maker(step, np.arange(_AT_ONCE))
        faults.add(int(chunk["valid"].sum()) + len(found), found.values())


def manifest(source: Source, preprocess: Preprocess) -> dict[str, Any]:
    """What has to travel with weights so that others feed them alike: ops, tokenizer, length.

    And the number of examples, on which the order depends.
    """
    tokenizer = preprocess.tokenizer
    return {
        "num_examples": len(source),
        "preprocess": preprocess.text,
        "tokenizer": None if tokenizer is None else tokenizer.manifest(),
        "tokenizer_json": None if tokenizer is None else tokenizer.json,
    }


def check_source(source: Source, where: str, saved: Mapping) -> None:
    """Raises BadInput if a run that is continued would not find the examples it began with."""
    before = saved.get("num_examples", len(source))
    if before != len(source):
        raise BadInput(
            f"{where}: has {len(source):,} examples, had {before:,} when this run began; restore "
            "it, or start in a new --workdir"
        )


def check_tokenizer(preprocess: Preprocess, model: Mapping, saved: Mapping | None = None) -> None:
    """Raises BadInput if the model has too few embeddings, or was trained with other token ids.

    `model` is config.model, `saved` the manifest of the checkpoint that the parameters come from.
    """
    tokenizer = preprocess.tokenizer
    part = next((name for name in ("text", "decoder") if model.get(name)), None)
    if tokenizer is None or part is None:
        return
    vocab_size = model[part]["vocab_size"]
    if tokenizer.vocab_size > vocab_size:
        raise BadInput(
            f"{preprocess.where}: the tokenizer has {tokenizer.vocab_size} tokens, but "
            f"config.model.{part}.vocab_size={vocab_size}; set it to at least that many"
        )
    trained_with = (saved or {}).get("tokenizer") or {}
    if not same_ids(trained_with, tokenizer.manifest()):
        raise BadInput(
            f"{preprocess.where}: the checkpoint was trained with another tokenizer (sha256 "
            f"{trained_with['sha256'][:12]}); give the path of its tokenizer.json, which is in the "
            "run's workdir, or beside the weights"
        )
