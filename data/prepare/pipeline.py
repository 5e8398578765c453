"""The stages of preparing, as an Apache Beam pipeline. Only numbers and hashes go between them.

  scan    each example once: is it whole, do the rules pass it, its fingerprints; into a file
  drop    for each kind of duplicate: hashes that may match meet, and who is near one with a
          smaller number goes; each kind sees only what those before it left
  place   each that stays gets its shard and its place in it
  write   each shard is read, written and renamed as a whole
  report  counts, into a file

An element is a block of examples, or some thousand hashes, as arrays: Beam costs about 50 us an
element. What a stage makes does not depend on how its work was divided.
"""

import functools
import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
from jaxtyping import Int64

from data import files
from data.order import example_at
from data.prepare import duplicates, report, shards, store
from data.prepare.duplicates import Compare, Entries
from data.prepare.job import Job, opened
from data.prepare.scan import BLOCK, blocks, captions, read_scan, references, scan

_PARTITION_ENTRIES = 1 << 18  # at most 19 MB; a worker sorts one partition at a time

Kept = tuple[int, Int64[np.ndarray, " k"]]  # a block, and the examples of it that stay
Placed = tuple[int, tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]]  # shard, slots, ids
Starts = dict[int, int]  # how many stay before each block; in all at the key TOTAL
TOTAL = -1


class Run(NamedTuple):
    """What every worker has to know. config: as JSON. output: the folder."""

    config: str
    output: str
    num_examples: int

    @property
    def job(self) -> Job:
        return opened(self.config)


class Step(NamedTuple):
    """A kind of duplicate. columns: of the scan; the first makes keys, all are compared."""

    name: str
    reason: str
    columns: tuple[str, ...]


STEPS = (
    Step("references", "near an evaluation picture", ("phash", "cells")),
    Step("bytes", "same file as another", ("bytes",)),
    Step("pixels", "same pixels as another", ("pixels",)),
    Step("pictures", "picture near another", ("phash", "cells")),
    Step("captions", "caption near another", ("bands", "caption")),
)


def build(pipeline: beam.Pipeline, run: Run) -> None:
    """Adds all stages to a pipeline."""
    kept = (
        _spread(pipeline, "blocks", blocks(run.num_examples))
        | "scan" >> beam.Map(_scan, run)
        | "passed" >> beam.Map(_passed, run)
    )
    reports = [kept | "count scanned" >> beam.Map(_count_scanned, run)]
    for step in STEPS:
        if step.name == "references" and run.job.references:
            found = _spread(pipeline, "evaluation", list(_reference_blocks(run.job)))
            found |= "hash evaluation" >> beam.Map(_hash_references, run)
            reports.append(found | "count evaluation" >> beam.Map(lambda pair: pair[1]))
            more = found | "evaluation: hashes" >> beam.FlatMap(
                lambda pair, run, step: _entries(pair[0], run, step), run, step
            )
            kept, counts = _drop(kept, run, step, more)
            reports.append(counts)
        elif step.name != "references" and getattr(run.job.duplicates, step.name):
            kept, counts = _drop(kept, run, step)
            reports.append(counts)
    reports.append(kept | "count kept" >> beam.Map(_count_kept, run))
    _write(kept, run)
    (
        reports
        | "reports" >> beam.Flatten()
        | "merge" >> beam.CombineGlobally(report.merged)
        | "report" >> beam.Map(_save_report, run)
    )


def _spread(pipeline: beam.Pipeline, name: str, items: Any) -> beam.PCollection:
    """The items, so that workers share them."""
    return pipeline | name >> beam.Create(items) | f"spread {name}" >> beam.Reshuffle()


