"""Prepares the `emoji` data set once, and checks what an earlier run left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mm.config import BadInput

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


def prepare(
    data_dir: str | os.PathLike | None = None, log: Callable[[str], None] = print
) -> tfds.core.DatasetBuilder:
    """Returns the builder of the `emoji` data set, prepared under `data_dir` unless it is there.

    `data_dir` None means `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`, as in TFDS. Takes about
    40 s on one core; a second call takes no time. Two processes that prepare into one `data_dir`
    wait for each other. TFDS writes into a folder of another name and renames it at the end, and
    so does the installation, so a killed preparation leaves nothing that looks whole.

    Raises:
      BadInput: a package cannot be installed or is damaged, the folder cannot be written, or a
        file of the prepared data set is damaged.
    """
    import tensorflow_datasets as tfds  # seconds: only when it is needed

    from data.builders.emoji.builder import Emoji

    try:
        builder = _open(Emoji, data_dir)
        final = Path(builder.data_dir)
        with _only_one(final.parent):
            if final.exists():
                builder = _open(Emoji, data_dir)  # another process may have made it by now
                log(f"emoji: already prepared at {final}")
            else:
                _remove_leavings(final)
                started = time.monotonic()
                builder.log = log
                tfds.disable_progress_bar()
                builder.download_and_prepare(
                    download_config=tfds.download.DownloadConfig(try_download_gcs=False)
                )
                log(f"emoji: prepared in {time.monotonic() - started:.0f} s at {final}")
                log(f"emoji: every icon that was not joined is in {final / 'metadata.json'}")
    except OSError as error:
        raise BadInput(
            f"emoji: cannot prepare under {data_dir or 'the default data_dir'}: {error}; "
            "make room or give another --data_dir"
        ) from error
    _check_files(builder)
    counts = [f"{name} {split.num_examples}" for name, split in builder.info.splits.items()]
    log(f"emoji: {', '.join(counts)} examples")
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
    builder: type[tfds.core.DatasetBuilder], data_dir: str | os.PathLike | None
) -> tfds.core.DatasetBuilder:
    """The builder, with what it finds under `data_dir`; BadInput if that is damaged."""
    from google.protobuf.json_format import ParseError

    try:
        return builder(data_dir=data_dir, file_format="array_record")
    except (ValueError, ParseError) as error:
        raise BadInput(
            f"emoji: the data set under {data_dir or 'the default data_dir'} is damaged "
            f"({str(error).splitlines()[0]}); delete its folder `{builder.name}` "
            "and prepare it again"
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
                    f"emoji: {file}: expected {expected} records, found {found}; "
                    f"delete {builder.data_dir} and prepare it again"
                )
