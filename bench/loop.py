"""How much longer is a step fed by the input than the same step on a batch that is there?

  python -m bench.loop --config=configs/quickstart.py

Both are measured in turn in one run; what is printed are medians, and the median of the ratios.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax

from data.input import open_input
from data.loader import train_batches
from mm import config as configs
from mm import registry
from mm.program import build_program

STEPS = 8  # in a measurement


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.loop")
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--rounds", type=int, default=8)
    flags = parser.parse_args()
    program = build_program(configs.load(flags.config))
    source, preprocess, rest = open_input(program.recipe.input, "config.input")
    batches = registry.call(
        train_batches,
        rest,
        "config.input",
        source=source,
        preprocess=preprocess,
        global_batch_size=program.recipe.global_batch_size,
        seed=0,
        sharding=program.batch_sharding,
    )
    resident = next(batches)
    state = program.init(0)

    def seconds_a_step(next_batch: Callable[[], dict], state):
        """As mm.train.loop: the step before is waited for while this one runs."""
        begin, previous = time.perf_counter(), None
        for _ in range(STEPS):
            state, metrics = program.train_step(state, next_batch())
            jax.block_until_ready(previous)
            previous = metrics
        jax.block_until_ready(previous)
        return (time.perf_counter() - begin) / STEPS, state

    _, state = seconds_a_step(lambda: resident, state)  # compiles
    alone, loop = [], []
    for _ in range(flags.rounds):
        time.sleep(2)  # the pipeline fills its buffers, so that it does not run beside the next
        seconds, state = seconds_a_step(lambda: resident, state)
        alone.append(seconds)
        _, state = seconds_a_step(lambda: next(batches), state)  # empties the buffers
        seconds, state = seconds_a_step(lambda: next(batches), state)
        loop.append(seconds)
    batches.close()
    ratio = statistics.median(b / a for a, b in zip(alone, loop, strict=True))
    print(
        f"resident batch {statistics.median(alone) * 1e3:.1f} ms, "
        f"loop {statistics.median(loop) * 1e3:.1f} ms a step, ratio {ratio:.3f}"
    )


if __name__ == "__main__":
    main()
