import json
import math
import os

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mm.runtime import metrics
from mm.runtime.metrics import MetricsWriter


def _run(workdir, start, steps, offset=0.0):
    writer = MetricsWriter(workdir, start)
    for step in steps:
        writer.write(step, {"loss": jnp.float32(step + offset)})
    return writer


def test_a_line_is_a_flat_object_on_disk_at_once(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss": jnp.float32(0.1), "scale": 10})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line) == {"step": 1, "loss": 0.10000000149011612, "scale": 10.0}
    writer.close()


def test_nan_and_infinity_are_valid_json_and_come_back(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"a": jnp.nan, "b": jnp.inf, "c": -jnp.inf})
    writer.close()

    def refuse(constant):
        raise AssertionError(constant)

    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    (row,) = metrics.read(tmp_path / "metrics.jsonl")
    assert math.isnan(row["a"]) and row["b"] == math.inf and row["c"] == -math.inf


def test_a_restart_cuts_later_lines_and_half_a_line(tmp_path):
    _run(tmp_path, 0, range(1, 6)).close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 6, "lo')
    _run(tmp_path, 3, range(4, 7), offset=0.5).close()
    rows = metrics.read(path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in rows] == [1, 2, 3, 4.5, 5.5, 6.5]


def test_a_start_from_nothing_cuts_everything(tmp_path):
    _run(tmp_path, 0, [1, 2]).close()
    MetricsWriter(tmp_path, 0).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_line_of_garbage_is_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\x00\x00\n{"step": 2}\n')
    metrics.cut(path, 5)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


@given(st.integers(0, 12), st.integers(0, 200))
def test_cut_keeps_exactly_the_whole_lines_up_to_the_step(tmp_path_factory, step, size):
    content = b"".join(b'{"step": %d, "loss": 1.5}\n' % s for s in range(1, 11))[:size]
    path = tmp_path_factory.mktemp("cut") / "metrics.jsonl"
    path.write_bytes(content)
    metrics.cut(path, step)
    whole = content.count(b"\n")
    assert [row["step"] for row in metrics.read(path)] == list(range(1, min(step, whole) + 1))


def test_a_step_is_not_written_twice(tmp_path):
    writer = _run(tmp_path, 3, [4])
    with pytest.raises(ValueError, match="step 4 after those of step 4"):
        writer.write(4, {"loss": 0})
    with pytest.raises(ValueError, match="after those of step 7"):
        MetricsWriter(tmp_path, 7).write(7, {"loss": 0})


def test_tensorboard_sees_each_step_once_after_a_restart(tmp_path):
    _run(tmp_path, 0, range(1, 6)).close()
    _run(tmp_path, 3, range(4, 7), offset=0.5).close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("loss")]
    assert scalars == [(1, 1), (2, 2), (3, 3), (4, 4.5), (5, 5.5), (6, 6.5)]


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    writer = _run(tmp_path, 0, [1])
    writer.sync()
    writer.close()
    assert os.listdir(tmp_path) == []


def test_an_object_store_gets_whole_files_at_each_sync(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "is_remote", lambda path: True)
    _run(tmp_path, 0, [1, 2]).close()
    writer = _run(tmp_path, 1, [2])
    writer.sync()
    assert [row["step"] for row in metrics.read(tmp_path / "metrics.jsonl")] == [1, 2]
