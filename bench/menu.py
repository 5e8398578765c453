"""What each fusion and each mix of objectives retrieves after the same CPU time.

  python -m bench.menu --seconds=60 --seeds=3 --out=docs/menu_results.md

Every arm is `configs/menu.py:fusion=F,objectives=O` with a constant learning rate, trained on one
core until the process has used --seconds of CPU time for steps and their input. One process a core
takes the arms in turn. Finished runs are kept in --workdir and not repeated; the table is written
from them. The seeds of an arm share a compiled program: initial values and the order of the data
differ, the masks of a step do not. What --out has before a table stays.
"""

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

FUSED = "contrastive+matching"
# What is compared with what: the objectives beside a contrastive loss, then each fusion.
MIXES = {
    "none": (
        "contrastive", "sigmoid", "contrastive+momentum", "contrastive+masked_text",
        "contrastive+next_text", "contrastive+mae", "contrastive+beit",
        "contrastive+beit_learned", "contrastive+captioning", "contrastive+prefix",
        "contrastive+parallel", "contrastive+simclr", "contrastive+text_views",
        "contrastive+self_distillation", "contrastive+response", "contrastive+feature",
        "contrastive+adversarial", "contrastive+cycle", "contrastive+tied",
    ),
    "early": (FUSED + "+masked_text_fused+mae_fused",),
    "cross": (FUSED + "+masked_text_fused", "momentum+matching+masked_text_fused"),
    "multiway": (FUSED + "+masked_text_fused+beit_fused",),
}  # fmt: skip
COLUMNS = {
    "seen R@1": "seen/text_to_image/recall@1",
    "seen R@10": "seen/text_to_image/recall@10",
    "unseen R@1": "unseen/text_to_image/recall@1",
    "unseen R@10": "unseen/text_to_image/recall@10",
    "reranked unseen R@1": "unseen/reranked/text_to_image/recall@1",
}
# What tells whether an objective was learned, where it is not the loss: on concepts that were not
# in training, a contrastive loss grows with its certainty, while it finds ever more pairs; so does
# that of what follows.
METRIC = dict.fromkeys(("contrastive", "sigmoid", "momentum"), "text_to_image_accuracy") | {
    "cycle": "image_to_text_explained", "adversarial": "modality_gap",
    "next_text": "balanced_accuracy",
}  # fmt: skip
# Objectives whose metric needs each text beside its own picture.
PAIRED = (
    "contrastive", "sigmoid", "momentum", "matching", "masked_text_fused", "mae_fused",
    "beit_fused", "captioning", "prefix", "parallel", "cycle", "next_text",
)  # fmt: skip
# It has nothing to learn from an average of the same towers: its loss begins at 0.
APART = ("response",)


def arms() -> list[str]:
    """The arguments of configs/menu.py."""
    from configs.menu import FUSIONS

    pairs = [("none", mix) for mix in MIXES["none"]]
    pairs += [(fusion, FUSED) for fusion in FUSIONS if fusion != "none"]
    pairs += [(fusion, mix) for fusion in MIXES if fusion != "none" for mix in MIXES[fusion]]
    return [f"fusion={fusion},objectives={mix}" for fusion, mix in pairs]


def run(arm: str, seconds: float, seeds: range, workdir: Path) -> None:
    """Writes `<workdir>/<arm>-<seed>.json` for every seed that has none."""
    from configs.menu import get_config
    from mm.program import build_program

    missing = [seed for seed in seeds if not path(workdir, arm, seed).exists()]
    if not missing:
        return
    config = get_config(arm)
    config.optimizer.schedule = dict(name="constant", warmup_steps=20)
    program = build_program(config)
    for seed in missing:
        found = train(program, seed, seconds)
        path(workdir, arm, seed).write_text(json.dumps(found, indent=1))
        print(f"{arm} seed {seed}: {found['steps']} steps", flush=True)


def train(program, seed: int, seconds: float) -> dict[str, float]:
    """The evaluations before ("untrained/...") and after, and the number of steps between them."""
    from mm.evaluate import open_evaluations, run_evaluations

    evaluations = open_evaluations(program)
    state, steps, used = program.init(seed), 0, 0.0
    before = run_evaluations(program, state, evaluations)
    with batches(program, seed) as data:
        while used < seconds:
            begin = time.process_time()
            state, metrics = program.train_step(state, next(data))
            loss = float(metrics["loss"])
            if not math.isfinite(loss):
                raise SystemExit(f"error: the loss of step {steps} is {loss}")
            used += (time.process_time() - begin) * (steps > 0)  # the first one compiles
            steps += 1
    after = run_evaluations(program, state, evaluations)
    return {"steps": steps, **after, **{f"untrained/{key}": x for key, x in before.items()}}


