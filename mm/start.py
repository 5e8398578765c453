"""The first state of a run: its latest checkpoint, or a fresh one, maybe with another's parameters.

A checkpoint is read into the shardings of the program, so a run goes on with any mesh.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from mm import registry
from mm.assembly import TrainState
from mm.config import BadInput, differences, plain
from mm.evaluate import SAME_FUNCTION
from mm.optim.paths import flatten, map_paths, match_any
from mm.program import Program
from mm.runtime.checkpoint import Checkpointer

TEXT_EMBEDDING = "model/text/embedding"  # whoever takes it takes the meaning of the token ids


def first_state(program: Program, checkpointer: Checkpointer) -> tuple[TrainState, int, dict]:
    """(state, its step, the manifest that its data must fit: of a fresh state {}).

    Of config.init only when the run has no checkpoint yet. Raises BadInput for one that cannot be
    read, or does not fit.
    """
    recipe = program.recipe
    if checkpointer.latest_step() is not None:
        state, manifest = checkpointer.restore(program.state)
        changes = "".join(f"; {change}" for change in layout_changes(program, manifest))
        say(f"continuing from the checkpoint of step {manifest['step']}{changes}")
        return state, manifest["step"], manifest
    state, saved = program.init(recipe.seed), {}
    if recipe.init is not None:
        given, saved = registry.call(read_parameters, recipe.init, "config.init", program=program)
        params = jax.tree.map(
            lambda new, old: old if new is None else new, given, state.params, is_leaf=_is_none
        )
        state = program.begin(state, params)
    if recipe.teacher and recipe.teacher["name"] == "checkpoint":
        teacher, theirs = read_teacher(program, **recipe.teacher)
        state = state._replace(extras=state.extras | {"teacher": teacher})
        if theirs["tokenizer"] and (own := saved.get("tokenizer") or theirs["tokenizer"]):
            if own["sha256"] != theirs["tokenizer"]["sha256"]:
                raise BadInput(
                    "config.teacher: was trained with another tokenizer than config.init's run"
                )
            saved = saved | {"tokenizer": own}
    return state, 0, saved


def read_parameters(
    *, workdir: str, parameters: tuple[str, ...], step: int | None = None, program: Program
) -> tuple[Any, dict]:
    """config.init: parameters of another run's checkpoint, whose paths one of the regexes matches.

    step: that of the checkpoint; None is the latest. Returns (a tree as the program's parameters,
    None where no regex matches; what of the manifest the data must fit: the tokenizer, if the
    text's embedding is taken). Raises BadInput when there is no such checkpoint, a regex matches
    nothing, or a parameter is not there in the same shape.
    """
    params = program.state.params
    names = match_any(params, parameters, "parameters")
    wanted = map_paths(lambda name, x: x if name in names else None, params)
    with open_run(workdir) as checkpointer:
        found, manifest = checkpointer.restore({"params": wanted}, step, partial=True)
    towers = {name.split("/")[1] for name in names if name.startswith("model/")}
    mine, theirs = (
        {key: model[key] for key in sorted(towers & model.keys())}
        for model in (plain(program.recipe.model), manifest["config"]["model"])
    )
    changed = differences(mine, theirs, SAME_FUNCTION)
    say(
        f"{len(names)} of {len(flatten(params))} parameters are those of step {manifest['step']} "
        f"in {workdir}"
        + (f"; note that its config.model was another: {changed}" if changed else "")
    )
    return found["params"], {"tokenizer": manifest["tokenizer"]} if TEXT_EMBEDDING in names else {}


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
        trained = checkpointer.manifest(step)["config"]["model"]
        if changed := differences(plain(model), trained, SAME_FUNCTION):
            raise BadInput(
                f"config.teacher.model is not the model that {workdir} trained: {changed}; take "
                "config.model of its config.json"
            )
        wanted = {"params": {"model": program.state.extras["teacher"]}}
        found, manifest = checkpointer.restore(wanted, step, partial=True)
    say(f"the teacher is that of step {manifest['step']} in {workdir}")
    return found["params"]["model"], manifest


def open_run(workdir: str) -> contextlib.closing[Checkpointer]:
    """The checkpoints of another run."""
    return contextlib.closing(Checkpointer(epath.Path(workdir) / "checkpoints", read_only=True))


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


def say(text: str) -> None:
    """Prints on the first process only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def _is_none(x: Any) -> bool:
    return x is None
