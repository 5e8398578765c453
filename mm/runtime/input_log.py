"""What a run says of its input: broken examples, and where the time goes when the loop waits."""

import collections
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mm.config import BadInput

_WAIT = 0.05  # a larger share of waiting is told of
_QUIET_SECONDS = 60.0  # between two such lines
_SETTLED_STEPS = 20  # before, the share is of a loop that has just begun
_MUCH_CUT = 0.05  # of the texts
_BYTES = 1 << 14  # of the counts of one process, as text


class InputLog:
    """Follows `batches`, a `data.iterator.BatchIterator`, of a loop that begins at `start_step`.

    message: prints a line above the bar. tokenizers: those of the texts, which count what they cut,
    and the steps from which each is used.
    Where `batches.profile.shown` (config.input.profile), the seconds of every stage are metrics and
    lines of their own.
    """

    def __init__(
        self,
        batches: Any,
        start_step: int,
        message: Callable[[str], None],
        tokenizers: Sequence[tuple[int, Any]] = (),
        clock: Callable[[], float] = time.monotonic,
    ):
        self._batches, self._message, self._clock = batches, message, clock
        self._start_step, self._step = start_step, start_step
        self._tokenizers, self._cut_is_told = tokenizers, False
        self._seconds: Mapping[str, float] = {}
        self._quiet_until = 0.0
        self._told: Mapping[str, int] = batches.faults.counts

    def metrics(self, step: int, data_wait_fraction: float | None) -> dict[str, float]:
        """Of the steps since the last call: `input/<stage>_seconds` a batch, where they are shown.

        Says which stage holds the loop up when it waits for more than a twentieth of its time.
        """
        profile, now = self._batches.profile, self._batches.profile.seconds()
        spent = {name: value - self._seconds.get(name, 0.0) for name, value in now.items()}
        steps, self._seconds, self._step = step - self._step, now, step
        found = {}
        if profile.shown and steps > 0:
            found = {f"input/{name}_seconds": value / steps for name, value in spent.items()}
            parts = [f"{name} {1000 * value / steps:.1f}" for name, value in spent.items()]
            wait = "" if data_wait_fraction is None else f"; data wait {data_wait_fraction:.0%}"
            self._message(f"input, ms a batch: {'  '.join(parts)}; {profile.workers}{wait}")
        settled = step - self._start_step >= _SETTLED_STEPS
        if settled and (data_wait_fraction or 0) > _WAIT and self._clock() >= self._quiet_until:
            self._quiet_until = self._clock() + _QUIET_SECONDS
            self._message(
                f"warning: the loop waits for data {data_wait_fraction:.0%} of its time; the "
                f"slowest stage is {profile.slowest(spent)}; see config.input.num_workers, and "
                "--config.input.profile=1 for all stages"
            )
        used = [tokenizer for first, tokenizer in self._tokenizers if first < step]
        if settled and used:
            found |= self._text_cut(used[-1], profile.shown)
        return found

    def _text_cut(self, tokenizer: Any, shown: bool) -> dict[str, float]:
        """How much of the texts so far was left out for being too long; said once if it is much."""
        cut = tokenizer.cut
        if cut.share_of_texts > _MUCH_CUT and not self._cut_is_told:
            self._cut_is_told = True
            self._message(
                f"note: {cut.share_of_texts:.0%} of the texts have more than "
                f"{tokenizer.length} tokens; {cut.share_of_tokens:.0%} of all tokens are cut"
            )
        return {"input/tokens_cut": cut.share_of_tokens} if shown else {}

    def bad_examples(self) -> dict[str, int]:
        """By reason, of all processes, which all have to call this; says so when there are more.

        Raises BadInput, in all of them, when that is more than config.input.max_bad_share.
        """
        faults = self._batches.faults
        counts = gathered(faults.counts)
        faults.check(**gathered(faults.totals))
        if counts != self._told and jax.process_index() == 0:
            self._message(self._batches.faults.told(counts=counts))
        self._told = counts
        return counts


def check_alike(where: str, facts: Any) -> None:
    """Raises BadInput, in all processes, if some see other data: `facts` as JSON differ.

    All processes have to call it.
    """
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).digest()
    rows = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    other = np.flatnonzero((rows != rows[0]).any(axis=1)).tolist()
    if other:
        raise BadInput(
            f"{where}: processes {other} see other data than process 0: a file is missing, cut off "
            f"or another there, or the tokenizer; process {jax.process_index()} has {facts}"
        )


def gathered(counts: Mapping[str, int]) -> dict[str, int]:
    """The sum over all processes; each may have counts of its own names."""
    if jax.process_count() == 1:
        return dict(counts)
    text = np.frombuffer(json.dumps(counts).encode().ljust(_BYTES), np.uint8)
    rows = multihost_utils.process_allgather(text)
    total: collections.Counter[str] = collections.Counter()
    for row in np.asarray(rows):
        total.update(json.loads(row.tobytes()))
    return dict(sorted(total.items()))
