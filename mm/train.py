"""The training loop: one for every model and objective."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from etils import epath
from ml_collections import ConfigDict

import mm
from data.input import check_source, check_tokenizer
from data.input import manifest as data_manifest
from data.loader import train_batches
from mm import registry
from mm.assembly import Batch, TrainState
from mm.config import BadInput, plain, suggest
from mm.evaluate import Evaluation, run_evaluations, show
from mm.inputs import counting_tokenizers, open_all
from mm.program import Program, build_program
from mm.runtime import preemption, workdir
from mm.runtime.checkpoint import Checkpointer
from mm.runtime.goodput import Goodput
from mm.runtime.input_log import InputLog
from mm.runtime.memory import memory, step_memory
from mm.runtime.metrics import MetricsWriter
from mm.runtime.progress import Progress
from mm.start import first_state, layout, say, write_start

# What may differ when a run is continued: it changes neither a batch nor what is computed from it.
MAY_CHANGE = (
    "log", "checkpoint", "evals", "sharding", "pod", "accumulation_steps", "input.num_workers",
    "input.prefetch", "input.max_bad_share", "input.profile",
    "input.service", "input.source.index_dir", "input.source.cache_mib",
)  # fmt: skip


class Run(NamedTuple):
    """What the loop works with; see `train`, which opens and closes it all."""

    directory: epath.Path
    program: Program
    start_step: int
    batches: Iterator[Batch]
    input_log: InputLog
    evaluations: Mapping[str, Evaluation]
    logging: "Logging"
    checkpointer: Checkpointer
    manifest: Mapping
    writer: MetricsWriter
    progress: Progress
    goodput: Goodput
    signals: preemption.StopSignals
    drawings: list[Callable[[], None]]  # for when all is saved
    sizes: dict[str, float]  # what the first step tells of all


def train(config: ConfigDict, directory: str, origin: Mapping | None = None) -> int:
    """Trains to the end of the config, from the latest checkpoint in `directory` if there is one.

    origin: the "name" of the recipe and its "config" before any key was set; kept for the run's
    page.

    Returns 0, or preemption.PREEMPTED when stopped by SIGTERM with the state saved. Raises BadInput
    before the first step for every mistake that can be known by then, and FloatingPointError when
    the loss is no longer finite.
    """
    path = epath.Path(directory)
    with contextlib.ExitStack() as stack:
        program = build_program(config)
        recipe = program.recipe
        logging = registry.call(Logging, recipe.log, "config.log")
        if logging.gradients_every_steps and recipe.accumulation_steps > 1:
            raise BadInput(
                "config.log.gradients_every_steps: compares gradients of a whole batch at once; "
                "set it to None, or config.accumulation_steps=1"
            )
        # What only shows when a step is traced is refused before anything is opened.
        jax.eval_shape(program.train_step, program.state, program.batch_spec)
        opened, evaluations = open_all(program)
        source, preprocess, loading = opened
        check_best(recipe.checkpoint, recipe.evals)
        if jax.process_index() == 0:
            stack.enter_context(workdir.lock(directory))
            if not has_begun(path):
                (path / "config.json").unlink(missing_ok=True)  # of a start that was refused
            workdir.check_config(directory, config, MAY_CHANGE)
        # Closed after all the rest: a second signal must not kill the last save.
        signals = preemption.StopSignals()
        stack.callback(signals.close)
        checkpointer = registry.call(
            Checkpointer, recipe.checkpoint, "config.checkpoint", directory=path / "checkpoints"
        )
        stack.callback(checkpointer.close)
        state, start_step, saved = first_state(program, checkpointer)
        check_source(source, "config.input.source", saved)
        check_tokenizer(preprocess, recipe.model, saved)
        manifest = {"version": mm.__version__, "config": plain(config)}
        manifest |= data_manifest(source, opened.last) | layout(program)
        write_start(program, path, manifest, origin)
        if recipe.global_batch_size > len(source):
            say(
                f"note: a batch of {recipe.global_batch_size:,} is more than the {len(source):,} "
                "examples there are, so each is in it several times"
            )
        batches = registry.call(
            train_batches,
            loading,
            "config.input",
            source=source,
            preprocess=preprocess,
            global_batch_size=recipe.global_batch_size,
            seed=recipe.seed,
            sharding=program.batch_sharding,
            start_step=start_step,
            # Each process counts its own; the sum of all before goes on in the first.
            bad_examples=saved.get("bad_examples", {}) if jax.process_index() == 0 else {},
        )
        stack.callback(batches.close)
        writer = MetricsWriter(directory, start_step)
        stack.callback(writer.close)
        progress = Progress(recipe.total_steps, recipe.global_batch_size, start_step=start_step)
        stack.callback(progress.close)
        input_log = InputLog(batches, start_step, progress.message, counting_tokenizers(opened))
        goodput = Goodput(path / "goodput.json" if jax.process_index() == 0 else None, start_step)
        stack.callback(goodput.write)
        run = Run(
            path, program, start_step, batches, input_log, evaluations, logging, checkpointer,
            manifest, writer, progress, goodput, signals, [], {},
        )  # fmt: skip
        try:
            state, results, stopped = loop(run, state)
        except Exception:
            goodput.write()
            leave_page(path)
            raise
        if stopped:
            goodput.end("stopped")
            say(f"stopped; saved in {directory}: the same command continues")
            leave_page(path)
            return preemption.PREEMPTED
        finish(run, state, results)
        return 0


def finish(run: Run, state: TrainState, results: dict[str, float]) -> None:
    """Evaluates, if the last step did not; leaves results, then pictures, then the page."""
    total_steps = run.program.recipe.total_steps
    # A run that was complete at its start is evaluated again: its evals may have changed.
    results = results or run_evaluations(
        run.program, state, run.evaluations, run.directory, run.drawings
    )
    if total_steps == run.start_step == 0:
        # What it began with, a soup perhaps.
        run.checkpointer.save(0, state, run.manifest, results)
    if jax.process_index() == 0:
        workdir.write_json(run.directory / "results.json", results)
    run.checkpointer.wait()
    with run.goodput.spend("evaluate"):
        for draw in run.drawings:
            draw()
    run.goodput.end("finished")
    tell_results(run.directory, results)


def loop(run: Run, state: TrainState) -> tuple[TrainState, dict[str, float], bool]:
    """Steps, logs, evaluates and saves.

    Returns (state, results of the last step if this call made it, whether it was told to stop).
    """
    results: dict[str, float] = {}
    total_steps = run.program.recipe.total_steps
    previous: tuple[int, Mapping[str, Any]] | None = None
    for step in range(run.start_step + 1, total_steps + 1):
        with run.progress.data_wait(), run.goodput.spend("data"):
            batch = next(run.batches)
        every = run.logging.gradients_every_steps
        compared = run.program.compare(state, batch) if every and step % every == 0 else {}
        state, metrics = run.program.train_step(state, batch)
        metrics |= compared
        if step == run.start_step + 1:  # of what has just been compiled, so nothing is again
            run.sizes.update(step_memory(run.program.train_step.lower(run.program.state, batch)))
        # While the device works on this step, the one before is waited for and logged: the device
        # never idles for the host, and the host is never more than one step ahead.
        if previous is not None:
            log(run, *previous)
        previous = step, metrics
        stop, last = run.signals.stop_requested(step), step == total_steps
        due = {
            name: evaluation
            for name, evaluation in run.evaluations.items()
            if last or (evaluation.every_steps and step % evaluation.every_steps == 0)
        }
        if stop and not last:
            due = {}  # whoever stops a job gives it seconds, not minutes: save first
        if due or last or stop or run.checkpointer.due(step):
            jax.block_until_ready(metrics)
            with run.progress.pause():
                pictures = run.directory if last else None
                with run.goodput.spend("evaluate"):
                    results = run_evaluations(run.program, state, due, pictures, run.drawings)
                log(run, step, metrics, results)
                previous = None
                if last or stop or run.checkpointer.due(step):
                    with run.goodput.spend("save"):
                        run.writer.sync()  # a checkpoint is never ahead of the log
                        bad = {"bad_examples": run.input_log.bad_examples()}
                        run.checkpointer.save(step, state, run.manifest | bad, results)
                    run.goodput.write()
        if stop and not last:
            return state, {}, True
    return state, results, False


def log(run: Run, step: int, metrics: Mapping[str, Any], results: Mapping = {}) -> None:
    """Waits for `step`; writes its line if one is due, or if it was evaluated."""
    loss = float(metrics["loss"])
    run.progress.step(step, loss)
    run.goodput.step(step)
    turns = run.program.turns
    off = set(run.program.recipe.objectives) - set(turns.groups[turns.index(step - 1)])
    metrics = {key: x for key, x in metrics.items() if key.split("/")[0] not in off}
    if step % run.logging.every_steps == 0 or results:
        rates = run.progress.rates()
        times = run.input_log.metrics(step, rates.get("data_wait_fraction"))
        run.writer.write(step, {**metrics, **rates, **times, **memory(), **run.sizes, **results})
    if results and step < run.program.recipe.total_steps:  # the last ones are shown at the end
        run.progress.message(f"step {step}\n{show(results)}")
    # The update, too: a finite loss may have gradients that are not, and they must not be saved.
    if not math.isfinite(loss + float(metrics["update_norm"])):
        saved = run.checkpointer.latest_step()
        raise FloatingPointError(
            f"the loss of step {step} is {loss}, its update {float(metrics['update_norm'])}; the "
            f"last checkpoint is of step {saved}: look at metrics.jsonl, then start in a new "
            f"--workdir with a lower config.optimizer.learning_rate or a longer warm-up"
        )


def leave_page(path: epath.Path) -> None:
    """Writes the run's page, also of one that was stopped or failed, and says where it is."""
    if jax.process_index() == 0:
        from mm.report import run as report  # here, since what draws takes a second to import

        say(report.leave_page(path))


