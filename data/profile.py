"""Where the time of preparing data goes: seconds by stage, summed over the threads."""

import collections
import contextlib
import threading
import time
from collections.abc import Iterator, Mapping

TRANSFER = "transfer"  # to the devices, by the one thread that joins batches

_STAGES = ("read", "decode", "augment", "text", "tokenize", "service", TRANSFER)

_thread = threading.local()


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Time inside counts for `name`, but what an inner stage takes counts for that alone.

    Costs nothing to speak of, and nothing is counted outside of `Profile.counting`.
    """
    found = getattr(_thread, "found", None)
    if found is None:
        yield
        return
    outer, _thread.inner = _thread.inner, 0.0
    begin = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - begin
        found[name] += seconds - _thread.inner
        _thread.inner = outer + seconds


class Profile:
    """Sums of all threads. num_workers: how many prepare examples at once. shown: for who logs."""

    def __init__(self, num_workers: int, shown: bool = False):
        self._num_workers, self.shown = num_workers, shown
        self._lock = threading.Lock()
        self._seconds: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """The stages that this thread goes through inside count here."""
        _thread.found, _thread.inner = collections.Counter(), 0.0
        try:
            yield
        finally:
            with self._lock:
                self._seconds.update(_thread.found)
            _thread.found = None

    def seconds(self) -> dict[str, float]:
        """By stage, in the order of the work: those of workers as if one did it all."""
        with self._lock:
            return {name: self._seconds[name] for name in _STAGES if name in self._seconds}

    def slowest(self, seconds: Mapping[str, float]) -> str:
        """What holds up the rest, as words: of `seconds`, differences of `seconds()`."""
        work = {name: value for name, value in seconds.items() if name != TRANSFER}
        total = sum(work.values())
        if seconds.get(TRANSFER, 0.0) > total / self._num_workers:
            return TRANSFER
        if not total:
            return "nothing that is measured"
        name = max(work, key=work.__getitem__)
        return f"{name} ({work[name] / total:.0%} of the time of {self.workers})"

    @property
    def workers(self) -> str:
        """How many there are, in words."""
        return f"{self._num_workers} worker{'s' if self._num_workers > 1 else ''}"
