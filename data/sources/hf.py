"""Data sets that Hugging Face's `datasets` saved with `save_to_disk`, without that package.

The Arrow files are mapped, those far away as copies that end with the process: in memory is what
the system keeps of them, and 1 kB for each column of a record batch (1,000 rows, as `datasets`
writes them, or 100 pictures).
"""

import json
from typing import Any

import pyarrow as pa

from data import files
from data.sources import Source
from data.sources.arrow import Groups
from data.sources.table import open_table
from mm import registry
from mm.config import BadInput, suggest


@registry.register("source", "hf")
def hf(
    *,
    path: str,
    split: str | None = None,
    image_key: str | None = "image",
    caption_key: str | None = "caption",
    first: float = 0.0,
    last: float = 1.0,
) -> Source:
    """The rows from the share `first` of all to the share `last`, as in `jsonl`.

    path: the folder; what is far away is copied to this machine's disk. split: of a DatasetDict,
    which has one data set for each. image_key, caption_key: the columns that become `image` (Image,
    or a path) and `caption`; image_key=None: there are no pictures. ClassLabel is the name of the
    class; of other features, those that are no numbers, texts or lists of them are left out. Raises
    BadInput when it is no such folder, or a column is not there.
    """
    (path,) = files.expand(path)
    rows = _batches(_split(path, split))
    given = dict(image_key=image_key, caption_key=caption_key, first=first, last=last)
    return open_table(rows, **given)


def _split(path: str, split: str | None) -> str:
    """The folder of one data set."""
    try:
        have = _json(files.join(path, "dataset_dict.json"))["splits"]
    except files.MissingError:
        if split is None:
            return path
        raise BadInput(
            f"{path}: is one data set, without splits; leave split={split!r} out"
        ) from None
    if split not in have:
        near = suggest(split, have) if split else ""
        raise BadInput(f"{path}: split={split!r}: expected one of {have}{near}")
    return files.join(path, split)


def _json(path: str) -> dict[str, Any]:
    try:
        return json.loads(files.read(path))
    except ValueError as error:
        raise BadInput(f"{path}: is no JSON ({error})") from error


def _batches(folder: str) -> Groups:
    try:
        state = _json(files.join(folder, "state.json"))
    except files.MissingError as error:
        raise BadInput(
            f"{folder}: is no data set that `datasets` saved with save_to_disk ({error})"
        ) from error
    if state.get("_indices_data_files"):
        raise BadInput(
            f"{folder}: was saved with indices by an old version of `datasets`; load it and save "
            "it again"
        )
    names = [entry["filename"] for entry in state["_data_files"]]
    paths = [files.join(folder, name) for name in names]
    tables = [_mapped(path) for path in paths]
    batches = [(path, b) for path, t in zip(paths, tables, strict=True) for b in t.to_batches()]
    if not sum(batch.num_rows for _, batch in batches):
        raise BadInput(f"{folder}: is empty; expected rows")
    return Groups(
        tables[0].schema,
        [batch.num_rows for _, batch in batches],
        lambda number, _: batches[number][1],
        [path for path, _ in batches],
        files.parent,
    )


def _mapped(path: str) -> pa.Table:
    files.size(path)  # whether it is there
    try:
        return pa.ipc.open_stream(pa.memory_map(files.local_copy(path))).read_all()
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path}: is no stream of Arrow batches ({error})") from error
