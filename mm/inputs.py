"""The data of a run: opened, and held against the program and the other processes."""

from collections.abc import Mapping

import jax
import numpy as np

from data.input import Input, check_tokenizer, example, manifest, open_input
from data.preprocess import Preprocess
from data.tokenizers import Tokenizer
from mm.config import BadInput
from mm.evaluate import Evaluation, open_evaluations
from mm.program import Program, check_batch
from mm.runtime.input_log import check_alike


def open_all(program: Program) -> tuple[Input, Mapping[str, Evaluation]]:
    """config.input and config.evals. Raises BadInput for all that could not run later."""
    opened = open_input(program.recipe.input, "config.input")
    facts = [len(opened.source), sorted(opened.source.features), sha256(opened.last)]
    check_alike("config.input", facts)
    check_phases(program, opened)
    evaluations = open_evaluations(program, manifest(opened.source, opened.last))
    for name, evaluation in evaluations.items():
        check_alike(f"config.evals.{name}", len(evaluation.evaluator.source))
    return opened, evaluations


def check_phases(program: Program, opened: Input) -> None:
    """Raises BadInput if a batch, of any phase of config.input, is not one that a step can take."""
    rows, sharding = program.recipe.global_batch_size, program.batch_sharding
    spans = [("config.input.preprocess", opened.preprocess)]
    spans += [(ops.where, ops) for _, ops in opened.rest.get("phases", ())]
    for where, ops in spans:
        made = {"id": np.zeros(1, np.uint32), **example(opened.source, ops)}
        made.setdefault("group", np.zeros(1, np.int32))
        batch = {
            name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=sharding)
            for name, x in made.items()
        }
        check_batch(program, batch, where, program.batch_spec, any_size=len(spans) > 1)
        check_tokenizer(ops, program.recipe.model)
        if sha256(ops) != sha256(opened.preprocess):
            raise BadInput(f"{where}: has another tokenizer than the ops before; use one for all")
        if len(spans) > 1:
            jax.eval_shape(program.train_step, program.state, batch)


def sha256(ops: Preprocess) -> str | None:
    """That of the tokenizer."""
    return ops.tokenizer and ops.tokenizer.manifest()["sha256"]


def counting_tokenizers(opened: Input) -> list[tuple[int, Tokenizer]]:
    """Of each phase its first step, and the tokenizer, which counts here what it cuts.

    None with a service, where others count.
    """
    if opened.rest.get("service"):
        return []
    spans = [(0, opened.preprocess), *opened.rest.get("phases", ())]
    return [(first, ops.tokenizer) for first, ops in spans if ops.tokenizer]
