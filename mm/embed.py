"""`--mode=embed`: the embeddings of all pairs of a source, and how well each pair goes together."""

import contextlib
import io
import itertools
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from data import files
from data.input import check_tokenizer, example
from data.loader import eval_batches
from data.preprocess import Preprocess
from data.preprocess.parse import parse
from data.sources import Source, open_source
from data.sources.guess import parse_source
from mm.config import BadInput, differences, plain
from mm.embeddings import FACTS, FORMATS, Format, is_written, read_parts, write_part
from mm.evals.pool import embedded, pool_rows
from mm.evals.retrieval import Retrieval
from mm.evaluate import restored
from mm.program import Program, build_program, check_batch
from mm.sharding.mesh import check_batch_size

_PART_ROWS = 1 << 16  # of a file, or as many more as fill its last batch


def embed(
    config: ConfigDict,
    directory: str,
    step: str = "latest",
    source: str | None = None,
    preprocess: str | None = None,
    output: str | None = None,
    format: str = "parquet",
) -> int:
    """Writes the embeddings of a source under a checkpoint of the run in `directory`.

    source: a path or a literal, as for `data.inspect`; None is config.input.source. preprocess: the
    ops; None are those of the first retrieval in config.evals, whose batch_size is taken, too.
    output: a new folder, by default `<directory>/embeddings-<step>`. It gets files of `format`,
    "parquet" or "npy" (`mm.embeddings`), with `id` (the example's number in the source), `image`
    and `text` (float32 [d], normalized) and `score`, their cosine; scores.npz with all scores, as
    `data.prepare` reads them (of a broken example NaN); and embeddings.json, which says of what
    they are. Files that are there are not made again. Raises BadInput when the folder has those of
    something else, and as `evaluate`.
    """
    if format not in FORMATS:
        raise BadInput(f"--format={format}: --mode=embed writes one of {list(FORMATS)}")
    program = build_program(config)
    program.need("--mode=embed", *Retrieval.needs)
    state, manifest = restored(program, directory, step)
    spec, ops, batch_size = _input(program, source, preprocess)
    check_tokenizer(ops, program.recipe.model, manifest)
    opened = open_source(spec, "--source")
    try:
        ops.check(opened.features)
    except BadInput as error:
        if preprocess is not None:
            raise
        raise BadInput(f"{error}; give ops for it with --preprocess (now: {ops.text})") from error
    names = [name for name in program.batch_spec if name in Retrieval.reads]
    batch = {"id": np.zeros(1, np.uint32), **example(opened, ops)}
    check_batch(program, batch, ops.where, names)
    check_batch_size("batch_size of --mode=embed", batch_size, program.mesh)
    output = output or str(epath.Path(directory) / f"embeddings-{manifest['step']}")
    _claim(
        output,
        {
            "workdir": directory,
            "step": manifest["step"],
            "source": plain(spec),
            "num_examples": len(opened),
            "preprocess": ops.text,
            "batch_size": batch_size,
            **({} if format == "parquet" else {"format": format}),
        },
    )
    _write(program, state, opened, ops, batch_size, output, format)
    if jax.process_index() == 0:
        found = _scores(output, len(opened))
        rule = {"name": "score", "path": files.join(output, "scores.npz"), "top": 0.5}
        print(
            f"{found:,} of {len(opened):,} pairs embedded in {output}; to keep the better half: "
            f"python -m data.prepare --config.rules.score='{json.dumps(rule)}' ..."
        )
    return 0


def _input(
    program: Program, source: str | None, preprocess: str | None
) -> tuple[Mapping[str, Any], Preprocess, int]:
    """The source's spec, the ops and the batch size."""
    evals = program.recipe.evals
    name = next((name for name, spec in evals.items() if spec["name"] == "retrieval"), None)
    if name is None:
        raise BadInput("--mode=embed: config.evals has no retrieval, whose batch_size it takes")
    evaluation = evals[name]
    spec = program.recipe.input["source"]
    if source is not None:
        names = {key: spec[key] for key in ("image_key", "caption_key") if key in spec}
        spec = parse_source(source, "--source", **names)
    own = evaluation["source"].get("data_dir")
    where = "--preprocess" if preprocess else f"config.evals.{name}.preprocess"
    ops = parse(preprocess or evaluation["preprocess"], where=where, data_dir=own)
    # Who is alike does not matter here, and the source need not say it.
    return spec, ops.without("group"), evaluation["batch_size"]


def _claim(output: str, facts: Mapping[str, Any]) -> None:
    """Says in the folder of what it is, or raises BadInput if it says otherwise."""
    path = files.join(output, FACTS)
    if files.exists(path):
        if changed := differences(facts, json.loads(files.read(path))):
            raise BadInput(f"{output}: has embeddings of something else: {changed}; set --output")
    elif jax.process_index() == 0:
        files.write(path, json.dumps(facts, indent=2).encode())


def _write(
    program: Program,
    state: Any,
    source: Source,
    ops: Preprocess,
    batch_size: int,
    output: str,
    format: Format,
) -> None:
    """The files that are not there yet."""
    each = -(-_PART_ROWS // batch_size)  # batches
    count = -(-len(source) // (each * batch_size))
    done = next((part for part in range(count) if not is_written(output, part, format)), count)
    if jax.process_count() > 1:  # the first may have written one more meanwhile
        done = int(multihost_utils.broadcast_one_to_all(np.int32(done)))
    if done == count:
        return
    batches = eval_batches(
        source,
        ops,
        batch_size=batch_size,
        sharding=program.batch_sharding,
        start_step=done * each,
        max_bad_share=1.0,
    )
    with contextlib.closing(batches):
        for part in range(done, count):
            some = itertools.islice(batches, each)
            rows = pool_rows(
                embedded(lambda batch: program.embed(state, batch)), some, program.mesh
            )
            if jax.process_index() == 0:
                columns = {"id": rows["id"], "image": rows["zimg"], "text": rows["ztxt"]}
                columns["score"] = np.sum(rows["zimg"] * rows["ztxt"], axis=1)
                write_part(output, part, format, columns)
                print(f"{part + 1} of {count} files written", flush=True)


def _scores(output: str, num_examples: int) -> int:
    """Writes scores.npz; returns how many are of whole examples."""
    scores, found = np.full(num_examples, np.nan, np.float32), 0
    for ids, some in read_parts(output, ["id", "score"]):
        scores[ids] = some
        found += len(ids)
    buffer = io.BytesIO()
    np.savez(buffer, id=np.arange(num_examples), score=scores, num_examples=num_examples)
    files.write(files.join(output, "scores.npz"), buffer.getvalue())
    return found
