"""One run of the pipeline: what is there already, Beam and its runner, and the last files."""

import argparse
import contextlib
import fcntl
import importlib.util
import io
import json
import logging
import os
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from data import files
from data.prepare import store
from data.prepare.job import open_job
from data.prepare.scan import blocks
from mm.config import BadInput, differences, suggest

_PROGRESS_SECONDS = 20.0
FORMAT = 1  # of the work folder and the manifest; a run does not go on with another's
_ROOT = Path(__file__).resolve().parents[2]
# The runner that works in this process. DirectRunner would choose between it and one that is
# downloaded.
LOCAL_RUNNER = "FnApiRunner"
# How workers' errors reach us, on any runner: as text.
_SAID = re.compile(
    r"^(?:[\w.]+\.)?(?:Bad(?:Input|Example)|(?:Read|Missing)Error): "
    r"(.*?)(?: \[while running .*\])?$",
    re.M,
)


def prepare(config: Mapping[str, Any], output: str, beam_flags: Sequence[str] = ()) -> None:
    """Prepares `config` into the folder `output`, or goes on with what a killed run left.

    Raises BadInput when the config, a flag or the source is wrong, when the folder holds something
    else, and when it cannot be written to.
    """
    with _indexes_in(output):
        _prepare(config, output, beam_flags)


def _prepare(config: Mapping[str, Any], output: str, beam_flags: Sequence[str]) -> None:
    find_beam()
    from data.prepare import shards

    job = open_job(config)
    if job.output.format == "array_record":
        shards.dataset_name(output)
    shards.check_features(job)
    options = _options(beam_flags)
    given = {"format": FORMAT, "num_examples": len(job.source), "config": dict(config)}
    if _is_done(output, given):
        print(f"{output}: is prepared already, as this config says")
        store.remove_work(output)  # indexes of the source, looked for once more
        return
    if others := [name for name in store.names(output) if name != store.WORK]:
        if not files.exists(_job_path(output)):
            raise BadInput(
                f"--output={output}: has {others[:3]} in it; expected a new or empty folder"
            )
    begin = time.monotonic()
    with _only_one(output):
        _begin(output, given)
        _run(options, json.dumps(config, sort_keys=True), output, len(job.source))
        _finish(job, output, given)
    seconds = time.monotonic() - begin
    print(f"{len(job.source):,} examples in {seconds:.0f} s, {len(job.source) / seconds:,.0f}/s")
    print(_how_to_read(job, output))


@contextlib.contextmanager
def _indexes_in(output: str) -> Iterator[None]:
    """What is where in tar shards is written there and nowhere else, by processes of Beam, too."""
    given = "MM_INDEX_DIR" in os.environ
    os.environ.setdefault("MM_INDEX_DIR", files.join(_work(output), "index"))
    try:
        yield
    finally:
        if not given:
            del os.environ["MM_INDEX_DIR"]


def find_beam() -> None:
    """Makes Beam importable, here and in processes that Beam starts.

    It has a folder of its own, since it asks for older versions of packages that it hardly uses.
    """
    folder = Path(sys.prefix) / "prepare"
    if not importlib.util.find_spec("apache_beam"):
        if not (folder / "apache_beam").is_dir():
            raise BadInput(f"needs Apache Beam: `make prepare-tools` puts it into {folder}")
        sys.path.append(str(folder))
    paths = [str(_ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(":")), str(folder)]
    os.environ["PYTHONPATH"] = ":".join(dict.fromkeys(paths))
    logging.disable(logging.WARNING)  # Beam warns of Google Cloud's packages, needed or not
    import apache_beam  # noqa: F401

    logging.disable(logging.NOTSET)
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)  # what goes wrong, is raised too


def _options(flags: Sequence[str]) -> Any:
    """Beam's options. Raises BadInput on a flag that no part of Beam knows: it would ignore it."""
    from apache_beam.options.pipeline_options import PipelineOptions

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for part in PipelineOptions.__subclasses__():
        part._add_argparse_args(parser)
    known = [name for action in parser._actions for name in action.option_strings]
    found, unknown = parser.parse_known_args(list(flags))
    if unknown:
        near = suggest(unknown[0].split("=")[0], [*known, "--config", "--output"])
        raise BadInput(f"{unknown[0]}: no such flag, here or of Apache Beam{near}")
    flags = list(flags)
    if found.runner is None:
        flags.append(f"--runner={LOCAL_RUNNER}")
        if not any(flag.startswith("--direct_num_workers") for flag in flags):
            flags.append(f"--direct_num_workers={os.cpu_count()}")
        if not any(flag.startswith("--direct_running_mode") for flag in flags):
            flags.append("--direct_running_mode=multi_threading")
    return PipelineOptions(flags)


