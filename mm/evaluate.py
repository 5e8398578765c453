"""Evaluators of a config: opened before training starts, run in the loop and by `--mode=eval`."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

import mm.evals  # noqa: F401  (registers the evaluators)
from data.input import check_texts, check_tokenizer, example, open_input
from mm import registry
from mm.assembly import TrainState
from mm.config import BadInput, differences, plain
from mm.evals.base import Model, draw_later
from mm.program import Program, build_program, check_batch
from mm.recipe import SAME_FUNCTION
from mm.report import outcomes
from mm.report.measures import is_share
from mm.report.outcomes import Outcome
from mm.runtime import workdir
from mm.runtime.checkpoint import Checkpointer, find_step
from mm.sharding.mesh import check_batch_size


class Evaluation(NamedTuple):
    """An evaluator and when it runs: every so many steps (None: only at the end).

    of: what it evaluates, "source" and "preprocess" as the config has them, and how: "evaluator",
    all keys that it and its parts were built with.
    """

    evaluator: Any
    every_steps: int | None
    of: Mapping[str, Any]


def open_evaluations(program: Program, saved: Mapping | None = None) -> dict[str, Evaluation]:
    """Opens every group of config.evals: `source`, `preprocess`, `every_steps`, and its own keys.

    `saved` is the manifest of what the parameters were trained with. Raises BadInput for what could
    not run later: a missing data set, other shapes, a batch that does not divide, other token ids.
    """
    evaluations = {}
    for name, spec in program.recipe.evals.items():
        where = f"config.evals.{name}"
        source, preprocess, rest = open_input(spec, where)
        if not len(source):
            raise BadInput(f"{where}.source: is empty; expected one example at least")
        check_tokenizer(preprocess, program.recipe.model, saved)
        every_steps = rest.pop("every_steps", None)
        if every_steps is not None and (type(every_steps) is not int or every_steps < 1):
            raise BadInput(f"{where}.every_steps={every_steps!r}: expected a positive int or None")
        with registry.recording() as built:
            given = dict(source=source, preprocess=preprocess)
            evaluator = registry.build("evaluator", rest, where, **given)
        program.need(where, *evaluator.needs)
        if hasattr(evaluator, "check"):
            evaluator.check(program.recipe.model)
        names = [name for name in program.batch_spec if name in (evaluator.reads or [name])]
        batch = {"id": np.zeros(1, np.uint32), **example(source, preprocess)}
        check_batch(program, batch, f"{where}.preprocess", names)
        check_batch_size(f"{where}.batch_size", evaluator.batch_size, program.mesh)
        if (share := getattr(evaluator, "max_bad_share", None)) is not None:
            check_texts(source, preprocess, share)
        keys = {key.removeprefix(f"{where}."): value for key, value in built.items()}
        of = {key: spec[key] for key in ("source", "preprocess")}
        of["evaluator"] = {"name": rest["name"], **keys}
        evaluations[name] = Evaluation(evaluator, every_steps, plain(of))
    return evaluations


def run_evaluations(
    program: Program,
    state: TrainState,
    evaluations: Mapping[str, Evaluation],
    pictures: epath.Path | None = None,
    drawings: list[Callable[[], None]] | None = None,
) -> dict[str, float]:
    """Runs the given ones: {"seen/text_to_image/recall@1": 0.6, ...}.

    Each draws what it found to `<name>.png` in the directory `pictures`, if there is one, and what
    became of each example goes to `outcomes/<name>.npz`: at once, or when the caller calls what is
    then added to `drawings`.
    """
    results = {}
    model = Model(
        lambda batch: program.embed(state, batch),
        lambda batch: program.losses(state, batch),
        lambda batch: program.match(state, batch),
        program.batch_sharding,
        lambda function: partial(program.apply(function), state),
        *(() if drawings is None else (drawings.append,)),
    )
    for name, (evaluator, _, of) in evaluations.items():
        picture = None if pictures is None else pictures / f"{name}.png"
        kept: dict[str, Outcome] = {}
        found = evaluator.run(model._replace(keep=kept.update), picture)
        results |= {f"{name}/{key}": value for key, value in found.items()}
        if kept and pictures is not None:
            path = pictures / outcomes.FOLDER / f"{name}.npz"
            draw_later(model, picture, partial(outcomes.write, path, kept, of), "outcomes")
    return results


def evaluate(config: ConfigDict, directory: str, step: str = "latest") -> int:
    """`--mode=eval`: evaluates a checkpoint of a run, which may go on meanwhile.

    step: a number, "latest", or "best" by config.checkpoint.keep_best. Prints the results and
    writes them, the pictures and a page to `<directory>/eval-<step>/`. Raises BadInput when there
    is no such checkpoint, it cannot be read or it belongs to another model.
    """
    program = build_program(config)
    state, manifest = restored(program, directory, step)
    evaluations = open_evaluations(program, manifest)
    path = epath.Path(directory) / f"eval-{manifest['step']}"
    path.mkdir(exist_ok=True)
    results = run_evaluations(program, state, evaluations, path)
    if jax.process_index() == 0:
        workdir.write_json(path / "results.json", results)
        from mm.report.run import leave_page  # here, since what draws takes a second to import

        page = leave_page(directory, path)
        print(f"checkpoint of step {manifest['step']}\n{show(results)}\nwritten to {path}\n{page}")
    return 0


def restored(program: Program, directory: str, step: str) -> tuple[TrainState, dict]:
    """The state of a checkpoint of a run, and its manifest; `step` as for `evaluate`."""
    checkpointer = Checkpointer(
        epath.Path(directory) / "checkpoints",
        keep_best=program.recipe.checkpoint.get("keep_best"),
        read_only=True,
    )
    number = find_step(checkpointer, step)
    check_model(program, checkpointer.manifest(number)["config"])
    return checkpointer.restore(program.state, number)


def check_model(program: Program, trained: Mapping) -> None:
    """Raises BadInput if the weights were `trained`, a config, in another model of the same
    shapes."""
    for key, may_change in (("model", SAME_FUNCTION), ("adapt", ())):
        own = plain(getattr(program.recipe, key) or {})
        if changed := differences(own, trained.get(key) or {}, may_change):
            raise BadInput(
                f"config.{key} is not what the checkpoint was trained with: {changed}; use its "
                "config, which is in the run's workdir"
            )


def show(results: Mapping[str, float]) -> str:
    """The results as aligned lines; shares as percentages."""
    width = max(map(len, results), default=0)
    lines = []
    for key, value in results.items():
        shown = f"{100 * value:.1f}%" if is_share(key) else f"{value:g}"
        lines.append(f"  {key:<{width}}  {shown:>8}")
    return "\n".join(lines)
