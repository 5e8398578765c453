"""The progress line of a run: a bar that redraws on a terminal, plain lines anywhere else."""

import collections
import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

_REDRAW_SECONDS = 0.1  # terminal
_LINE_SECONDS = 10.0  # file
_BAR_WIDTH = 24


class Progress:
    """Counts steps, measures rates and shows them.

    total_steps: where the run ends. start_step: where this start begins.
    window_steps: rates are means over this many latest steps. The first step of a start, which
      compiles, and what runs inside `pause()` (evaluations) count in no rate.
    stream, clock, width: for tests; seconds from any origin, columns.
    """

    def __init__(
        self,
        total_steps: int,
        global_batch_size: int,
        *,
        start_step: int = 0,
        window_steps: int = 50,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        width: Callable[[], int] = lambda: shutil.get_terminal_size().columns,
    ):
        self._total_steps = total_steps
        self._global_batch_size = global_batch_size
        self._step = start_step
        self._loss: float | None = None
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._clock = clock
        self._width = width
        self._paused = 0.0  # seconds so far that count in no rate, finished pauses only
        self._paused_since: float | None = None
        self._waited = 0.0  # seconds so far that the loop stood waiting for data
        self._marks = collections.deque(maxlen=window_steps + 1)  # (step, working time, waited)
        self._shown_at: float | None = None
        self._line_is_open = False

    @contextlib.contextmanager
    def data_wait(self) -> Iterator[None]:
        """Time inside counts as waiting for data: `with progress.data_wait(): next(batches)`."""
        begin = self._clock()
        yield
        self._waited += self._clock() - begin

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time inside counts in no rate. Wait for the step's numbers before, or it looks faster."""
        self._paused_since = self._clock()
        yield
        self._paused += self._clock() - self._paused_since
        self._paused_since = None

    def step(self, step: int, loss: float | None = None) -> None:
        """Step number `step` is done; shows the line if it is time to. `loss` may be an older one.

        Call it once a step, the number growing.
        """
        self._step = step
        self._loss = self._loss if loss is None else float(loss)
        now = self._clock()
        working = (now if self._paused_since is None else self._paused_since) - self._paused
        self._marks.append((step, working, self._waited))
        every = _REDRAW_SECONDS if self._terminal else _LINE_SECONDS
        if self._shown_at is None or now - self._shown_at >= every or step >= self._total_steps:
            self._shown_at = now
            self._show()

    def rates(self) -> dict[str, float]:
        """`examples_per_second` and `data_wait_fraction` over the window; {} before two steps."""
        if len(self._marks) < 2:
            return {}
        (first, begin, waited), (last, end, waited_by_end) = self._marks[0], self._marks[-1]
        seconds = max(end - begin, 1e-9)
        return {
            "examples_per_second": (last - first) * self._global_batch_size / seconds,
            "data_wait_fraction": (waited_by_end - waited) / seconds,
        }

    def message(self, text: str) -> None:
        """Prints `text` as lines of their own, above the bar."""
        if self._line_is_open:
            self._stream.write("\r\x1b[K")
        self._stream.write(f"{text}\n")
        self._line_is_open = False
        if self._terminal and self._shown_at is not None:
            self._show()
        self._stream.flush()

    def close(self) -> None:
        """Ends the open line."""
        if self._line_is_open:
            self._stream.write("\n")
            self._stream.flush()
            self._line_is_open = False

    def _show(self) -> None:
        if not self._terminal:
            self._stream.write(f"{self._text()}\n")
        else:
            room = max(self._width() - 1, 1)  # a full last column would wrap
            text, done = self._text(), self._step / max(self._total_steps, 1)
            if len(text) + _BAR_WIDTH + 3 <= room:
                filled = round(_BAR_WIDTH * min(done, 1.0))
                text = f"[{'#' * filled}{'-' * (_BAR_WIDTH - filled)}] {text}"
            self._stream.write(f"\r{text[:room]}\x1b[K")
            self._line_is_open = True
        self._stream.flush()

    def _text(self) -> str:
        parts = [f"step {self._step}/{self._total_steps}"]
        if self._loss is not None:
            parts.append(f"loss {self._loss:.4f}")
        rates = self.rates()
        if rates:
            rate = rates["examples_per_second"]
            left = max(self._total_steps - self._step, 0) * self._global_batch_size / rate
            shown = f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"
            parts.append(f"{shown} examples/s")
            parts.append(f"data wait {rates['data_wait_fraction']:.0%}")
            parts.append(f"ETA {duration(left)}")
        return "  ".join(parts)


def duration(seconds: float) -> str:
    """ "4:05", "2:03:09" or "3d 04:00:00"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}:{second:02}"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
