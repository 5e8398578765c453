"""Stands in for what a sweep starts, so that a test of it takes seconds.

  python tests/launch/fakes.py sweep FILE --workdir=...   launch.sweep, with the fakes below, or
                                                          with the --launcher that is given
  python tests/launch/fakes.py cost < arms.json           mm.planning.cost
  python tests/launch/fakes.py run --config=... ...       main.py

FAKE_FAIL and FAKE_HOLD name runs as "ARM/seed-S": the one fails, the other writes its process id
and waits to be killed; FAKE_LATER, "ARM/seed-S=CODE,...", those that end without results. Every run
adds its name to starts.txt in the folder of the sweep.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

COST = [sys.executable, __file__, "cost"]
RUN = f"{sys.executable} {__file__} run"


def sweep() -> int:
    from launch import sweep

    sweep.COST = COST
    return sweep.main([f"--launcher={RUN}", *sys.argv[2:]])


def cost() -> int:
    """Every arm is of 8 examples a step, or as it says, and of 1,000 parameters a unit of width."""
    found = []
    for arm in json.load(sys.stdin):
        given = dict(arm["overrides"])
        if "wrong" in given:
            print(f"error: arm {arm['name']!r}: unknown config key 'wrong'", file=sys.stderr)
            return 2
        width = int(given.get("width", 4))
        config = {
            "seed": 0,
            "total_steps": 100,
            "global_batch_size": int(given.get("global_batch_size", 8)),
            "width": width,
            "optimizer": {"schedule": {"name": "cosine", "warmup_steps": 10}},
            "evals": {"unseen": {}},
            "checkpoint": {"keep_best": "unseen/score"},
            "log": {"every_steps": 10},
        }
        flops = 1e6 * width * config["global_batch_size"]
        one = {"config": config, "parameters": 1000 * width, "frozen": 0, "flops": flops}
        found.append(one)
    json.dump(found, sys.stdout)
    return 0


def flags_of(workdir: Path) -> list[str]:
    """Those of a run of "wide" for 800 examples, as the sweep gives them."""
    schedule = "--config.optimizer.schedule.warmup_steps=10"
    first = ["--config=c.py", f"--workdir={workdir}", "--config.width=8"]
    return [*first, "--config.total_steps=100", schedule, "--config.seed=0"]


def run() -> int:
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in sys.argv[2:])
    folder = Path(flags["workdir"])
    name = "/".join(folder.parts[-2:])
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.parents[1] / "starts.txt", "a") as file:
        file.write(f"{name} {sorted(os.sched_getaffinity(0))}\n")
    print(f"{name} begins", flush=True)
    if name == os.environ.get("FAKE_FAIL"):
        print("error: the loss of step 7 is nan\n")
        return 1
    later = dict(one.split("=") for one in os.environ.get("FAKE_LATER", "").split(",") if one)
    if name in later:
        return int(later[name])
    if name == os.environ.get("FAKE_HOLD"):
        stops = []
        signal.signal(signal.SIGTERM, lambda *_: stops.append(1))
        (folder / "pid").write_text(f"{os.getpid()}\n")
        while not stops:
            time.sleep(0.02)
        (folder / "saved").write_text("saved")
        return 75
    seed, width = int(flags.get("config.seed", 0)), int(flags.get("config.width", 4))
    steps = int(flags["config.total_steps"])
    lines = [
        {
            "step": step,
            "loss": 4.0 / (width * step + seed + 1),
            "examples_per_second": 100.0 * width,
        }
        for step in range(steps // 2, steps + 1, steps // 2)
    ]
    if name.endswith("/probe"):  # a step takes 0.5 s; the third stumbles
        times = [0.5 * (step - 1) + 3 * (step > 3) for step in range(2, 31)]
        lines = [{"step": 1}] + [
            {"step": step, "examples_per_second": 8 * (step - 1) / used}
            for step, used in enumerate(times, 2)
        ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    noise = [0.01, -0.02, 0.015][seed % 3] * (1 + 0.1 * width)
    results = {"unseen/score": round(1.0 - 1.0 / width + noise, 6)}
    (folder / "results.json").write_text(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.exit({"sweep": sweep, "cost": cost, "run": run}[sys.argv[1]]())
