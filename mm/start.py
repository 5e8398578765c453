"""The first state of a run: its latest checkpoint, or a fresh one, maybe with another's parameters.

And what a run writes of itself before it begins. A checkpoint is read into the shardings of the
program, so a run goes on with any mesh.
"""

from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from data.tokenizers import same_ids
from mm import registry
from mm.assembly import TrainState
from mm.config import BadInput, differences, plain
from mm.model_init import open_run, read_parameters, spec_of
from mm.program import Program
from mm.recipe import SAME_FUNCTION
from mm.runtime import table as parameter_table
from mm.runtime import workdir
from mm.runtime.checkpoint import Checkpointer


def first_state(program: Program, checkpointer: Checkpointer) -> tuple[TrainState, int, dict]:
    """(state, its step, the manifest that its data must fit: of a fresh state {}).

    Of config.model_init only when the run has no checkpoint yet. Raises BadInput for one that
    cannot be read, or does not fit.
    """
    recipe = program.recipe
    if checkpointer.latest_step() is not None:
        state, manifest = checkpointer.restore(program.state)
        changes = "".join(f"; {change}" for change in layout_changes(program, manifest))
        say(f"continuing from the checkpoint of step {manifest['step']}{changes}")
        return state, manifest["step"], manifest
    state, saved = program.init(recipe.seed), {}
    if recipe.model_init is not None:
        init = spec_of(recipe.model_init)
        given, saved = registry.call(read_parameters, init, "config.model_init", program=program)
        params = jax.tree.map(
            lambda new, old: old if new is None else new, given, state.params, is_leaf=_is_none
        )
        state = program.begin(state, params)
    if recipe.teacher and recipe.teacher["name"] == "checkpoint":
        teacher, theirs = read_teacher(program, **recipe.teacher)
        state = state._replace(extras=state.extras | {"teacher": teacher})
        if theirs["tokenizer"] and (own := saved.get("tokenizer") or theirs["tokenizer"]):
            if not same_ids(own, theirs["tokenizer"]):
                raise BadInput(
                    "config.teacher: was trained with another tokenizer than config.model_init's"
                )
            saved = saved | {"tokenizer": own}
    return state, 0, saved


def read_teacher(
    program: Program, *, name: str, workdir: str, model: Mapping, step: int | None = None
) -> tuple[Any, dict]:
    """The parameters of config.teacher's model, from the checkpoint of a run, and its manifest.

    Raises BadInput when there is none, its model was another than config.teacher.model, or it reads
    other sizes than the model that it teaches.
    """
    for part, key in (("image", "image_size"), ("text", "length")):
        own, theirs = (plain(m.get(part)) for m in (program.recipe.model, model))
        if own and theirs and own[key] != theirs[key]:
            raise BadInput(
                f"config.teacher.model.{part}.{key}={theirs[key]}: the teacher reads the same "
                f"batch as config.model.{part}, whose {key} is {own[key]}"
            )
    with open_run(workdir) as checkpointer:
        trained = checkpointer.manifest(step)["config"]
        if trained.get("adapt"):
            raise BadInput(
                f"config.teacher.workdir={workdir}: was trained with config.adapt, which a teacher "
                "cannot have; give the run that it began with"
            )
        if changed := differences(plain(model), trained["model"], SAME_FUNCTION):
            raise BadInput(
                f"config.teacher.model is not the model that {workdir} trained: {changed}; take "
                "config.model of its config.json"
            )
        wanted = {"params": {"model": program.state.extras["teacher"]}}
        found, manifest = checkpointer.restore(wanted, step, partial=True)
    say(f"the teacher is that of step {manifest['step']} in {workdir}")
    return found["params"]["model"], manifest


def layout(program: Program) -> dict[str, Any]:
    """Over what a state is spread, for the manifest."""
    return {
        "mesh": {axis: size for axis, size in program.mesh.shape.items() if size > 1},
        "devices": program.mesh.size,
        "processes": jax.process_count(),
    }


def layout_changes(program: Program, manifest: Mapping) -> list[str]:
    """What of `layout` is not as it was: ["the mesh was {fsdp: 8}, is {fsdp: 4, tensor: 2}"]."""

    def show(value: Any) -> str:
        return str(value).replace("'", "")

    return [
        f"the {key} {verb} {show(manifest[key])}, {'is' if key == 'mesh' else 'are'} {show(value)}"
        for (key, value), verb in zip(layout(program).items(), ("was", "were", "were"), strict=True)
        if manifest.get(key, value) != value
    ]


def write_start(
    program: Program, path: epath.Path, manifest: Mapping, origin: Mapping | None
) -> None:
    """Writes environment.json, recipe.json, tokenizer.json and the parameter table.

    Raises ValueError if a moment is split unlike its parameter.
    """
    rows = parameter_table.rows(program.state.params, program.state.opt_state, program.frozen)
    if unlike := [f"{row.path} {row.spec}" for row in rows if "!=" in row.spec]:
        raise ValueError(f"moments are split unlike their parameters: {unlike[:3]}")
    if jax.process_index() == 0:
        workdir.write_environment(path)
        if origin is not None:
            workdir.write_json(path / "recipe.json", origin)
        workdir.write_atomic(path / "parameters.txt", parameter_table.text(rows))
        if manifest["tokenizer_json"]:
            workdir.write_atomic(path / "tokenizer.json", manifest["tokenizer_json"])
    say(parameter_table.summary(rows))


def say(text: str) -> None:
    """Prints on the first process only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def _is_none(x: Any) -> bool:
    return x is None
