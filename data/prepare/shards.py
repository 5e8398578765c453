"""The files that are made: ArrayRecord as a data set of TFDS, or tar as WebDataset's.

OUTPUT/1.0.0/NAME-SPLIT.array_record-00000-of-00008, read as source=dict(name="tfds",
dataset="NAME", data_dir="FOLDER OF OUTPUT", split="SPLIT"); or OUTPUT/SPLIT-00000.tar, and
index.json, the list of shards as the package wids writes it. Beside them manifest.json and the
report.
"""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Int64
from tensorflow_datasets.core.dataset_info import DatasetIdentity

from data import files
from data.prepare import store
from data.prepare.job import Job
from data.prepare.scan import CHUNK
from data.sources import Feature
from data.sources.pictures import file_format
from mm.config import BadInput

VERSION = "1.0.0"
_HASHED = 1 << 20  # bytes at a time

Entry = dict[str, Any]  # of the manifest: name, bytes, sha256, examples


def write(job: Job, output: str, shard: int, total: int, ids: Int64[np.ndarray, " n"]) -> None:
    """Writes the shard of these examples, unless it is there as it was written."""
    name = shard_name(job, output, shard, total)
    path, note = files.join(output, name), _note(output, shard)
    if files.exists(path) and files.exists(note):
        if json.loads(files.read(note)) == _entry(path, name, len(ids)):
            return
    with store.new_file(path, output) as temporary:
        if job.output.format == "tar":
            _write_tar(job, temporary, shard * job.output.examples_per_shard, ids)
        else:
            _write_array_record(job, temporary, ids)
        entry = _entry(temporary, name, len(ids))
    store.write(note, json.dumps(entry).encode(), output)


