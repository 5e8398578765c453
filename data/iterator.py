"""Batches made by a thread while the loop computes, and what was wrong with their examples."""

import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from data.faults import Fault, FaultCount
from data.files import longest_read
from data.profile import TRANSFER, Profile, stage

_BATCHES_ON_DEVICE = 2  # made ahead: one waits while the next is on its way
_LONG_SECONDS = 30.0  # without a batch; it is said then, and after twice as long, and so on
_POLL_SECONDS = 0.2  # how soon a thread that waits notices that nobody wants it any more

Batch = dict[str, jax.Array]
log = logging.getLogger(__name__)


class HostBatch(NamedTuple):
    """The rows of one host as arrays, and those whose example was broken and replaced."""

    rows: dict[str, np.ndarray]
    faults: dict[int, Fault]


class BatchIterator:
    """Batches made by a thread, a few ahead; `close`, `with` or the end of the program ends it.

    faults: what was broken in the batches that were taken; only rows of `own` count, so that the
    counts of all processes add up. profile: where the time goes. tell: log them when it is closed.
    """

    def __init__(
        self,
        local: Iterator[HostBatch],
        place: Callable[[dict[str, np.ndarray]], Batch],
        own: set[int],
        faults: FaultCount,
        profile: Profile,
        tell: bool = False,
    ):
        self._tell = tell
        self.faults, self.profile, self._own = faults, profile, own
        self._ready: queue.Queue = queue.Queue(_BATCHES_ON_DEVICE - 1)  # one more is in its hands
        stop = threading.Event()

        def placed(rows: dict[str, np.ndarray]) -> Batch:
            with profile.counting(), stage(TRANSFER):
                return place(rows)

        # It must not hold `self`, or nobody would ever see that the iterator was dropped.
        thread = threading.Thread(
            target=_produce, args=(local, placed, self._ready, stop), name="batches", daemon=True
        )
        self._end = weakref.finalize(self, _finish, stop, thread)
        thread.start()

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Batch:
        begin, told = time.monotonic(), 1
        while self._end.alive:
            try:
                item = self._ready.get(timeout=_POLL_SECONDS)
            except queue.Empty:  # look whether a signal's handler has closed it meanwhile
                if (waited := time.monotonic() - begin) > told * _LONG_SECONDS:
                    told *= 2
                    _tell(waited)
                continue
            if isinstance(item, tuple):
                batch, faults = item
                self.faults.add(
                    len(self._own), [fault for row, fault in faults.items() if row in self._own]
                )
                return batch
            self.close()
            raise item
        raise StopIteration

    def close(self) -> None:
        """Ends the thread; says what was left out of an evaluation."""
        if self._end() and self._tell and self.faults.counts:
            log.warning("%s", self.faults.told("left out"))

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _tell(waited: float) -> None:
    """A loop that stands still, for a read that hangs maybe, must not be silent."""
    read = longest_read()
    reason = f"; the read of {read[1]} has taken {read[0]:.0f} s so far" if read else ""
    log.warning("no batch for %.0f s%s", waited, reason)


def _produce(
    local: Iterator[HostBatch],
    place: Callable[[dict[str, np.ndarray]], Batch],
    ready: queue.Queue,
    stop: threading.Event,
) -> None:
    """Fills `ready` with batches; its last item is the exception that ended it."""
    end: BaseException = StopIteration()
    try:
        for rows, faults in local:
            if stop.is_set() or not _offer((place(rows), faults), ready, stop):
                return
    except BaseException as error:  # the loop, not this thread, is who can do something about it
        end = error
    _offer(end, ready, stop)


def _offer(item: tuple | BaseException, ready: queue.Queue, stop: threading.Event) -> bool:
    """Puts it in the queue as soon as there is room; False if it is no longer wanted."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=_POLL_SECONDS)
            return True
        except queue.Full:
            continue
    return False


def _finish(stop: threading.Event, thread: threading.Thread) -> bool:
    stop.set()
    thread.join()
    return True
