"""The keys of a config that need neither its data nor its devices to be checked.

Training opens its data, and finds by that what else is wrong. Who plans a run of elsewhere has no
data here, but a typo is one anywhere.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import mm.evals  # noqa: F401  (registers the evaluators)
from data.loader import train_batches
from data.preprocess.parse import arguments
from data.sources import check_source
from mm import registry
from mm.config import BadInput
from mm.model_init import read_parameters, spec_of
from mm.program import make_sharding
from mm.recipe import Recipe
from mm.runtime.checkpoint import Checkpointer
from mm.sharding.mesh import check_axes
from mm.sharding.rules import find_rules
from mm.train import Logging, check_best

# To the input, by the program.
_GIVEN = ("global_batch_size", "seed", "sharding", "start_step", "bad_examples")


def check_keys(recipe: Recipe) -> None:
    """Raises BadInput for an unknown name or key, or a value of the wrong type, in any group.

    Model, objectives and optimizer are those of a built program, so they are left out here.
    """
    check_groups(recipe)
    registry.check(make_sharding, recipe.sharding, "config.sharding", ["devices"])
    find_rules(recipe.sharding["rules"])
    check_axes(recipe.sharding["mesh"])
    check_best(recipe.checkpoint, recipe.evals)
    for where, text in _preprocessing(recipe):
        for name, given in arguments(text, where=where):
            op = registry.find("op", name, where)
            registry.check(op, given, f"{where}: {name}", ["data_dir"])


def check_groups(recipe: Recipe) -> None:
    """Of `check_keys`, the groups: log, checkpoint, model_init, input and evals."""
    registry.check(Logging, recipe.log, "config.log")
    registry.check(Checkpointer, recipe.checkpoint, "config.checkpoint", ["directory"])
    if recipe.model_init is not None:
        init = spec_of(recipe.model_init)
        registry.check(read_parameters, init, "config.model_init", ["program"])
    _check_input(recipe.input, "config.input", train_batches, _GIVEN)
    for name, spec in recipe.evals.items():
        where = f"config.evals.{name}"
        rest = {key: value for key, value in spec.items() if key not in ("name", "every_steps")}
        _check_input(rest, where, registry.find("evaluator", spec.get("name"), where))


def _check_input(
    spec: Mapping[str, Any], where: str, reader: Any, given: tuple[str, ...] = ()
) -> None:
    """A source and what else `reader` takes."""
    for key in ("source", "preprocess"):
        if not spec.get(key):
            raise BadInput(f"{where}: has no {key!r}")
    check_source(spec["source"], f"{where}.source")
    rest = {key: value for key, value in spec.items() if key not in ("source", "preprocess")}
    registry.check(reader, rest, where, ("source", "preprocess", *given))


def _preprocessing(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Each string of ops, and where it is."""
    yield "config.input.preprocess", recipe.input["preprocess"]
    for number, (_, text) in enumerate(recipe.input.get("phases", ())):
        yield f"config.input.phases[{number}]", text
    for name, spec in recipe.evals.items():
        yield f"config.evals.{name}.preprocess", spec["preprocess"]