def finish(job: Job, output: str, total: int) -> list[Entry]:
    """Writes what readers need beside the shards; returns the manifest's entries."""
    count = -(-total // job.output.examples_per_shard)
    entries = [json.loads(files.read(_note(output, shard))) for shard in range(count)]
    if job.output.format == "tar":
        index = {
            "wids_version": 1,
            "shardlist": [
                {"url": e["name"], "nsamples": e["examples"], "filesize": e["bytes"]}
                for e in entries
            ],
        }
        store.write(files.join(output, "index.json"), _json(index), output)
        return entries
    with store.temporary_folder(output) as folder:
        _write_metadata(job, output, folder, entries)
        for file in sorted(Path(folder).iterdir()):
            store.write(files.join(output, f"{VERSION}/{file.name}"), file.read_bytes(), output)
    return entries


def shard_name(job: Job, output: str, shard: int, total: int) -> str:
    """Relative to the output."""
    if job.output.format == "tar":
        return f"{job.output.split}-{shard:05d}.tar"
    count = -(-total // job.output.examples_per_shard)
    name = f"{dataset_name(output)}-{job.output.split}"
    return f"{VERSION}/{name}.array_record-{shard:05d}-of-{count:05d}"


def dataset_name(output: str) -> str:
    """What TFDS calls the data set: the name of its folder."""
    name = output.rstrip("/").rsplit("/", 1)[-1]
    if not re.fullmatch(r"[a-z]\w*", name):
        raise BadInput(
            f"--output={output}: the folder's name {name!r} is the data set's; expected lower-case "
            "letters, digits and _, as in icons_64"
        )
    return name


def check_features(job: Job) -> None:
    """Raises BadInput if a field of the source cannot be written."""
    for key, feature in job.source.features.items():
        if job.output.format == "array_record":
            _tfds_feature(key, feature)


def _note(output: str, shard: int) -> str:
    return files.join(files.join(output, store.WORK), f"shard-{shard:05d}.json")


def _entry(path: str, name: str, examples: int) -> Entry:
    found = hashlib.sha256()
    size = files.size(path)
    for start in range(0, size, _HASHED):
        found.update(files.read(path, start, min(start + _HASHED, size)))
    return {"name": name, "bytes": size, "sha256": found.hexdigest(), "examples": examples}


def _records(job: Job, ids: Int64[np.ndarray, " n"]) -> Iterator[dict[str, Any]]:
    for start in range(0, len(ids), CHUNK):
        yield from job.source.read(ids[start : start + CHUNK])


def _write_array_record(job: Job, path: str, ids: Int64[np.ndarray, " n"]) -> None:
    try:
        writer = ArrayRecordWriter(path, "group_size:1")  # one a group: fast at random, as in TFDS
        for record in _records(job, ids):
            writer.write(_serialized(record, job.source.features))
        writer.close()
    except RuntimeError as error:  # how it says that the disk is full
        raise OSError(None, str(error).split(";")[0].splitlines()[0]) from error


def _serialized(record: Mapping[str, Any], features: Mapping[str, Feature]) -> bytes:
    """A tf.train.Example. Its bytes are the same in every process."""
    example = tf.train.Example()
    for key, value in record.items():
        field, feature = example.features.feature[key], features[key]
        values = value if feature.ragged else np.ravel(value) if feature.shape else [value]
        if feature.dtype in ("image", "text", "bytes"):
            encoded = [v.encode("utf-8") if isinstance(v, str) else v for v in values]
            field.bytes_list.value.extend(encoded)
        elif feature.dtype.startswith(("float", "bfloat")):
            field.float_list.value.extend(values)
        else:
            field.int64_list.value.extend(values)
    return example.SerializeToString(deterministic=True)


def _write_metadata(job: Job, output: str, folder: str, entries: list[Entry]) -> None:
    """dataset_info.json and features.json, as TFDS writes them."""
    name, split = dataset_name(output), job.output.split
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=name, split=split, filetype_suffix="array_record"
    )
    identity = DatasetIdentity(
        name=name, version=tfds.core.Version(VERSION), data_dir=folder, module_name=""
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=_tfds_features(job.source.features),
        description="Prepared by `python -m data.prepare`, as manifest.json says.",
    )
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    written = tfds.core.SplitInfo(
        name=split,
        shard_lengths=[entry["examples"] for entry in entries],
        num_bytes=sum(entry["bytes"] for entry in entries),
        filename_template=template,
    )
    info.set_splits(tfds.core.splits.SplitDict([written]))
    info.write_to_directory(folder)


def _tfds_features(features: Mapping[str, Feature]) -> tfds.features.FeaturesDict:
    """ "labels/de" is the field de of labels."""
    nested: dict[str, Any] = {}
    for key, feature in features.items():
        *parents, last = key.split("/")
        node = nested
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = _tfds_feature(key, feature)
    return tfds.features.FeaturesDict(nested)


def _tfds_feature(key: str, feature: Feature) -> Any:
    if feature.dtype == "image":
        inner = tfds.features.Image()
    elif feature.dtype == "text":
        inner = tfds.features.Text()
    elif feature.dtype == "bytes":
        inner = tfds.features.Tensor(shape=feature.shape, dtype=np.object_)
    else:
        inner = tfds.features.Tensor(shape=feature.shape, dtype=np.dtype(feature.dtype))
    return tfds.features.Sequence(inner) if feature.ragged else inner


def _write_tar(job: Job, path: str, first: int, ids: Int64[np.ndarray, " n"]) -> None:
    """One example after the other, its files named by its place in the data set."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for place, record in enumerate(_records(job, ids), first):
            for suffix, data in _members(job, record):
                member = tarfile.TarInfo(f"{place:09d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _members(job: Job, record: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """The picture as .jpg (or what it is), the caption as .txt, all else in .json."""
    rest = {}
    for key, value in sorted(record.items()):
        feature = job.source.features[key]
        if feature.dtype == "image" and not feature.ragged:
            ending = file_format(value)
            yield ending if key == job.image_key else f"{key}.{ending}", value
        elif feature.dtype in ("image", "bytes"):
            for i, data in enumerate(value if feature.ragged else [value]):
                yield f"{key}.{i}.bin", data
        elif key == job.caption_key and not feature.ragged:
            yield "txt", value.encode("utf-8")
        else:
            rest[key] = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    if rest:
        yield "json", _json(rest)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, indent=1).encode() + b"\n"
