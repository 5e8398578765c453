import json

import pytest

from mm.runtime.goodput import Goodput, process_age, read, summary


class Clock:
    """Seconds that pass when told to."""

    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now


def start(path, clock, first_step=0, age=5.0):
    return Goodput(path, first_step, age=lambda: age, clock=clock, now=clock)


def test_each_second_is_of_one_kind(tmp_path):
    clock = Clock()
    goodput = start(tmp_path / "goodput.json", clock)
    with goodput.spend("data"):
        clock.now += 1
    clock.now += 20  # the first step compiles
    goodput.step(1)
    clock.now += 3
    with goodput.spend("evaluate"):
        clock.now += 4
        goodput.step(2)  # logged in the pause
        clock.now += 4
    clock.now += 2
    with goodput.spend("save"):
        clock.now += 0.5
    goodput.end("finished")
    ended = clock.now
    clock.now += 100  # closing files
    goodput.write()
    [found] = read(tmp_path / "goodput.json")
    assert found["seconds"] == {
        "start": 5, "compile": 20, "data": 1, "train": 5, "evaluate": 8, "save": 0.5
    }  # fmt: skip
    assert found["began"] == 995 and (found["first_step"], found["last_step"]) == (0, 2)
    assert sum(summary([found]).values()) == ended - found["began"]


def test_the_first_step_may_be_done_while_it_is_evaluated(tmp_path):
    clock = Clock()
    goodput = start(tmp_path / "goodput.json", clock, age=0.0)
    clock.now += 7
    with goodput.spend("evaluate"):
        goodput.step(1)
        clock.now += 2
    clock.now += 1
    goodput.write()
    [found] = read(tmp_path / "goodput.json")
    assert found["seconds"] == {"start": 0, "compile": 7, "evaluate": 2, "train": 1}


def test_a_start_is_added_to_those_before_and_kept_when_killed(tmp_path):
    clock, path = Clock(), tmp_path / "goodput.json"
    first = start(path, clock)
    clock.now += 10
    first.step(1)
    clock.now += 40
    first.step(5)  # writes, since it is long ago; then killed
    clock.now += 100
    second = start(path, clock, first_step=3)
    clock.now += 10
    second.step(4)
    clock.now += 8
    second.step(8)
    second.end("finished")
    starts = read(path)
    assert [s["ended"] for s in starts] == [None, "finished"]
    found = summary(starts)
    assert found["repeated"] == pytest.approx(40 * 2 / 5)  # steps 4 and 5
    assert found["train"] == pytest.approx(40 + 8 - 16)
    assert found["between"] == pytest.approx(100 - 5)  # until the second process began
    assert sum(found.values()) == pytest.approx(clock.now - starts[0]["began"])


def test_what_cannot_be_written_or_read_ends_no_run(tmp_path, capsys):
    clock, path = Clock(), tmp_path / "none" / "goodput.json"
    goodput = start(path, clock)
    goodput.step(1)
    for _ in range(2):
        goodput.write()
    assert capsys.readouterr().out.count(f"warning: {path} is not written") == 1
    (tmp_path / "goodput.json").write_text('[{"seco')
    assert read(tmp_path / "goodput.json") == []
    assert "is damaged; times of earlier starts are lost" in capsys.readouterr().out


def test_a_start_without_a_step_leaves_no_trace(tmp_path):
    clock, path = Clock(), tmp_path / "goodput.json"
    goodput = start(path, clock)
    goodput.write()
    assert not path.exists() and read(path) == [] and summary([]) == {}


def test_the_time_after_a_finished_start_counts_for_nothing(tmp_path):
    one = {"began": 0, "first_step": 0, "last_step": 8, "seconds": {"train": 8.0}}
    later = {"began": 9000, "first_step": 8, "last_step": 9, "seconds": {"train": 1.0}}
    starts = [one | {"ended": "finished"}, later | {"ended": None}]
    assert summary(json.loads(json.dumps(starts))) == {"train": 9.0}


def test_other_processes_write_nothing(tmp_path):
    clock = Clock()
    goodput = start(None, clock)
    with goodput.spend("data"):
        goodput.step(1)
    goodput.write()
    assert not list(tmp_path.iterdir())


def test_a_process_has_an_age():
    assert 0 <= process_age() < 1e6
