"""The workdir of a run, as a model: its parameters and what its manifest says. It only comes in."""

import contextlib
import functools
import logging
import operator
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from data import files
from data.tokenizers import DATA_DIR, same_ids
from mm import registry
from mm.adapt import fold
from mm.config import BadInput
from mm.interop import facts
from mm.interop.bundle import Bundle
from mm.interop.json_files import read_json
from mm.optim.paths import flatten
from mm.runtime.checkpoint import Checkpointer, find_step

_PLACES = {"trained": ("params",), "average": ("extras", "teacher")}  # in a checkpoint


@registry.register("import_format", "run")
def read(
    path: str,
    step: str = "latest",
    weights: str | None = None,
    preprocess: str | None = None,
) -> Bundle:
    """A checkpoint of a run; neither its mesh nor its data are needed.

    step: a number, "latest", or "best" by config.checkpoint.keep_best. weights: "trained", or
    "average" of a run with config.teacher.name="average"; by default those that it evaluates, so
    that `metrics` are theirs. preprocess: ops, by default those of the first retrieval in
    config.evals. The manifest has `step`, `weights`, `metrics` of that step and `trained`: when and
    with what. What config.adapt added is merged into the weights, where that can be.
    Raises BadInput where there is no such checkpoint, or it has no average.
    """
    directory = epath.Path(path)
    with _opened(directory) as checkpointer:
        number = find_step(checkpointer, step)
        saved = checkpointer.manifest(number)
        number, config = saved["step"], saved["config"]
        evaluated = find_weights(config, None, path)
        weights = find_weights(config, weights, path)
        params = _parameters(checkpointer, number, weights)
        metrics = checkpointer.metrics(number)
    metrics |= _results(directory, number, config)
    if weights != evaluated:
        metrics = {}  # they are of the others
    manifest = {
        "step": number,
        "weights": weights,
        "metrics": metrics,
        "examples_seen": number * config["global_batch_size"],
        "trained": _environment(directory) | {"version": saved.get("version")},
        "source": _described(config["input"]["source"]),
    }
    params, left = fold(params, config.get("adapt") or {})
    bundle = Bundle(
        config["model"], params, manifest, saved["tokenizer_json"], config["objectives"], left
    )
    ops = preprocess or facts.evaluation_ops(config)
    if ops is None:
        return bundle
    where = "preprocess" if preprocess else "config.evals"
    bundle = facts.with_ops(bundle, ops, where)
    if not same_ids(bundle.manifest.get("text", {}), saved["tokenizer"] or {}):
        raise BadInput(
            f"{where}: tokenize has other settings than the run was trained with; give ops with "
            "the same eos, bos, pad_id, lowercase and clean, as preprocess"
        )
    return bundle


@contextlib.contextmanager
def _opened(directory: epath.Path) -> Iterator[Checkpointer]:
    path, keep_best = directory / "config.json", None
    if path.exists():  # it says what is best
        keep_best = read_json(path)["checkpoint"].get("keep_best")
    logger = logging.getLogger("absl")  # orbax reports each of its decisions
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.closing(
            Checkpointer(directory / "checkpoints", keep_best=keep_best, read_only=True)
        ) as checkpointer:
            yield checkpointer
    finally:
        logger.setLevel(level)


def find_weights(config: Mapping, weights: str | None, path: str) -> str:
    """Which weights of a run are meant, "trained" or "average": of None those that it evaluates.

    Raises BadInput for others, and for an average that the run does not keep.
    """
    teacher = config.get("teacher") or {}
    if weights is None:
        return "average" if teacher.get("evaluate") else "trained"
    if weights not in _PLACES:
        raise BadInput(f"weights={weights!r}: expected 'trained' or 'average'")
    if weights == "average" and teacher.get("name") != "average":
        raise BadInput(
            f"weights=average: the run in {path} keeps no average of its parameters "
            "(config.teacher=dict(name='average', ...) does)"
        )
    return weights


def saved_weights(state: Mapping, weights: str) -> Any:
    """The tree of these weights in that of a checkpoint."""
    return functools.reduce(operator.getitem, _PLACES[weights], state)


def at_weights(tree: Any, weights: str) -> dict:
    """A tree of a checkpoint that has these weights alone."""
    return functools.reduce(lambda found, key: {key: found}, reversed(_PLACES[weights]), tree)


def _parameters(checkpointer: Checkpointer, step: int, weights: str) -> dict[str, np.ndarray]:
    """By path, on the host."""
    here = jax.sharding.SingleDeviceSharding(_cpu())
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        saved_weights(checkpointer.arrays(step), weights),
    )
    found, _ = checkpointer.restore(at_weights(wanted, weights), step, partial=True)
    found = saved_weights(found, weights)
    return {name: np.asarray(leaf) for name, leaf in flatten(found).items()}


def _cpu() -> jax.Device:
    """The host's, where there is one: weights may be larger than an accelerator's memory."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS left it out
        return jax.local_devices()[0]


def _results(directory: epath.Path, step: int, config: Mapping) -> dict[str, float]:
    """Of evaluations that wrote files: that of the end, and those of `--mode=eval`."""
    paths = [directory / f"eval-{step}" / "results.json"]
    if step == config["total_steps"]:
        paths.insert(0, directory / "results.json")
    found: dict[str, float] = {}
    for path in paths:
        if path.exists():
            found |= read_json(path)
    return found


def _environment(directory: epath.Path) -> dict[str, Any]:
    path = directory / "environment.json"
    if not path.exists():
        return {}
    found = read_json(path)
    return {key: found[key] for key in ("time", "git", "devices", "packages") if key in found}


def _described(source: Mapping) -> dict[str, Any]:
    """What may be said of a source to everybody, not where it lies on this machine.

    With the licences that the description of a data set names, if it is at hand.
    """
    found = {key: source[key] for key in ("name", "dataset", "split") if key in source}
    if "dataset" in source:
        folder = files.join(
            os.path.expanduser(source.get("data_dir") or DATA_DIR), source["dataset"]
        )
        with contextlib.suppress(BadInput):  # it need not be here
            for path in files.expand(files.join(folder, "*/dataset_info.json")):
                info = read_json(path)
                if licence := info.get("redistributionInfo", {}).get("license"):
                    found["licence"] = licence
    return found