def _drop(
    kept: beam.PCollection, run: Run, step: Step, more: beam.PCollection | None = None
) -> tuple[beam.PCollection, beam.PCollection]:
    """What is left, and counts of what is not. more: entries besides those of what is kept."""
    name = step.name
    entries = (
        kept
        | f"{name}: fingerprints" >> beam.Map(_fingerprints, run, step)
        | f"{name}: hashes" >> beam.FlatMap(_entries, run, step)
    )
    if more is not None:
        entries = (entries, more) | f"{name}: all hashes" >> beam.Flatten()
    dropped = (
        entries
        | f"{name}: meet" >> beam.GroupByKey()
        | f"{name}: compare" >> beam.FlatMap(_compare, run, step)
    )
    left = (
        {"kept": kept, "dropped": dropped}
        | f"{name}: join" >> beam.CoGroupByKey()
        | f"{name}: drop" >> beam.Map(_left, step)
    )
    return (
        left | f"{name}: left" >> beam.Map(lambda pair: pair[0]),
        left | f"{name}: count" >> beam.Map(lambda pair: pair[1]),
    )


def _write(kept: beam.PCollection, run: Run) -> beam.PCollection:
    starts = beam.pvalue.AsSingleton(
        kept
        | "sizes" >> beam.Map(lambda pair: (pair[0], len(pair[1])))
        | "all sizes" >> beam.combiners.ToDict()
        | "starts" >> beam.Map(_starts)
    )
    placed = kept | "place" >> beam.FlatMap(_place, run, starts)
    if run.job.output.shuffle:
        slots = kept | "shuffled slots" >> beam.FlatMap(_shuffled, run, starts)
        joined = {"kept": kept, "slots": slots} | "shuffle" >> beam.CoGroupByKey()
        placed = joined | "place shuffled" >> beam.FlatMap(_place_shuffled, run, starts)
    return placed | "shards" >> beam.GroupByKey() | "write" >> beam.Map(_write_shard, run, starts)


def _scan(block: int, run: Run) -> int:
    scan(run.job, block, run.output)
    return block


def _passed(block: int, run: Run) -> Kept:
    return block, read_scan(run.output, block, ["id"])["id"]


def _fingerprints(kept: Kept, run: Run, step: Step) -> list[np.ndarray]:
    """The numbers of the examples of a block that are left, and their columns."""
    block, ids = kept
    if not len(ids):
        return [ids]
    columns = read_scan(run.output, block, ["id", *step.columns])
    rows = np.searchsorted(columns["id"], ids)
    return [ids, *(columns[key][rows] for key in step.columns)]


