"""Workdirs as a run and a sweep leave them, without running: for tests of their pages."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from mm.evals.examples import thumbnail

METRIC = "seen/text_to_image/recall@10"  # of a sweep
HOSTILE = '<script>alert("1")</script>'
CONFIG = {
    "seed": 1,
    "total_steps": 40,
    "objectives": {"contrastive": {"name": "contrastive"}, "matching": {"name": "matching"}},
    "evals": {"seen": {"name": "retrieval"}, "fit": {"name": "losses"}},
    "checkpoint": {"keep_best": "seen/text_to_image/recall@1"},
    "model": {"image": {"width": 16}, "note": HOSTILE},
}


def write(path: Path, caption: str = "a red circle") -> Path:
    """Of two starts, the first killed; the second finished."""
    (path / "report").mkdir(parents=True)
    recipe = CONFIG | {"seed": 0, "model": {"image": {"width": 8}, "note": HOSTILE}}
    results = {
        f"seen/{direction}/{metric}": value
        for direction in ("text_to_image", "image_to_text")
        for metric, value in (("recall@1", 0.5), ("recall@5", 0.75), ("median_rank", 2.0))
    } | {"seen/pool_size": 20.0, "fit/contrastive/loss": 1.25}
    lines = [
        {
            "step": step,
            "loss": 3 / step,
            "contrastive/loss": 2 / step,
            "matching/loss": 1 / step,
            "matching/accuracy": "NaN" if step == 3 else 0.5,
            "learning_rate": 1e-3,
            "gradient_norm": 1.0,
            "examples_per_second": 1200.0,
            "data_wait_fraction": 0.01,
            "memory/host": 1.5,
        }
        for step in range(1, 41)
    ]
    lines[19] |= results | {"seen/text_to_image/recall@1": 0.625}
    lines[39] |= results
    seconds = {"start": 5.0, "compile": 10.0, "train": 60.0, "evaluate": 5.0}
    first = {"began": 1e9, "first_step": 0, "last_step": 30, "seconds": seconds, "ended": None}
    later = first | {"began": 1e9 + 100, "first_step": 20, "last_step": 40, "ended": "finished"}
    environment = {
        "time": "2026-01-02T03:04:05+0000",
        "command": ["python", "main.py", f"--config.note={HOSTILE}", "--" + "long" * 60],
        "host": "host",
        "packages": {"jax": "0.0"},
        "git": {"revision": "0123456789abcdef", "dirty": True},
        "devices": {"kind": "cpu", "count": 8},
    }
    files = {
        "config.json": CONFIG,
        "recipe.json": {"name": "configs/tiny.py:size=S", "config": recipe},
        "results.json": results,
        "environment.json": environment,
        "goodput.json": [first, later],
        "report/seen.json": examples(caption),
    }
    for name, value in files.items():
        (path / name).write_text(json.dumps(value))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "parameters.txt").write_text("model/image/kernel  [8, 16]  " + "x" * 300)
    return path


def examples(caption: str) -> dict:
    """As `mm.evals.examples` and `mm.evals.word_maps` leave it; the first caption is given."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (20, 24, 24, 3)).astype(np.uint8)
    found = [[7, 0.9], [1, 0.8], [2, 0.7], [3, 0.6], [4, 0.5]]
    first = {"query": 7, "rank": 0, "score": 0.9, "found": found}
    last = {"query": 0, "rank": 17, "score": -0.25, "found": found}
    direction = {"even": [first, last], "worst": [last]}
    places = [0, 5, 10, 15]
    words = [(caption, [[0.1, 0.3], [-0.2, 0.0]]), ("circle", [[0.0, 0.1], [0.2, 0.0]])]
    picture = thumbnail(Image.fromarray(pictures[0]))
    return {
        "pool_size": 20,
        "text_to_image": direction,
        "image_to_text": direction,
        "captions": {str(i): caption if i == 0 else f"caption {i}" for i in range(20)},
        "pictures": {str(i): thumbnail(Image.fromarray(x)) for i, x in enumerate(pictures)},
        "similarity": {"places": places, "scores": np.eye(4).tolist()},
        "maps": {
            "kind": "occlusion",
            "examples": [
                {"caption": caption, "picture": picture, "words": words, "pool": [[0.2, 0.8]]}
            ],
        },
    }


def write_sweep(path, values, failed=None, lines=None, **more):
    """The folder of a sweep, {arm: {seed: value}}; a value of None: a run not finished."""
    arms = {
        name: {
            "config": "c.py", "overrides": {"a": "<b>"}, "parameters": 1234,
            "flops_of_a_step": 1e6, "global_batch_size": 4, "set": {"total_steps": 10},
        }
        for name in values
    }  # fmt: skip
    record = {
        "sweep": "s", "file": "s.py", "metric": METRIC, "better": "higher",
        "budget": {"examples": 40}, "base": next(iter(values)), "runs": str(path),
        "seeds": sorted({seed for runs in values.values() for seed in runs}), "arms": arms,
        "failed": failed or {},
    } | more  # fmt: skip
    for arm, runs in values.items():
        for seed, value in runs.items():
            folder = path / arm / f"seed-{seed}"
            folder.mkdir(parents=True)
            found = lines or [{"step": 10, "loss": 2.0, "examples_per_second": 8.0}]
            (folder / "metrics.jsonl").write_text(
                "".join(json.dumps(line) + "\n" for line in found) + '{"step": 99'
            )
            if value is not None:
                (folder / "results.json").write_text(json.dumps({METRIC: value}))
    (path / "sweep.json").write_text(json.dumps(record))
    return path
