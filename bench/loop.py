"""How much longer is a step of the training loop than the same step on a batch that is there?

  python -m bench.loop --config=configs/quickstart.py

Runs `mm.train.train` itself, with its input, log and checkpoints but without evaluations, and
stops it now and then to time bare steps of the same Program on one batch. Prints the medians, and
the ratio of the totals, in which a slow step cannot hide.
"""

import argparse
import contextlib
import dataclasses
import io
import statistics
import tempfile
import time
from unittest import mock

import jax

from mm import config as configs
from mm import train
from mm.program import Program, build_program

STEPS = 15  # of the loop, then as many bare ones
# Steps of the loop before the first measurement: such that steps 120 and 240, where the quick start
# saves, are in the middle of a round, and not before a pause that would hide the writing.
WARM_UP = 5


class Stopwatch:
    """A train_step that times what happens between its calls, and bare steps in between."""

    def __init__(self, program: Program):
        self.step, self.calls = program.train_step, 0
        self.state = program.init(1)  # of its own: a step donates its state
        self.loop: list[float] = []
        self.bare: list[float] = []

    def __call__(self, state, batch):
        """As the train_step of the program."""
        done = self.calls - WARM_UP
        if done >= 0 and done % STEPS == 0:
            jax.block_until_ready(state)
            if done:
                self.loop.append((time.perf_counter() - self.begin) / STEPS)
            time.sleep(3)  # the input fills its buffers
            self.bare.append(self.time_bare(batch))
            self.begin = time.perf_counter()
        self.calls += 1
        return self.step(state, batch)

    def time_bare(self, batch) -> float:
        """Seconds a step; as in the loop, the step before is waited for while this one runs."""
        self.state, previous = self.step(self.state, batch)
        jax.block_until_ready(previous)
        begin = time.perf_counter()
        for _ in range(STEPS):
            self.state, metrics = self.step(self.state, batch)
            jax.block_until_ready(previous)
            previous = metrics
        jax.block_until_ready(previous)
        return (time.perf_counter() - begin) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.loop")
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--rounds", type=int, default=20)
    flags = parser.parse_args()
    config = configs.load(flags.config)
    config.total_steps = WARM_UP + flags.rounds * STEPS + 1
    config.evals = {}
    config.checkpoint.keep_best = None  # by a metric of an evaluation
    watches = []

    def build(config) -> Program:
        program = build_program(config)
        watches.append(Stopwatch(program))
        return dataclasses.replace(program, train_step=watches[0])

    with tempfile.TemporaryDirectory() as directory:
        quiet = contextlib.redirect_stdout(io.StringIO())
        with mock.patch.object(train, "build_program", build), quiet:
            train.train(config, directory)
    bare, loop = watches[0].bare[: flags.rounds], watches[0].loop
    print(
        f"a bare step {statistics.median(bare) * 1e3:.1f} ms, one of the loop "
        f"{statistics.median(loop) * 1e3:.1f} ms; all {len(loop)} rounds: "
        f"ratio {sum(loop) / sum(bare):.3f}, the median one "
        f"{statistics.median(b / a for a, b in zip(bare, loop, strict=True)):.3f}"
    )


if __name__ == "__main__":
    main()
