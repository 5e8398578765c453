"""Prepares a data set of ours once, and checks what an earlier run left."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mm.config import BadInput

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


def main(
    command: str,
    make: str,
    description: str,
    arguments: list[str] | None = None,
    **flags: dict,
) -> int:
    """`python -m data.builders.COMMAND`, which prepares a data set under --data_dir.

    make: "data.builders.emoji.builder:Emoji". flags: more of them, each with its keywords for
    `add_argument`; the builder is made with their values. Returns 0, or 2 for wrong input.
    """
    module, _, name = make.partition(":")
    parser = argparse.ArgumentParser(
        prog=f"python -m data.builders.{command}", description=description, allow_abbrev=False
    )
    parser.add_argument(
        "--data_dir",
        help="where data sets are kept; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets",
    )
    for flag, keywords in flags.items():
        parser.add_argument(f"--{flag}", **keywords)
    given = vars(parser.parse_args(arguments))
    try:
        # TFDS takes seconds to load: only when it is needed.
        prepare(getattr(importlib.import_module(module), name), **given)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def prepare(
    make: type[tfds.core.DatasetBuilder],
    data_dir: str | os.PathLike | None = None,
    log: Callable[[str], None] = print,
    **given: str | None,
) -> tfds.core.DatasetBuilder:
    """Returns the builder, its data set prepared under `data_dir` unless it is there.

    make: a class as in `data.builders.dataset`. given: what else the class is made with. `data_dir`
    None means `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`, as in TFDS. A second call takes no
    time. Two processes that prepare into one `data_dir` wait for each other. TFDS writes into a
    folder of another name and renames it at the end, so a killed preparation leaves nothing that
    looks whole.

    Raises:
      BadInput: what the data is made of cannot be had or is damaged, the folder cannot be written,
        or a file of the prepared data set is damaged.
    """
    import tensorflow_datasets as tfds

    where = data_dir or "the default data_dir"
    try:
        builder = _open(make, data_dir, given)
        name, final = builder.name, Path(builder.data_dir)
        with _only_one(final.parent):
            if final.exists():
                builder = _open(make, data_dir, given)  # another process may have made it by now
                log(f"{name}: already prepared at {final}")
            else:
                _remove_leavings(final)
                started = time.monotonic()
                builder.log = log
                tfds.disable_progress_bar()
                builder.download_and_prepare(
                    download_config=tfds.download.DownloadConfig(try_download_gcs=False)
                )
                log(f"{name}: prepared in {time.monotonic() - started:.0f} s at {final}")
    except OSError as error:
        raise BadInput(
            f"{make.name}: cannot prepare under {where}: {error}; make room or give another "
            "--data_dir"
        ) from error
    _check_files(builder)
    counts = [f"{split} {info.num_examples}" for split, info in builder.info.splits.items()]
    log(f"{name}: {', '.join(counts)} examples")
    return builder


@contextlib.contextmanager
def _only_one(root: Path) -> Iterator[None]:
    """Holds a lock that dies with the process."""
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_leavings(final: Path) -> None:
    """Deletes TFDS's working folders of killed runs; we hold the lock, so none is in use."""
    for folder in final.parent.glob(f"incomplete.*_{final.name}"):
        shutil.rmtree(folder)


def _open(
    make: type[tfds.core.DatasetBuilder], data_dir: str | os.PathLike | None, given: dict
) -> tfds.core.DatasetBuilder:
    """The builder, with what it finds under `data_dir`; BadInput if that is damaged."""
    from google.protobuf.json_format import ParseError

    try:
        return make(data_dir=data_dir, file_format="array_record", **given)
    except (ValueError, ParseError) as error:
        raise BadInput(
            f"{make.name}: the data set under {data_dir or 'the default data_dir'} is damaged "
            f"({str(error).splitlines()[0]}); delete its folder `{make.name}` and prepare it again"
        ) from error


def _check_files(builder: tfds.core.DatasetBuilder) -> None:
    """Raises BadInput if a file is missing, cut short, or has another number of records."""
    from array_record.python.array_record_module import ArrayRecordReader

    for split in builder.info.splits.values():
        for file, expected in zip(split.filepaths, split.shard_lengths, strict=True):
            found = "no file"
            if file.exists():
                reader = ArrayRecordReader(str(file))
                found = f"{reader.num_records()} records" if reader.ok() else "a damaged file"
            if found != f"{expected} records":
                raise BadInput(
                    f"{builder.name}: {file}: expected {expected} records, found {found}; "
                    f"delete {builder.data_dir} and prepare it again"
                )