def _entries(found: list[np.ndarray], run: Run, step: Step) -> Iterator[tuple[int, Entries]]:
    ids, *columns = found
    if not len(ids):
        return
    compared = columns[1:] if step.name == "captions" else columns
    values = [column.reshape(len(ids), -1).view(np.uint8) for column in compared]
    keys = columns[0]
    if step.columns[0] == "phash":
        keys = duplicates.picture_keys(keys, _distance(run, step), run.num_examples)
    elif step.name != "captions":
        keys = keys[:, :1]
    partitions = -(-run.num_examples * keys.shape[1] // _PARTITION_ENTRIES)
    yield from duplicates.spread(keys, ids, np.concatenate(values, axis=1), partitions)


def _distance(run: Run, step: Step) -> int:
    job = run.job
    return (job.decontaminate if step.name == "references" else job.duplicates).max_distance


def _compare(met: tuple[int, Iterable[Entries]], run: Run, step: Step) -> Iterator[Kept]:
    """What of a partition is dropped, by block."""
    references = step.name == "references"
    dropped = duplicates.duplicates(met[1], _comparison(run.job, step), references)
    for block in np.unique(dropped // BLOCK).tolist():
        yield block, dropped[dropped // BLOCK == block]


def _comparison(job: Job, step: Step) -> Compare:
    if step.name in ("bytes", "pixels"):
        return duplicates.same
    if step.name == "captions":
        return functools.partial(
            duplicates.near_captions,
            captions=lambda ids: _read_captions(job, ids),
            ngram=job.duplicates.ngram,
            threshold=job.duplicates.threshold,
        )
    settings = job.decontaminate if step.name == "references" else job.duplicates
    return functools.partial(
        duplicates.near_pictures,
        max_distance=settings.max_distance,
        max_color_difference=settings.max_color_difference,
        references=step.name == "references",
    )


def _read_captions(job: Job, ids: Int64[np.ndarray, " n"]) -> list[str]:
    return ["\n".join(captions(job, r)) for r in job.source.read(ids, [job.caption_key])]


def _left(joined: tuple[int, dict], step: Step) -> tuple[Kept, report.Part]:
    block, found = joined
    (ids,) = found["kept"]
    gone = np.unique(np.concatenate([ids[:0], *found["dropped"]]))
    return (block, np.setdiff1d(ids, gone)), report.dropped(gone, [step.reason] * len(gone))


def _reference_blocks(job: Job) -> Iterator[tuple[str, int, int]]:
    """(name of the source, first picture, number of the reference that this is)."""
    before = 0
    for name, (source, _) in job.references.items():
        for start in range(0, len(source), BLOCK):
            yield name, start, before + start
        before += len(source)


def _hash_references(block: tuple[str, int, int], run: Run) -> tuple[list[np.ndarray], report.Part]:
    name, start, before = block
    source, image_key = run.job.references[name]
    ids = np.arange(start, min(start + BLOCK, len(source)))
    columns, broken = references(source, image_key, ids)
    numbers = -1 - before - np.arange(len(columns["phash"]))
    return [numbers, columns["phash"], columns["cells"]], report.evaluated(name, len(ids), broken)


def _count_scanned(kept: Kept, run: Run) -> report.Part:
    found = read_scan(run.output, kept[0], ["dropped_id", "reason", "sizes"])
    gone = report.dropped(found["dropped_id"], found["reason"].tolist())
    return report.merged([gone, report.histograms("read", found["sizes"])])


def _count_kept(kept: Kept, run: Run) -> report.Part:
    found = read_scan(run.output, kept[0], ["read_id", "sizes"])
    return report.histograms("kept", found["sizes"][np.isin(found["read_id"], kept[1])])


def _save_report(part: report.Part, run: Run) -> None:
    path = files.join(files.join(run.output, store.WORK), "report.json")
    store.write(path, json.dumps(part).encode(), run.output)


def _starts(sizes: dict[int, int]) -> Starts:
    order = sorted(sizes)
    ends = np.cumsum([sizes[block] for block in order]).tolist()
    return dict(zip(order, [0, *ends], strict=False)) | {TOTAL: ends[-1]}


def _place(kept: Kept, run: Run, starts: Starts) -> Iterator[Placed]:
    block, ids = kept
    yield from _by_shard(starts[block] + np.arange(len(ids)), ids, run)


def _shuffled(kept: Kept, run: Run, starts: Starts) -> Iterator[Placed]:
    """Which examples come to the slots of a block, by the block that they are in now."""
    block, ids = kept
    if not len(ids):
        return
    slots = starts[block] + np.arange(len(ids))
    ranks, _ = example_at(slots, starts[TOTAL], run.job.output.seed)
    order = sorted(starts.keys() - {TOTAL})
    homes = np.searchsorted([starts[block] for block in order], ranks, side="right") - 1
    for home in np.unique(homes).tolist():
        yield order[home], (slots[homes == home], ranks[homes == home])


def _place_shuffled(joined: tuple[int, dict], run: Run, starts: Starts) -> Iterator[Placed]:
    block, found = joined
    (ids,) = found["kept"]
    for slots, ranks in found["slots"]:
        yield from _by_shard(slots, ids[ranks - starts[block]], run)


def _by_shard(slots: np.ndarray, ids: np.ndarray, run: Run) -> Iterator[Placed]:
    numbers = slots // run.job.output.examples_per_shard
    for shard in np.unique(numbers).tolist():
        yield shard, (slots[numbers == shard], ids[numbers == shard])


def _write_shard(placed: tuple[int, Iterable], run: Run, starts: Starts) -> None:
    shard, parts = placed
    slots, ids = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(slots)
    shards.write(run.job, run.output, shard, starts[TOTAL], ids[order])
