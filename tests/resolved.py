"""Every config of the repository with every default filled in, one key a line.

What a change of a recipe, or of a default, means shows in the diff of tests/golden/configs:

  make golden
"""

import functools
import importlib
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from mm import registry
from mm.config import flatten, load, plain
from mm.planning.keys import check_groups
from mm.program import Program, build_program
from tests import pods

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests/golden/configs"
METHODS = ("full", "lit", "image", "projections", "adapter", "vpt", "coop", "prompts", "none")
MORE = {
    "classify": [f"method={method}" for method in ("probe", "lora", "adapter", "vpt")],
    "eval_emoji": ["data=digits"],
    "instruct": [
        "variant=tiny,method=decoder",
        "variant=tiny,method=lora",
        "variant=B/16,method=lora",
    ],
    "finetune": [
        *(f"method={method}" for method in METHODS),
        "method=vpt,hidden=64",
        "method=none,init=a+b,share=0.25",
    ],
    "flip": ["keep=0.25", "phase=tune"],
    "pairs": ["size=tiny"],
    "probe": ["parts=all,languages=de"],
    "video": ["size=tiny", "modality=audio", "modality=audio,size=tiny"],
}


def cases() -> dict[str, str]:
    """Name -> "configs/file.py:argument": each file of configs/ that trains, in each variant."""
    found = {}
    for path in sorted((ROOT / "configs").rglob("*.py")):
        if path.stem == "prepare":  # of data; tests/data/prepare run it
            continue
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = importlib.import_module(".".join(parts))
        if hasattr(module, "get_sweep"):  # of several; tests/launch runs them
            continue
        variants = [f"variant={variant}" for variant in getattr(module, "VARIANTS", ())]
        for argument in [*(variants or [""]), *MORE.get(path.stem, ())]:
            name = "-".join([*parts[1:], argument.removeprefix("variant=")]).rstrip("-")
            found[re.sub("[/=,]", "-", name)] = f"{path.relative_to(ROOT)}:{argument}".rstrip(":")
    return found


@functools.cache
def built(path_and_arg: str) -> tuple[Program, dict[str, Any]]:
    """The program of a config at full size on its pod, and its keys with their defaults."""
    config = load(path_and_arg)
    devices = pods.devices(config.pod) if config.get("pod") else jax.devices()
    with registry.recording() as values:
        program = build_program(config, devices)
        recipe = program.recipe
        check_groups(recipe)
    values |= {f"config.evals.{name}.every_steps": None for name in recipe.evals}
    values |= {f"config.{key}": value for key, value in flatten(plain(config))}
    return program, {key: plain(value) for key, value in values.items()}


def text(path_and_arg: str) -> str:
    """What the golden file holds: sizes, keys, and the defaults of the preprocessing's ops."""
    program, values = built(path_and_arg)
    lines = [
        f"{key.removeprefix('config.')} = {json.dumps(value)}"
        for key, value in values.items()
        if not isinstance(value, Mapping)
    ]
    strings = [value for key, value in values.items() if key.endswith(".preprocess")]
    for op in {op for string in strings for op in re.findall(r"(?:^|\|)(\w+)", string)}:
        for key, parameter in inspect.signature(registry.find("op", op, "op")).parameters.items():
            if parameter.default is not inspect.Parameter.empty:
                lines.append(f"{op}({key}) = {json.dumps(parameter.default)}")
    sizes = {
        f"{root}/{part}": sum(leaf.size for leaf in jax.tree.leaves(tree))
        for root, parts in program.state.params.items()
        for part, tree in parts.items()
    }
    head = [f"# {part}: {size:,} parameters" for part, size in sorted(sizes.items())]
    head.append(f"# {path_and_arg}: {sum(sizes.values()):,} parameters")
    return "\n".join([*head, *sorted(lines), ""])


def main() -> None:
    """Writes all of them anew."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for file in GOLDEN.iterdir():
        file.unlink()
    for name, path_and_arg in cases().items():
        (GOLDEN / f"{name}.txt").write_text(text(path_and_arg))


if __name__ == "__main__":
    main()
