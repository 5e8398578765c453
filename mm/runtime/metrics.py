"""Metrics to disk: `metrics.jsonl`, a flat JSON object a line, and TensorBoard event files.

A step is written once, whatever happens: a start at step s first cuts off what a killed run wrote
after s. JSON has no NaN and no infinity; they are written as the strings "NaN", "Infinity" and
"-Infinity" (as protobuf's JSON does), which float() reads, so a divergence stays visible.
"""

import json
import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from mm.runtime.workdir import is_remote, write_atomic


class MetricsWriter:
    """Writes both forms under `workdir`; process 0 writes, the others do nothing.

    start_step: the step of the restored checkpoint (0 for none); later lines are cut off.

    Values may be jax scalars. Converting one waits for the step that makes it, so hand over step
    t - 1 when step t is dispatched. Before the checkpoint of step s is saved, write step s and
    call `sync`: otherwise a kill between the two leaves a checkpoint ahead of its line.
    """

    def __init__(self, workdir: os.PathLike | str, start_step: int = 0):
        import jax  # here, since reports, which read these files, need none

        self._get = jax.device_get
        self._last_step = start_step
        self._files: list[_AppendedFile] = []
        if jax.process_index() != 0:
            return
        workdir = epath.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        lines = cut(workdir / "metrics.jsonl", start_step)
        self._jsonl = _AppendedFile(workdir / "metrics.jsonl", lines)
        self._events = _Events(workdir / "tensorboard", start_step)
        self._files = [self._jsonl, self._events.file]

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds one line and one event. Raises ValueError if `step` is not after the last one."""
        if step <= self._last_step:
            raise ValueError(f"metrics of step {step} after those of step {self._last_step}")
        self._last_step = step
        if not self._files:
            return
        values = {key: float(value) for key, value in self._get(dict(metrics)).items()}
        line = {"step": step, **{key: _json_number(value) for key, value in values.items()}}
        self._jsonl.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._events.write(step, values)
        for file in self._files:
            file.flush()

    def sync(self) -> None:
        """Makes everything written so far durable."""
        for file in self._files:
            file.sync()

    def close(self) -> None:
        """Syncs and closes; the last call."""
        for file in self._files:
            file.close()
        self._files = []


def read(path: os.PathLike | str) -> list[dict[str, Any]]:
    """The whole lines of a `metrics.jsonl` as dicts, with NaN and infinities as floats again.

    A last line without its newline, which a kill leaves, is not one.
    """
    path = epath.Path(path)
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [
        {k: float(v) if isinstance(v, str) else v for k, v in json.loads(line).items()}
        for line in lines
    ]


def cut(path: os.PathLike | str, step: int) -> bytes:
    """Removes half a line at the end and every line after `step`, atomically; returns the rest."""
    path = epath.Path(path)
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
    kept = b"".join(line for line in whole if _step_of(line) <= step)
    if kept != content:
        write_atomic(path, kept)
    return kept


def _step_of(line: bytes) -> float:
    """The step of a line; one that a crash of the machine left as garbage counts as too late."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def _json_number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


class _AppendedFile:
    """A file that grows. An object store cannot append: there it is written whole at each sync."""

    def __init__(self, path: epath.Path, content: bytes = b""):
        self._path = path
        self._content = bytearray(content)
        self._file = None if is_remote(path) else open(Path(path), "ab")

    def write(self, data: bytes) -> None:
        if self._file is None:
            self._content += data
        else:
            self._file.write(data)

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def sync(self) -> None:
        if self._file is None:
            self._path.write_bytes(bytes(self._content))
        else:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self.sync()
        if self._file is not None:
            self._file.close()


class _Events:
    """TensorBoard's scalars, written with its protos alone (no TensorFlow)."""

    def __init__(self, directory: epath.Path, start_step: int):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2, summary_pb2
        directory.mkdir(parents=True, exist_ok=True)
        # the nanoseconds keep a restart within the same second from sharing a file
        name = f"events.out.tfevents.{time.time_ns():019d}.{socket.gethostname()}.{os.getpid()}"
        self.file = _AppendedFile(directory / name)
        self._records = RecordWriter(self.file)
        self._add(file_version="brain.Event:2")
        if start_step:
            # TensorBoard drops what earlier files say from this step on
            started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(step=start_step + 1, session_log=started)
        self.file.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        scalars = [
            self._summary.Summary.Value(tag=key, simple_value=np.float32(value))
            for key, value in values.items()
        ]
        self._add(step=step, summary=self._summary.Summary(value=scalars))

    def _add(self, **fields: Any) -> None:
        event = self._event.Event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())
