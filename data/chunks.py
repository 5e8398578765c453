"""A part of a batch, from the numbers of its rows: reads examples, runs the ops, replaces bad ones.

What is in a row depends on its number alone, also where an example is broken: then the slot draws
others, always the same ones, until one is whole.
"""

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from data.faults import Fault
from data.heap import Recycler
from data.order import hash_seed, mix
from data.preprocess import Preprocess
from data.preprocess.draws import example_keys
from data.profile import stage
from data.sources import BadExample, Source
from mm.config import BadInput

_TRIES = 100  # examples drawn for a slot before it is given up
_PARTS = 16  # a chunk with a bad example is done again in so many
_REMEMBERED = 1 << 18  # bad examples that are not even read when they come again

Chunk = dict[str, np.ndarray]


class Slots(NamedTuple):
    """Which examples are in the rows of a batch.

    at: (batch number, rows) -> ids, epochs, valid. instead: (batch number, row, try) -> the id that
    is drawn when the row's is broken; unless `keep`, the row is not valid then. stop: the number
    after the last batch.
    """

    at: Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
    instead: Callable[[int, int, int], int]
    seed: int
    stop: int | None = None
    keep: bool = True


def in_order(size: int, batch_size: int) -> Slots:
    """Once over all examples; the last batch is filled up with the last one, not valid."""

    def at(step: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        slots = step * batch_size + rows
        ids = np.minimum(slots, size - 1)
        return ids, np.zeros_like(ids), slots < size

    def instead(step: int, row: int, number: int) -> int:
        """Any: the row does not count, and neighbours may be broken as well."""
        slot = np.array([step * batch_size + row])
        return int(mix(mix(hash_seed(0), slot), np.array([number]))[0] % np.uint64(size))

    return Slots(at, instead, 0, stop=-(-size // batch_size), keep=False)


class Maker:
    """Makes chunks, in several threads at once. valid: whether they have that column."""

    def __init__(self, source: Source, preprocess: Preprocess, slots: Slots, valid: bool):
        self.source, self.preprocess, self.slots = source, preprocess, slots
        self._valid = valid
        self._known: dict[int, Fault] = {}  # what is broken whatever is drawn for it

    def __call__(
        self, step: int, rows: Int64[np.ndarray, " rows"], out: Chunk | None = None
    ) -> tuple[Chunk, dict[int, Fault]]:
        """The rows of a batch, and what was wrong with those that another example took.

        out: arrays that the rows are written to and that are returned; of None they are new ones.
        """
        ids, epochs, valid = self.slots.at(step, rows)
        ids, valid, faults = ids.copy(), valid.copy(), {}
        for place in np.flatnonzero([i in self._known for i in ids.tolist()]):
            row = int(rows[place])
            if valid[place]:  # what fills up a batch does not count
                faults[row] = self._known[int(ids[place])]
            ids[place] = self._untried(step, row)
            valid[place] &= self.slots.keep
        try:
            return self._make(ids, epochs, valid, out), faults
        except BadExample as error:
            if len(rows) == 1:
                return self._one(step, rows, error, out)
        # By pieces, so that what is whole is not made again and again.
        ends = np.linspace(0, len(rows), min(len(rows), _PARTS) + 1).astype(int).tolist()
        pieces = [
            self(step, rows[begin:end], out and _rows(out, begin, end))
            for begin, end in itertools.pairwise(ends)
        ]
        chunks = [chunk for chunk, _ in pieces]
        if out is None:
            out = {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}
        return out, {row: fault for _, found in pieces for row, fault in found.items()}

    def _one(
        self,
        step: int,
        rows: Int64[np.ndarray, "1"],
        error: BadExample,
        out: Chunk | None,
    ) -> tuple[Chunk, dict[int, Fault]]:
        """A row whose example, or the one that took its place, was just found broken."""
        row = int(rows[0])
        ids, epochs, valid = self.slots.at(step, rows)
        fault = self._known.get(int(ids[0])) or self._remember(int(ids[0]), error)
        faults = {row: fault} if valid[0] else {}
        for number in range(_TRIES):
            ids = np.array([self.slots.instead(step, row, number)], np.int64)
            if int(ids[0]) in self._known:
                continue
            try:
                return self._make(ids, epochs, valid & self.slots.keep, out), faults
            except BadExample as broken:
                self._remember(int(ids[0]), broken)
        raise BadInput(
            f"example {fault.example} and {_TRIES} that were drawn instead are broken, the first: "
            f"{fault.message}"
        )

    def _remember(self, example: int, error: BadExample) -> Fault:
        fault = Fault(example, error.reason, str(error))
        if error.always and len(self._known) < _REMEMBERED:
            self._known[example] = fault
        return fault

    def _untried(self, step: int, row: int) -> int:
        """The first that is drawn instead and is not known to be broken; the last if all are."""
        drawn = (self.slots.instead(step, row, number) for number in range(_TRIES))
        return next((i for i in drawn if i not in self._known), self.slots.instead(step, row, 0))

    def _make(
        self,
        ids: Int64[np.ndarray, " rows"],
        epochs: Int64[np.ndarray, " rows"],
        valid: np.ndarray,
        out: Chunk | None,
    ) -> Chunk:
        with stage("read"):
            try:
                records = self.source.read(ids, self.preprocess.reads)
            except BadExample as error:
                error.always = True
                raise
        columns = {key: [record[key] for record in records] for key in self.preprocess.reads}
        keys = example_keys(self.slots.seed, ids, epochs)
        batch = self.preprocess.apply(columns, keys, out or {})
        batch.setdefault("group", (ids & (2**31 - 1)).astype(np.int32))
        batch["id"] = ids.astype(np.uint32)
        batch |= {"valid": valid} if self._valid else {}
        return batch if out is None else fill(out, batch)


def fill(out: Chunk, chunk: Chunk) -> Chunk:
    """Copies into `out` what is not there; returns it."""
    for key, value in chunk.items():
        if not np.may_share_memory(value, out[key]):
            out[key][...] = value
    return out


def _rows(chunk: Chunk, begin: int, end: int) -> Chunk:
    return {key: value[begin:end] for key, value in chunk.items()}


class Room:
    """Where the chunks of a batch, of so many rows each, lie side by side.

    example: one row, for names and types. Of a batch the memory is taken when its first chunk is
    made, and given away as a whole.
    """

    def __init__(self, rows: Sequence[int], example: Chunk):
        self._example, self._ends = example, np.cumsum([0, *rows]).tolist()
        self._recycler, self._lock = Recycler(), threading.Lock()
        self._batches: dict[int, Chunk] = {}

    def part(self, step: int, part: int) -> Chunk:
        """The place of one chunk."""
        return _rows(self._batch(step), self._ends[part], self._ends[part + 1])

    def take(self, step: int) -> Chunk:
        """The arrays of a whole batch; nothing is kept of it here."""
        return self._batches.pop(step)

    def _batch(self, step: int) -> Chunk:
        with self._lock:
            if step not in self._batches:
                self._batches[step] = {
                    key: self._recycler.empty((self._ends[-1], *value.shape[1:]), value.dtype)
                    for key, value in self._example.items()
                }
            return self._batches[step]


class Span(NamedTuple):
    """Chunks start .. stop - 1, of which chunk n is rows parts[n % len(parts)] of batch
    n // len(parts). example: one row, for names and types. room: where all of them are put."""

    maker: Maker
    parts: list[np.ndarray]
    start: int
    stop: int
    example: Chunk
    room: Room

    def make(self, number: int) -> tuple[Chunk, dict[int, Fault]]:
        """Chunk `number`."""
        step, part = divmod(number, len(self.parts))
        return self.maker(step, self.parts[part], self.place(number))

    def place(self, number: int) -> Chunk:
        """Where chunk `number` is put."""
        return self.room.part(*divmod(number, len(self.parts)))
