"""What runs would be and cost: config, parameters, FLOPs of a step. Traces; compiles nothing.

  echo '[{"name": "a", "config": "configs/quickstart.py", "overrides": [["seed", "1"]]}]' \\
    | python -m mm.planning.cost

Prints a JSON list in the order of the input. `launch.sweep` asks it, which loads no JAX itself.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from mm.config import BadInput, load, override, plain
from mm.planning.keys import check_keys
from mm.program import build_program


def cost(config: str, overrides: Sequence[Sequence[str]]) -> dict[str, Any]:
    """{"config": as `mm.config.plain` gives it, "parameters": their number, "frozen": how many of
    them are not trained, "flops": of the matmuls of a training step on all devices}.

    Raises BadInput for a config that cannot work, as far as its keys tell: neither its data nor its
    devices need be here.
    """
    found = load(config)
    override(found, [(key, text) for key, text in overrides])
    given = plain(found)
    with found.unlocked(), found.ignore_type():
        found.sharding = dict(mesh=dict(replica=1, fsdp=-1, tensor=1), rules="dp")
    program = build_program(found, jax.devices()[:1])
    check_keys(dataclasses.replace(program.recipe, sharding=given["sharding"]))
    sizes = {
        "/".join(str(getattr(key, "key", key)) for key in path): math.prod(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(program.state.params)
    }
    return {
        "config": given,
        "parameters": sum(sizes.values()),
        "frozen": sum(sizes[path] for path in program.frozen),
        "flops": program.training_flops(),
    }


def costs(wanted: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One `cost` after the other; a BadInput begins with the name."""
    found = []
    for item in wanted:
        try:
            found.append(cost(item["config"], item["overrides"]))
        except BadInput as error:
            raise BadInput(f"arm {item['name']!r}: {error}") from error
    return found


def main() -> int:
    """Reads stdin; returns the exit code."""
    jax.config.update("jax_platforms", "cpu")  # others may be in use, and nothing is computed
    try:
        found = costs(json.load(sys.stdin))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    json.dump(found, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
