"""The one look at every example: is it whole, does it pass the rules, what are its fingerprints?

Examples are looked at in blocks. What was found out about a block is a file in the work folder, so
that a killed run does not look again, and later stages read from it what they need.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from data import files
from data.prepare import fingerprints, store
from data.prepare.job import Job
from data.prepare.rules import Example
from data.sources import BadExample, Source, read_each
from data.sources.pictures import decode

BLOCK = 4096  # examples
CHUNK = 32  # examples that are in memory at once, with their pictures, in each thread
SIZES = ("height", "width", "characters", "words")  # the columns of `sizes`

Columns = dict[str, np.ndarray]


class Look(NamedTuple):
    """What one example is like. dropped: why, or "". Fingerprints are None where it is dropped."""

    id: int
    dropped: str
    sizes: tuple[int, ...] | None = None  # None where it could not be read
    prints: dict[str, np.ndarray] | None = None


def blocks(num_examples: int) -> range:
    """The numbers of the blocks."""
    return range(-(-num_examples // BLOCK))


def block_ids(block: int, num_examples: int) -> Int64[np.ndarray, " n"]:
    return np.arange(block * BLOCK, min((block + 1) * BLOCK, num_examples))


def scan_path(output: str, block: int) -> str:
    return files.join(files.join(output, store.WORK), f"scan-{block:06d}")


def scan(job: Job, block: int, output: str) -> None:
    """Looks at a block and writes what it found, unless that is there.

    id [k], of those that passed, and with it the fingerprints that the job needs: bytes, pixels
    (uint64 [k, 2]), phash (uint64 [k]), cells (uint8 [k, 48]), bands (uint64 [k, t]), caption
    (uint64 [k, 1]). read_id [m], of those that can be read, and sizes, int32 [m, 4]. dropped_id [d]
    and reason [d], of all others. k + d is the length of the block.
    """
    path = scan_path(output, block)
    if files.exists(path):
        return
    columns = gather(look(job, block_ids(block, len(job.source))))
    store.write(path, packed(columns), output)


def read_scan(output: str, block: int, keys: Sequence[str]) -> Columns:
    """Some columns of what `scan` wrote."""
    head, _, body = files.read(scan_path(output, block)).partition(b"\n")
    found = json.loads(head)
    return {key: _column(body, *found[key]) for key in keys}


def packed(columns: Columns) -> bytes:
    """A line of JSON that says what is where, then the arrays.

    Not .npz: to read that, numpy parses Python, which Python 3.11 cannot always do in several
    threads (cpython issue 106905).
    """
    places, bodies, start = {}, [], 0
    for key, column in columns.items():
        places[key] = (column.dtype.str, column.shape, start)
        bodies.append(column.tobytes())
        start += column.nbytes
    return b"\n".join([json.dumps(places).encode(), b"".join(bodies)])


def _column(body: bytes, dtype: str, shape: list[int], start: int) -> np.ndarray:
    return np.frombuffer(body, dtype, math.prod(shape), start).reshape(shape)


def look(job: Job, ids: Int64[np.ndarray, " n"]) -> list[Look]:
    """Looks at examples, a few at a time; at all fields, since all will be written."""
    found = []
    for start in range(0, len(ids), CHUNK):
        chunk = ids[start : start + CHUNK]
        for example, record in zip(chunk.tolist(), read_each(job.source, chunk), strict=True):
            if isinstance(record, BadExample):
                found.append(Look(example, record.reason))
            else:
                found.append(_look(job, example, record))
    return found


def gather(looks: Sequence[Look]) -> Columns:
    """As columns; see `scan`."""
    kept = [one for one in looks if not one.dropped]
    read = [one for one in looks if one.sizes is not None]
    gone = [one for one in looks if one.dropped]
    prints = kept[0].prints if kept else {}
    return {
        "id": np.array([one.id for one in kept], np.int64),
        "read_id": np.array([one.id for one in read], np.int64),
        "sizes": np.array([one.sizes for one in read], np.int32).reshape(-1, len(SIZES)),
        "dropped_id": np.array([one.id for one in gone], np.int64),
        "reason": np.array([one.dropped for one in gone], np.str_),
    } | {key: np.stack([one.prints[key] for one in kept]) for key in prints}


def references(
    source: Source, image_key: str, ids: Int64[np.ndarray, " n"]
) -> tuple[Columns, Counter[str]]:
    """phash and cells of the pictures that can be read, and how many cannot, by reason."""
    hashes, cells, broken = [], [], Counter()
    for start in range(0, len(ids), CHUNK):
        for record in read_each(source, ids[start : start + CHUNK], [image_key]):
            try:
                if isinstance(record, BadExample):
                    raise record
                pixels = decode(record[image_key])
            except BadExample as error:
                broken[error.reason] += 1
                continue
            hashes.append(fingerprints.phash(pixels))
            cells.append(fingerprints.color_cells(pixels))
    cells = np.array(cells, np.uint8).reshape(-1, 3 * fingerprints.CELLS**2)
    return {"phash": np.array(hashes, np.uint64), "cells": cells}, broken


def captions(job: Job, record: dict) -> tuple[str, ...]:
    """The captions of a record: one, some, or none without a caption_key."""
    found = record[job.caption_key] if job.caption_key else ()
    return (found,) if isinstance(found, str) else tuple(found)


def _look(job: Job, index: int, record: dict) -> Look:
    encoded, texts = record[job.image_key], captions(job, record)
    try:
        pixels = decode(encoded)
    except BadExample as error:
        return Look(index, error.reason)
    height, width, _ = pixels.shape
    caption = "\n".join(texts)
    sizes = (height, width, len(caption), len(caption.split()))
    example = Example(index, height, width, texts)
    for name, rule in job.rules.items():
        if not rule.keeps(example):
            return Look(index, f"rule {name}", sizes)
    return Look(index, "", sizes, _prints(job, encoded, pixels, caption))


def _prints(job: Job, encoded: bytes, pixels: np.ndarray, caption: str) -> Columns:
    kinds, prints = job.duplicates, {}
    if kinds.bytes:
        prints["bytes"] = fingerprints.digest(encoded)
    if kinds.pixels:
        prints["pixels"] = fingerprints.pixel_digest(pixels)
    if kinds.pictures or job.references:
        prints["phash"] = np.uint64(fingerprints.phash(pixels))
        prints["cells"] = fingerprints.color_cells(pixels)
    if kinds.captions:
        items = fingerprints.ngrams(caption, kinds.ngram)
        rows = fingerprints.band_rows(kinds.threshold)
        prints["bands"] = fingerprints.band_keys(fingerprints.minhash(items), rows)
        prints["caption"] = fingerprints.digest(items.tobytes())[:1]
    return prints
