"""Where the wall time of a run goes, over all its starts: `goodput.json`.

Of each start the seconds of every kind: "start" (from the process to the loop: imports, restoring),
"compile" (until the first step is done), "data" (the loop waits for a batch), "train", "evaluate"
and "save". Lines of metrics are cut off when a killed run continues; this file keeps what was lost.
"""

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from mm.runtime.workdir import write_json

KINDS = ("train", "data", "compile", "evaluate", "save", "start", "repeated", "between")
_EVERY_SECONDS = 30.0  # between two writes; a kill loses no more


class Goodput:
    """Counts the seconds of this start, which makes its first step after `start_step`.

    path: goodput.json, to which this start is added once it has made a step; None: count nothing
    (all but the first process). age, clock, now: for tests; seconds since the process began, from
    any origin, since 1970.
    """

    def __init__(
        self,
        path: os.PathLike | str | None,
        start_step: int,
        *,
        age: Callable[[], float] | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ):
        before = (age or process_age)()
        self._path, self._clock = path, clock
        self._earlier = [] if path is None else read(path)
        self._kind = self._base = "compile"
        self._seconds, self._since = {"start": before}, clock()
        self._written = self._since
        self._start = {"began": now() - before, "first_step": start_step, "last_step": start_step}
        self._ended: str | None = None
        self._warned = False

    @contextlib.contextmanager
    def spend(self, kind: str) -> Iterator[None]:
        """Time inside is of that kind: "data", "evaluate" or "save"."""
        self._change(kind)
        try:
            yield
        finally:
            self._change(self._base)

    def step(self, step: int) -> None:
        """That step is done; what follows the first one is training."""
        self._start["last_step"] = step
        if self._base == "compile":
            inside = self._kind != self._base
            self._base = "train"
            self._change(self._kind if inside else "train")
        if self._clock() - self._written >= _EVERY_SECONDS:
            self.write()

    def end(self, how: str) -> None:
        """How this start ends: "finished" or "stopped"; what follows counts for nothing.

        Without, it was killed or failed.
        """
        self._ended = how
        self.write()
        self._path = None

    def write(self) -> None:
        """Brings the file up to date."""
        self._change(self._kind)
        self._written = self._clock()
        if self._path is not None and self._start["last_step"] > self._start["first_step"]:
            seconds = {kind: round(value, 3) for kind, value in self._seconds.items()}
            own = self._start | {"seconds": seconds, "ended": self._ended}
            try:
                write_json(self._path, [*self._earlier, own])
            except Exception as error:  # of a store or a disk: no reason to end a run
                if not self._warned:
                    print(f"warning: {self._path} is not written: {error}", flush=True)
                self._warned = True

    def _change(self, kind: str) -> None:
        now = self._clock()
        self._seconds[self._kind] = self._seconds.get(self._kind, 0.0) + now - self._since
        self._kind, self._since = kind, now


def read(path: os.PathLike | str) -> list[dict[str, Any]]:
    """The starts of a run, oldest first; [] where there is no such file."""
    path = epath.Path(path)
    if not path.exists():
        return []
    try:
        return json.loads(path.read_text())
    except ValueError:
        print(f"warning: {path} is damaged; times of earlier starts are lost", flush=True)
        return []


def summary(starts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of each kind that there is, over all starts; their sum is the wall time.

    Also "repeated", training of steps that a later start had to make again, which is taken off
    "train", and "between", from the end of a start that did not finish to the next.
    """
    found = dict.fromkeys(KINDS, 0.0)
    for start, later in itertools.zip_longest(starts, starts[1:]):
        for kind, value in start["seconds"].items():
            found[kind] += value
        if later is None:
            continue
        steps = start["last_step"] - start["first_step"]
        again = max(0, min(start["last_step"] - later["first_step"], steps))
        lost = start["seconds"].get("train", 0.0) * again / max(steps, 1)
        found["train"], found["repeated"] = found["train"] - lost, found["repeated"] + lost
        if start["ended"] != "finished":
            ended = start["began"] + sum(start["seconds"].values())
            found["between"] += max(0.0, later["began"] - ended)
    return {kind: value for kind, value in found.items() if value}


def process_age() -> float:
    """Seconds since this process began; 0 where the system does not say."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        up = float(Path("/proc/uptime").read_text().split()[0])
        return max(0.0, up - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0
