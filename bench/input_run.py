"""How soon does the input of a run begin, also at step 10,000, and does its memory stay flat?

  python -m bench.input_run --config=configs/icons.py:variant=tiny

Times, in processes of their own that take turns: from after the imports, and from the start of the
process, to the first batch on the devices, of a fresh run, of one that goes on at --step, and of an
empty pipeline: the same order, ops and batches of one made up picture that is in memory. Prints
medians, and then the memory of this process while it takes --batches.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from data.input import open_input
from data.iterator import BatchIterator
from data.loader import train_batches
from data.preprocess.parse import parse
from data.sources import open_source
from mm.config import load, plain

LOOKS = 10  # at the memory
_STATUS = Path("/proc/self/status")


class Same:
    """A source of which every example is the same picture, in memory."""

    def __init__(self, size: int):
        one = open_source({"name": "synthetic", "num_examples": 1}, "source")
        self.features, self._record, self._size = one.features, one.read(np.zeros(1, int))[0], size

    def __len__(self) -> int:
        return self._size

    def read(self, ids: np.ndarray, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
        keys = self._record if keys is None else keys
        return [{key: self._record[key] for key in keys}] * len(ids)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.input_run")
    parser.add_argument("--config", default="configs/icons.py:variant=tiny")
    parser.add_argument("--step", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--begin", help="(of a process that is timed)")
    flags = parser.parse_args()
    config = plain(load(flags.config))
    if flags.begin:
        begin(config, **json.loads(flags.begin))
    else:
        starts(config, flags)
        memory(config, flags.batches)


def starts(config: Mapping[str, Any], flags: argparse.Namespace) -> None:
    size = len(open_input(config["input"], "config.input").source)
    kinds = {
        "empty pipeline": dict(step=0, empty=size),
        "fresh": dict(step=0),
        f"at step {flags.step:,}": dict(step=flags.step),
    }
    found: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    for _ in range(flags.rounds):
        for kind, given in kinds.items():
            given = json.dumps(given | {"started": time.time()})
            command = ["-m", "bench.input_run", f"--config={flags.config}", f"--begin={given}"]
            answer = subprocess.check_output([sys.executable, *command], text=True)
            found[kind].append(json.loads(answer))
    print("| first batch | s, after the imports | s, from the start |\n" + "|---" * 3 + "|")
    medians = {
        kind: [statistics.median(x) for x in zip(*t, strict=True)] for kind, t in found.items()
    }
    for kind, (imported, whole) in medians.items():
        print(f"| {kind} | {imported:.2f} | {whole:.2f} |")
    empty, fresh, later = medians.values()
    for name, above, below in (("fresh / empty", fresh, empty), ("later / fresh", later, fresh)):
        print(f"| {name} | {above[0] / below[0]:.2f} | {above[1] / below[1]:.2f} |")


def begin(config: Mapping[str, Any], started: float, step: int, empty: int = 0) -> None:
    """Prints the seconds to the first batch, after the imports and from the start."""
    jax.devices()
    imported = time.time()
    with batches(config, step, empty) as found:
        jax.block_until_ready(next(found))
        ended = time.time()
    print(json.dumps([ended - imported, ended - started]))


def batches(config: Mapping[str, Any], step: int = 0, empty: int = 0) -> BatchIterator:
    """As the training loop takes them, of the config's source or of `empty` times one record."""
    spec = config["input"]
    if not empty:
        source, ops, rest = open_input(spec, "config.input")
    else:
        source = Same(empty)
        data_dir = spec["source"].get("data_dir")
        ops = parse(spec["preprocess"], where="config.input.preprocess", data_dir=data_dir)
        rest = {key: spec[key] for key in spec if key not in ("source", "preprocess", "phases")}
    mesh = jax.make_mesh((jax.device_count(),), ("fsdp",), axis_types=(AxisType.Auto,))
    return train_batches(
        source,
        ops,
        global_batch_size=config["global_batch_size"],
        seed=config["seed"],
        sharding=NamedSharding(mesh, PartitionSpec("fsdp")),
        start_step=step,
        **rest,
    )


def memory(config: Mapping[str, Any], count: int) -> None:
    """Prints what this process holds while it takes so many batches."""
    print("| batches | resident MiB | batches/s |\n" + "|---" * 3 + "|")
    before = time.perf_counter()
    with batches(config) as found:
        for number in range(1, count + 1):
            next(found)
            if number % (count // LOOKS) == 0:
                now = time.perf_counter()
                print(f"| {number:,} | {resident():.0f} | {count / LOOKS / (now - before):.1f} |")
                before = now


def resident() -> float:
    """MiB of memory that this process holds."""
    fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


if __name__ == "__main__":
    main()