def _is_done(output: str, given: Mapping[str, Any]) -> bool:
    path = files.join(output, "manifest.json")
    if not files.exists(path):
        return False
    found = json.loads(files.read(path))
    _check_same(output, given, {key: found.get(key) for key in given})
    return True


def _begin(output: str, given: Mapping[str, Any]) -> None:
    """Makes the work folder, or checks that what is in it belongs to this config."""
    if files.exists(path := _job_path(output)):
        _check_same(output, given, json.loads(files.read(path)))
        store.remove_half_files(output)
    else:
        store.write(path, json.dumps(given).encode(), output)


def _job_path(output: str) -> str:
    return files.join(_work(output), "job.json")


def _work(output: str) -> str:
    return files.join(output, store.WORK)


def _check_same(output: str, given: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    if changed := differences(given, found):
        raise BadInput(
            f"--output={output}: was begun with another config: {changed}; give that one, or "
            "another folder"
        )


@contextlib.contextmanager
def _only_one(output: str) -> Iterator[None]:
    """Holds a lock that dies with the process; remote folders have none."""
    if files.is_remote(output):
        yield
        return
    folder = _work(output)
    try:
        os.makedirs(folder, exist_ok=True)
        file = open(files.join(folder, "lock"), "w")
    except OSError as error:
        raise BadInput(f"--output={output}: cannot be written ({error.strerror})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(f"--output={output}: another run is writing to it") from error
        yield


def _run(options: Any, config: str, output: str, num_examples: int) -> None:
    import apache_beam as beam

    from data.prepare.pipeline import Run, build

    quiet = contextlib.redirect_stderr(_WithoutTracebacks(sys.stderr))
    try:
        with quiet, _temporary_files_in(output), _progress(output, len(blocks(num_examples))):
            pipeline = beam.Pipeline(options=options)
            build(pipeline, Run(config, output, num_examples))
            pipeline.run().wait_until_finish()
    except Exception as error:  # runners raise all kinds; a worker's BadInput is text within
        if said := _SAID.findall(str(error)):
            raise BadInput(said[-1]) from error
        # DataflowRunner wants apache_beam[gcp], and flags of its own.
        if isinstance(error, ImportError) or str(error).startswith("Pipeline has validations"):
            runner = options.get_all_options()["runner"]
            raise BadInput(f"--runner={runner}: {' '.join(str(error).split())}") from error
        raise


@contextlib.contextmanager
def _temporary_files_in(output: str) -> Iterator[None]:
    """Those of Beam, here and in its processes."""
    before = os.environ.get("TMPDIR"), tempfile.tempdir
    with store.temporary_folder(output) as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before[1]
            os.environ.pop("TMPDIR")
            if before[0] is not None:
                os.environ["TMPDIR"] = before[0]


@contextlib.contextmanager
def _progress(output: str, num_blocks: int) -> Iterator[None]:
    """Says now and then how far it is, by the files that there are: workers may be anywhere."""
    done = threading.Event()

    def report() -> None:
        while not done.wait(_PROGRESS_SECONDS):
            found = Counter(name.split("-")[0] for name in store.names(_work(output)))
            looked, written = found["scan"], found["shard"]
            print(f"{looked:,} of {num_blocks:,} blocks looked at, {written:,} shards written")

    thread = threading.Thread(target=report, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class _WithoutTracebacks(io.TextIOBase):
    """Beam's workers print what they also send, and we raise."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        if "[while running '" not in text:
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


def _finish(job: Any, output: str, given: Mapping[str, Any]) -> None:
    """Metadata, report and, last, the manifest: where it is, all is."""
    from data.prepare import report, shards

    part = json.loads(files.read(files.join(_work(output), "report.json")))
    found = report.report(part, len(job.source))
    text = report.markdown(found, output.rstrip("/").rsplit("/", 1)[-1])
    store.write(files.join(output, "report.md"), text.encode(), output)
    store.write(files.join(output, "report.json"), json.dumps(found, indent=1).encode(), output)
    print(text.split("\n| shorter side")[0].split("\n", 2)[2])
    if not found["kept"]:
        raise BadInput(f"all {len(job.source):,} examples are dropped; see {output}/report.md")
    entries = shards.finish(job, output, found["kept"])
    manifest = json.dumps(dict(given) | {"shards": entries}, indent=1).encode()
    store.write(files.join(output, "manifest.json"), manifest, output)
    store.remove_work(output)


def _how_to_read(job: Any, output: str) -> str:
    if job.output.format == "tar":
        spec = {"name": "webdataset", "path": f"{output}/{job.output.split}-*.tar"}
    else:
        folder, name = os.path.split(output.rstrip("/"))
        spec = {"name": "tfds", "dataset": name, "split": job.output.split, "data_dir": folder}
    return f"read it with config.input.source = {spec}"
