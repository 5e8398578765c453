"""What a run says of its input."""

import json
import types

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from data.profile import TRANSFER, Profile, stage
from data.tokenizers import Cut
from mm.config import BadInput
from mm.runtime.input_log import InputLog, check_alike, gathered


class Batches:
    """What the log follows, with seconds and counts as a test says."""

    def __init__(self, num_workers=2, shown=False):
        self.profile, self.faults = Profile(num_workers, shown), self
        self.counts, self.totals = {}, {"drawn": 0, "bad": 0}
        self.profile.seconds = lambda: dict(self.seconds)
        self.seconds = {}

    def check(self, drawn, bad):
        if bad > drawn:
            raise BadInput(f"{bad} of {drawn} are broken")

    def told(self, counts):
        return f"bad: {counts}"


@pytest.fixture
def batches():
    return Batches()


def follow(batches, clock=lambda: 1000.0, tokenizers=()):
    lines = []
    return InputLog(batches, 0, lines.append, tokenizers, clock), lines


def test_a_loop_that_waits_is_told_the_slowest_stage(batches):
    log, lines = follow(batches)
    batches.seconds = {"read": 10.0, "decode": 30.0, TRANSFER: 1.0}
    assert log.metrics(50, 0.2) == {}
    (line,) = lines
    assert "waits for data 20% of its time" in line
    assert "slowest stage is decode (75% of the time of 2 workers)" in line


def test_the_stage_is_that_of_the_time_since_the_last_line(batches):
    log, lines = follow(batches)
    batches.seconds = {"read": 1.0, "decode": 30.0}
    log.metrics(50, 0.0)
    batches.seconds = {"read": 11.0, "decode": 31.0}
    log.metrics(100, 0.2)
    assert "slowest stage is read (91%" in lines[-1]


def test_the_way_to_the_devices_counts_against_all_workers_together(batches):
    log, lines = follow(batches)
    batches.seconds = {"decode": 10.0, TRANSFER: 6.0}  # two workers need 5 s, one thread 6
    log.metrics(50, 0.2)
    assert "slowest stage is transfer" in lines[-1]


@pytest.mark.parametrize("step, wait", [(50, 0.04), (10, 0.5), (50, None)])
def test_a_loop_that_does_not_wait_or_just_began_is_told_nothing(batches, step, wait):
    log, lines = follow(batches)
    batches.seconds = {"decode": 1.0}
    log.metrics(step, wait)
    assert not lines


def test_it_is_not_told_at_every_step(batches):
    times = iter([100.0, 100.0, 110.0, 200.0, 200.0])
    log, lines = follow(batches, lambda: next(times))
    batches.seconds = {"decode": 1.0}
    for step in (50, 100, 150):
        log.metrics(step, 0.5)
    assert len(lines) == 2


def test_stages_are_seconds_a_batch():
    batches = Batches(shown=True)
    log, lines = follow(batches)
    batches.seconds = {"read": 1.0}
    log.metrics(10, None)
    batches.seconds = {"read": 2.0, "decode": 5.0}
    assert log.metrics(20, 0.01) == {"input/read_seconds": 0.1, "input/decode_seconds": 0.5}
    assert lines[-1] == "input, ms a batch: read 100.0  decode 500.0; 2 workers; data wait 1%"


def test_texts_that_are_often_cut_are_told_of_once():
    tokenizer = types.SimpleNamespace(
        length=8, cut=Cut(texts=100, texts_cut=40, tokens=900, tokens_cut=90)
    )
    log, lines = follow(Batches(shown=True), tokenizers=[(0, tokenizer)])
    assert log.metrics(50, 0.0) == log.metrics(100, 0.0) == {"input/tokens_cut": 0.1}
    notes = [line for line in lines if line.startswith("note")]
    assert notes == ["note: 40% of the texts have more than 8 tokens; 10% of all tokens are cut"]


def test_the_texts_are_those_of_the_phase():
    cuts = [Cut(texts=9, texts_cut=0, tokens=100, tokens_cut=share) for share in (10, 20)]
    tokenizers = [(50 * i, types.SimpleNamespace(length=8, cut=cut)) for i, cut in enumerate(cuts)]
    log, _ = follow(Batches(shown=True), tokenizers=tokenizers)
    assert [log.metrics(step, 0.0)["input/tokens_cut"] for step in (50, 51)] == [0.1, 0.2]


def test_more_broken_examples_are_told_of_once(batches):
    log, lines = follow(batches)
    batches.counts = {"is odd": 2}
    assert log.bad_examples() == log.bad_examples() == {"is odd": 2}
    assert lines == ["bad: {'is odd': 2}"]


def test_one_process_has_all_counts():
    assert gathered({"is odd": 2}) == {"is odd": 2}


def test_the_counts_of_all_processes_add_up(monkeypatch):
    other = np.frombuffer(json.dumps({"is odd": 1, "is even": 3}).encode().ljust(1 << 14), np.uint8)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda x: np.stack([x, other]))
    assert gathered({"is odd": 2}) == {"is even": 3, "is odd": 3}


def test_the_share_of_broken_examples_is_that_of_all_processes(batches, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda x: np.stack([x, x]))
    log, _ = follow(batches)
    batches.totals = {"drawn": 5, "bad": 5}
    log.bad_examples()
    batches.totals = {"drawn": 5, "bad": 6}
    with pytest.raises(BadInput, match="12 of 10 are broken"):
        log.bad_examples()


def test_a_process_that_sees_other_data_is_named_in_all(monkeypatch):
    check_alike("config.input", [40, "a"])  # alone there is nobody to differ from
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    rows = []
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda x: np.stack([x, x, *rows, x]))
    check_alike("config.input", [40, "a"])
    rows.append(np.zeros(32, np.uint8))
    with pytest.raises(BadInput, match=r"config.input: processes \[2\] see other data .*\[40, 'a'"):
        check_alike("config.input", [40, "a"])


def test_an_inner_stage_does_not_count_for_the_outer(monkeypatch):
    ticks = iter([0.0, 1.0, 6.0, 8.0])  # augment begins, decode begins and ends, augment ends
    monkeypatch.setattr("data.profile.time", types.SimpleNamespace(perf_counter=ticks.__next__))
    profile = Profile(1)
    with profile.counting(), stage("augment"), stage("decode"):
        pass
    assert profile.seconds() == {"decode": 5.0, "augment": 3.0}


def test_outside_of_a_profile_nothing_is_counted():
    profile = Profile(1)
    with stage("decode"):
        pass
    assert profile.seconds() == {}