def batches(program, seed: int):
    """The training batches, as `mm.train` opens them."""
    from data.input import open_input
    from data.loader import train_batches

    source, preprocess, _ = open_input(program.recipe.input, "config.input")
    return contextlib.closing(
        train_batches(
            source,
            preprocess,
            global_batch_size=program.recipe.global_batch_size,
            seed=seed,
            sharding=program.batch_sharding,
        )
    )


def path(workdir: Path, arm: str, seed: int) -> Path:
    return workdir / f"{arm.replace('fusion=', '').replace(',objectives=', '-')}-{seed}.json"


def table(workdir: Path, seeds: range) -> str:
    """Markdown: mean +- standard deviation over the seeds, in points."""
    lines = [
        "| fusion | objectives | steps | " + " | ".join(COLUMNS) + " |",
        "|---|---|---|" + "---|" * len(COLUMNS),
    ]
    for arm in arms():
        results = finished(workdir, arm, seeds)
        if not results:
            continue
        cells = []
        for key in COLUMNS.values():
            values = [100 * result[key] for result in results if key in result]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "")
        fusion, mix = (part.split("=")[1] for part in arm.split(","))
        steps = f"{statistics.mean(result['steps'] for result in results):.0f}"
        lines.append("| " + " | ".join([fusion, mix.replace("+", " + "), steps, *cells]) + " |")
    return "\n".join(lines)


def better(name: str, found: float, control: float) -> bool:
    """Whether the objective's metric beats that of a control."""
    higher = METRIC.get(name, "loss").endswith(("accuracy", "explained"))
    return found > control if higher else found < control


def controls(results: list[dict], name: str) -> tuple[list[float], list[float], list[float]]:
    """The metric of an objective before training, after it, and with the texts of others."""
    key = f"{name}/{METRIC.get(name, 'loss')}"
    kinds = "untrained/losses", "losses", "shuffled"
    return tuple([result[f"{kind}/{key}"] for result in results] for kind in kinds)


def control_table(workdir: Path, seeds: range) -> str:
    """Markdown: each objective, where it was trained first, beside its controls; means."""
    lines = [
        "| objective | trained in | metric | untrained | trained | shuffled | seeds ahead |",
        "|---|---|---|---|---|---|---|",
    ]
    done = set()
    for arm in arms():
        results = finished(workdir, arm, seeds)
        fusion, mix = (part.split("=")[1] for part in arm.split(","))
        for name in mix.split("+"):
            if name in done or name in APART or not results:
                continue
            done.add(name)
            found = controls(results, name)
            rows = list(zip(*found, strict=True))
            won = sum(
                better(name, own, before) and (name not in PAIRED or better(name, own, other))
                for before, own, other in rows
            )
            cells = [f"{statistics.mean(values):.4g}" for values in found]
            cells[2] = cells[2] if name in PAIRED else ""
            metric = METRIC.get(name, "loss")
            where = f"{fusion}: {mix.replace('+', ' + ')}"
            lines.append(
                f"| {name} | {where} | {metric} | {' | '.join(cells)} | {won} of {len(rows)} |"
            )
    return "\n".join(lines)


def finished(workdir: Path, arm: str, seeds: range) -> list[dict]:
    """What is there of an arm's runs."""
    files = [path(workdir, arm, seed) for seed in seeds]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.menu")
    parser.add_argument("--seconds", type=float, default=60, help="CPU seconds of training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", default="", help="only those whose name has this in it")
    parser.add_argument("--workdir", type=Path, default=Path("workdirs/bench-menu"))
    parser.add_argument("--out", type=Path, help="a file for the table; the default is to print it")
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)  # this process is a worker
    flags = parser.parse_args()
    workdir = flags.workdir / f"{flags.seconds:g}s"  # other times are other results
    workdir.mkdir(parents=True, exist_ok=True)
    seeds = range(flags.seeds)
    cores = sorted(os.sched_getaffinity(0))
    chosen = [arm for arm in arms() if flags.arms in arm]
    if not chosen:
        parser.error(f"--arms={flags.arms}: no arm has that in its name; have {arms()}")
    if flags.core is None:
        command = [sys.executable, "-m", "bench.menu", *sys.argv[1:]]
        workers = [subprocess.Popen([*command, f"--core={core}"]) for core in cores]
        if any([worker.wait() for worker in workers]):
            raise SystemExit("error: a worker failed; the same command goes on with what is left")
        tables = f"{table(workdir, seeds)}\n\n{control_table(workdir, seeds)}\n"
        if flags.out is None:
            print(tables)
            return
        written = flags.out.read_text() if flags.out.exists() else ""
        flags.out.write_text(written.partition("| fusion |")[0] + tables)
        return
    os.sched_setaffinity(0, {flags.core})  # before JAX counts the cores
    for arm in chosen[cores.index(flags.core) :: len(cores)]:
        run(arm, flags.seconds, seeds, workdir)


if __name__ == "__main__":
    main()
