"""Examples that are broken: counted by reason, and a limit to how many."""

import collections
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mm.config import BadInput

_SHOWN = 5  # examples of a reason that are named
_FEWEST = 1000  # the share is of at least so many, or the first bad one would be too much


class Fault(NamedTuple):
    """An example that was drawn and could not be used."""

    example: int
    reason: str
    message: str


class FaultCount:
    """How many of the examples drawn by this process were broken, by reason.

    max_share: more of them stop the run; 0 is none at all, else one may be. size: of how many at
    least the share is, all that there are if that is known. before: the counts of a run that is
    continued. processes: how many draw as many examples. One alone stops the run only when it has
    more than the share of all that were drawn; `check` is for who knows the sum.
    """

    def __init__(
        self,
        where: str,
        max_share: float,
        before: Mapping[str, int] = {},
        processes: int = 1,
        size: int = _FEWEST,
    ):
        self._size = size
        self._where, self._max_share, self._processes = where, max_share, processes
        self._before = collections.Counter(before)
        self._drawn, self._bad = 0, collections.Counter()
        self._named: dict[str, dict[int, str]] = {}

    @property
    def counts(self) -> dict[str, int]:
        """By reason, those from before included."""
        return dict(sorted((self._before + self._bad).items()))

    @property
    def totals(self) -> dict[str, int]:
        """Of this process, since the run began or was continued."""
        return {"drawn": self._drawn, "bad": self._bad.total()}

    def add(self, drawn: int, faults: Iterable[Fault]) -> None:
        """Counts the faults of `drawn` examples. Raises BadInput when they are too many by now."""
        self._drawn += drawn
        for fault in faults:
            self._bad[fault.reason] += 1
            named = self._named.setdefault(fault.reason, {})
            if len(named) < _SHOWN:
                named[fault.example] = fault.message
        self.check(drawn=self._drawn * self._processes, bad=self._bad.total())

    def check(self, drawn: int, bad: int) -> None:
        """Raises BadInput when so many are too many."""
        if bad > max(self._max_share * max(drawn, self._size), self._max_share > 0):
            raise BadInput(
                f"{self._where}: {bad:,} of {drawn:,} examples are broken, more than "
                f"max_bad_share={self._max_share:g}; mend or leave them out (python -m "
                f"data.inspect tells which), or allow a larger share\n{self.table()}"
            )

    def told(self, done: str = "replaced", counts: Mapping[str, int] | None = None) -> str:
        """In one line: "config.input: 3 examples are broken and were replaced (2 ..., 1 ...)".

        counts: those of all processes, else of this one.
        """
        counts = self.counts if counts is None else counts
        parts = [f"{count:,} {reason}" for reason, count in counts.items()]
        total = sum(counts.values())
        kind = "example is broken and was" if total == 1 else "examples are broken and were"
        return f"{self._where}: {total:,} {kind} {done} ({', '.join(parts)})"

    def table(self) -> str:
        """A line a reason: how many, which, and what exactly is wrong with the first."""
        lines = []
        for reason, count in self._bad.most_common():
            named = self._named[reason]
            numbers = ", ".join(map(str, named)) + (", ..." if count > len(named) else "")
            first = next(iter(named.values()))
            lines.append(f"  {count:>7,}  {reason}: example {numbers}; the first: {first}")
        return "\n".join(lines)