def tell_results(path: epath.Path, results: Mapping[str, float]) -> None:
    """What the final evaluation found, and where all of it is."""
    if jax.process_index() != 0:
        return
    pictures = sorted(str(picture) for picture in path.glob("*.png"))
    lines = [f"results of the last step, in {path / 'results.json'}:", show(results)]
    lines += [f"what was retrieved: {' '.join(pictures)}"] if pictures else []
    lines += [f"every logged step: {path / 'metrics.jsonl'}; curves: tensorboard --logdir={path}"]
    say("\n".join(lines))
    leave_page(path)


def has_begun(path: epath.Path) -> bool:
    """Whether a run left a line or a checkpoint in this workdir, which then is of its config."""
    lines = path / "metrics.jsonl"
    return (lines.exists() and lines.stat().length > 0) or any(
        (path / "checkpoints").glob("[0-9]*")
    )


def check_best(checkpoint: Mapping, evals: Mapping) -> None:
    """Raises BadInput when config.checkpoint.keep_best is a metric that no evaluation gives."""
    best = checkpoint.get("keep_best")
    if best is not None and str(best).split("/")[0] not in evals:
        raise BadInput(
            f"config.checkpoint.keep_best={best!r}: no such evaluation in config.evals "
            f"({sorted(evals)}){suggest(str(best), [f'{name}/' for name in evals])}; set it to one "
            "of their metrics or to None"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logging:
    """config.log: a line in metrics.jsonl every so many steps.

    gradients_every_steps: how often to compute the gradient of each objective for itself, for their
    norms and cosines (None: never).
    """

    every_steps: int
    gradients_every_steps: int | None = None

    def __post_init__(self):
        if self.every_steps < 1:
            raise BadInput(f"every_steps={self.every_steps} must be at least 1")
        more = self.gradients_every_steps
        if more is not None and (more < 1 or more % self.every_steps):
            raise BadInput(
                f"gradients_every_steps={more} must be a multiple of every_steps={self.every_steps}"
            )
