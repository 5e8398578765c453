"""Does dropping image tokens (FLIP) save the time that it saves in computation?

  python -m bench.token_dropping

Times a train step of a model whose image tower dominates, with all image tokens, half and a quarter
of them, in turns. Prints the medians, and the speed-up beside the one that the matrix products of
the whole step predict: both towers, patch embedding of all patches, three passes of each.
"""

import argparse
import statistics
import time

import jax
import numpy as np

from mm.program import Program, build_program

IMAGE = dict(image_size=224, patch_size=16, width=256, depth=4, num_heads=4, pool="mean")
TEXT = dict(vocab_size=1024, length=16, width=64, depth=1, num_heads=2)
KEEPS = (1.0, 0.5, 0.25)


def build(keep: float, batch_size: int) -> Program:
    """A SigLIP whose image tower keeps that share of its tokens."""
    config = dict(
        seed=0,
        total_steps=1000,
        global_batch_size=batch_size,
        model=dict(
            image=dict(name="vit", **IMAGE), text=dict(name="transformer", **TEXT), embed_dim=64
        ),
        objectives=dict(contrastive=dict(name="contrastive", kind="sigmoid", image_keep=keep)),
        optimizer=dict(
            name="adamw",
            learning_rate=1e-4,
            weight_decay=0.0,
            schedule=dict(name="cosine", warmup_steps=10),
        ),
        sharding=dict(mesh=dict(fsdp=-1), rules="dp"),
        **{key: {} for key in ("input", "evals", "checkpoint", "log")},
    )
    return build_program(config, jax.devices()[:1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.token_dropping")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    flags = parser.parse_args()
    programs = {keep: build(keep, flags.batch) for keep in KEEPS}
    states = {keep: program.init(0) for keep, program in programs.items()}
    rng = np.random.default_rng(0)
    # Zeros do for text, mask and groups: no time depends on them.
    spec = programs[1.0].batch_spec
    batch = {name: np.zeros(x.shape, x.dtype) for name, x in spec.items()}
    batch["image"] = rng.integers(0, 256, spec["image"].shape, np.uint8)
    batch["text_mask"][:] = True
    batch = jax.device_put(batch, programs[1.0].batch_sharding)
    seconds: dict[float, list[float]] = {keep: [] for keep in KEEPS}
    for turn in range(flags.rounds + 2):  # two to compile and warm up
        for keep, program in programs.items():
            begin = time.perf_counter()
            states[keep], _ = jax.block_until_ready(program.train_step(states[keep], batch))
            if turn >= 2:
                seconds[keep].append(time.perf_counter() - begin)
    whole = seconds[1.0]
    print(f"a step of {flags.batch} with all tokens: {statistics.median(whole) * 1e3:.0f} ms")
    for keep in KEEPS[1:]:
        speedup = statistics.median(a / b for a, b in zip(whole, seconds[keep], strict=True))
        predicted = programs[1.0].training_flops() / programs[keep].training_flops()
        print(
            f"keep {keep}: {statistics.median(seconds[keep]) * 1e3:.0f} ms, {speedup:.2f} times "
            f"as fast; predicted {predicted:.2f}, so {speedup / predicted:.2f} of it"
        )


if __name__ == "__main__":
    main()
