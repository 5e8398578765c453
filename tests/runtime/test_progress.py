import io

import pytest

from mm.runtime.progress import Progress, duration


class _Clock:
    now = 0.0

    def __call__(self):
        return self.now


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    return _Clock()


def _steps(progress, clock, steps, seconds=1.0, waiting=0.0):
    for step in steps:
        with progress.data_wait():
            clock.now += waiting
        clock.now += seconds - waiting
        progress.step(step, loss=1.0)


def test_rates_leave_out_the_first_step_which_compiles(clock):
    progress = Progress(100, 32, stream=io.StringIO(), clock=clock)
    _steps(progress, clock, [1], seconds=60.0)
    assert progress.rates() == {}
    _steps(progress, clock, [2, 3], seconds=0.5, waiting=0.1)
    assert progress.rates() == pytest.approx(
        {"examples_per_second": 64.0, "data_wait_fraction": 0.2}
    )


def test_rates_are_over_the_window(clock):
    progress = Progress(100, 10, window_steps=3, stream=io.StringIO(), clock=clock)
    _steps(progress, clock, range(1, 11), seconds=5.0)
    _steps(progress, clock, range(11, 15), seconds=1.0)
    assert progress.rates()["examples_per_second"] == pytest.approx(10.0)


def test_a_pause_counts_in_no_rate(clock):
    progress = Progress(100, 10, stream=io.StringIO(), clock=clock)
    _steps(progress, clock, [1, 2])
    with progress.pause():
        clock.now += 100.0
    _steps(progress, clock, [3])
    assert progress.rates()["examples_per_second"] == pytest.approx(10.0)


def test_a_step_counted_inside_a_pause_is_as_long_as_its_work(clock):
    progress = Progress(100, 10, stream=io.StringIO(), clock=clock)
    _steps(progress, clock, [1])
    clock.now += 1.0
    with progress.pause():
        clock.now += 100.0
        progress.step(2)
        assert progress.rates()["examples_per_second"] == pytest.approx(10.0)
    _steps(progress, clock, [3])
    assert progress.rates()["examples_per_second"] == pytest.approx(10.0)


def test_a_file_gets_plain_lines_now_and_then_and_the_last_step(clock):
    stream = io.StringIO()
    progress = Progress(25, 32, stream=stream, clock=clock)
    _steps(progress, clock, range(1, 26), waiting=0.25)
    progress.close()
    assert stream.getvalue().splitlines() == [
        "step 1/25  loss 1.0000",
        "step 11/25  loss 1.0000  32.0 examples/s  data wait 25%  ETA 0:14",
        "step 21/25  loss 1.0000  32.0 examples/s  data wait 25%  ETA 0:04",
        "step 25/25  loss 1.0000  32.0 examples/s  data wait 25%  ETA 0:00",
    ]


def test_a_terminal_redraws_one_line_with_a_bar(clock):
    stream = _Terminal()
    progress = Progress(4, 3200, stream=stream, clock=clock, width=lambda: 120)
    _steps(progress, clock, [1, 2])
    assert "\n" not in stream.getvalue()
    last = stream.getvalue().split("\r")[-1]
    assert last.startswith("[############------------] step 2/4  loss 1.0000  3,200 examples/s")
    progress.close()
    assert stream.getvalue().endswith("\n")


@pytest.mark.parametrize("columns", [1, 20, 60, 100])
def test_the_line_never_reaches_the_last_column(clock, columns):
    stream = _Terminal()
    progress = Progress(1000, 32, stream=stream, clock=clock, width=lambda: columns)
    _steps(progress, clock, range(1, 5))
    drawn = [line.removesuffix("\x1b[K") for line in stream.getvalue().split("\r")[1:]]
    assert len(drawn) == 4 and max(map(len, drawn)) <= max(columns - 1, 1)


def test_a_terminal_is_redrawn_at_most_ten_times_a_second(clock):
    stream = _Terminal()
    progress = Progress(1000, 32, stream=stream, clock=clock, width=lambda: 80)
    _steps(progress, clock, range(1, 101), seconds=0.01)
    assert 8 <= stream.getvalue().count("\r") <= 11


def test_a_message_stands_above_the_bar(clock):
    stream = _Terminal()
    progress = Progress(4, 32, stream=stream, clock=clock, width=lambda: 40)
    _steps(progress, clock, [1])
    progress.message("seen: 31%")
    assert "\r\x1b[Kseen: 31%\n\rstep 1/4" in stream.getvalue()


def test_a_restart_counts_from_its_first_step(clock):
    stream = io.StringIO()
    progress = Progress(100, 10, start_step=50, stream=stream, clock=clock)
    _steps(progress, clock, [51, 52])
    assert progress.rates()["examples_per_second"] == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (7389, "2:03:09"), (273600, "3d 04:00:00")],
)
def test_durations(seconds, shown):
    assert duration(seconds) == shown
