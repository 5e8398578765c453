"""Which source reads a path: by how it ends, or by what is in the folder."""

import ast
import os
import re
from collections.abc import Mapping
from typing import Any

from data import files
from mm.config import BadInput

ENDINGS = {
    ".tar": "webdataset",
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "coco",
    ".token": "flickr30k",
    ".tfrecord": "tfrecord",
    ".txt": "text",
}
COLUMNS = ("jsonl", "csv", "parquet", "hf", "webdataset")  # sources whose names may be others
_VERSION = re.compile(r"/\d+\.\d+\.\d+$")
# Of these a folder may hold many; a .json or .txt beside others says nothing.
_MANY = (".tar", ".parquet", ".jsonl", ".csv", ".tsv", ".tfrecord")


def guess(path: str) -> dict[str, Any]:
    """The spec of the source that reads a file, a pattern of files or a folder, near or far.

    A folder that TFDS has written (NAME/VERSION, or its NAME with one version) is read as its split
    `train`, as is what Hugging Face's `datasets` saved of several; one of shards or tables as all
    of them; any other is a folder of pictures. Raises BadInput when it is neither a folder nor of a
    known ending.
    """
    path = path.rstrip("/") or path
    ending = os.path.splitext(path)[1].lower()
    if ending in ENDINGS:
        return {"name": ENDINGS[ending], "path": path}
    try:
        found = files.expand(f"{path}/*")
    except BadInput as error:
        raise BadInput(
            f"{path}: is neither a folder with anything in it nor a file that ends in one of "
            f"{sorted(ENDINGS)}"
        ) from error
    names = {os.path.basename(name.rstrip("/")) for name in found}
    versions = [name for name in found if _VERSION.search(name.rstrip("/"))]
    versions = [name for name in versions if files.exists(files.join(name, "features.json"))]
    if "features.json" in names or len(versions) == 1:
        version = path if "features.json" in names else versions[0].rstrip("/")
        folder = files.parent(os.path.abspath(os.path.expanduser(version)))
        dataset = f"{os.path.basename(folder)}:{os.path.basename(version)}"
        data_dir = files.parent(folder)
        return {"name": "tfds", "dataset": dataset, "split": "train", "data_dir": data_dir}
    if "dataset_dict.json" in names:
        return {"name": "hf", "path": path, "split": "train"}
    if {"dataset_info.json", "state.json"} & names:
        return {"name": "hf", "path": path}
    for ending in _MANY:
        if any(name.endswith(ending) for name in names):
            return {"name": ENDINGS[ending], "path": f"{path}/*{ending}"}
    return {"name": "folder", "path": path}


def parse_source(text: str, where: str, **names: str | None) -> Mapping[str, Any]:
    """The spec that a flag gives: a literal as in a config, or a path that says what it is.

    names: image_key and caption_key of a path's source, where it has columns; None: there is none.
    """
    if not text.lstrip().startswith("{"):
        spec = guess(text)
        if spec["name"] == "webdataset":  # which always has both
            names = {key: name for key, name in names.items() if name is not None}
        return spec | names if spec["name"] in COLUMNS else spec
    try:
        spec = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError) as error:
        raise BadInput(
            f"{where}={text}: is no literal mapping; expected a path or "
            '\'{"name": "jsonl", ...}\''
        ) from error
    if not isinstance(spec, Mapping):
        raise BadInput(f"{where}={text}: is a set; expected a mapping with a 'name'")
    return spec
