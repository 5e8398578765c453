"""tf.train.Examples in TFRecord files, read at random.

A record is its length (8 bytes), the length's checksum (4), the data, the data's checksum (4). The
lengths, one after the other, say where the records are.
"""

import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np
from google.protobuf.message import DecodeError
from tensorflow.core.example.example_pb2 import Example

from data import files
from data.index import Index, Indexes, narrow, open_shard, pack
from data.sources import BadExample, Feature, Source
from data.sources.features import declared, missing, shaped, text
from data.sources.part import part
from data.sources.sharded import Sharded
from mm import registry
from mm.config import BadInput

_HEAD, _TAIL = 12, 4  # bytes around the data
_GZIP = b"\x1f\x8b"
_DAMAGED = "record is damaged"


@registry.register("source", "tfrecord")
def tfrecord(
    *,
    path: str | Sequence[str],
    features: Mapping[str, Any],
    first: float = 0.0,
    last: float = 1.0,
    index_dir: str | None = None,
) -> Source:
    """Files such as path="pairs.tfrecord-{00000..00099}-of-00100", of tf.train.Examples.

    features: what is read, by name: features={"image": "image", "caption": "text", "width":
    "int64", "embedding": ("float32", 512), "tags": ("text", None)}, see `declared`. first, last:
    the share of the records that is taken, see `part`. index_dir: where it is kept what is where in
    the files, see `data.index`. A file that was cut off gives the records before the cut, and a
    warning. Raises BadInput when a file cannot be read or is no TFRecord, and when its first record
    does not have the features.
    """
    fields = declared(features)
    record = functools.partial(_record, fields)
    source = Sharded(files.expand(path), indexes(index_dir), fields, record)
    try:
        source.read(np.zeros(1, np.int64))
    except BadExample as error:
        if error.reason != _DAMAGED:
            raise BadInput(f"features={features}: {error}") from error
    return part(source, first, last)


def indexes(folder: str | None = None) -> Indexes:
    """Of TFRecords: `begin`, int [n + 1], where each record begins, and the last one ends."""
    return Indexes("tfrecord 1", _build, folder)


def read_raw(path: str, index: Index, row: int) -> bytes:
    """The data of a record. Raises BadExample if its checksum is another one."""
    begin, end = index["begin"][row:][:2].tolist()
    raw = files.read(path, begin, end)
    length = end - begin - _HEAD - _TAIL
    if len(raw) == end - begin and int.from_bytes(raw[:8], "little") == length:
        data = raw[_HEAD:-_TAIL]
        if _checksum(data) == raw[-_TAIL:]:
            return data
    raise BadExample(f"{path} record {row}: does not match its checksum", _DAMAGED)


def parse(
    data: bytes, keys: Sequence[str], features: Mapping[str, Feature], where: str
) -> dict[str, Any]:
    """The fields `keys` of a serialized tf.train.Example. Raises BadExample, said with `where`."""
    try:
        fields = Example.FromString(data).features.feature
    except DecodeError as error:
        raise BadExample(
            f"{where}: is no tf.train.Example ({error})", "record is no tf.train.Example"
        ) from error
    record = {}
    for key in keys:
        feature = features[key]
        if key not in fields and not feature.ragged:  # an empty list may be left out
            raise missing(where, key, fields)
        field = fields[key]
        kind = field.WhichOneof("kind")
        if kind not in (None, _kind(feature)):
            raise BadExample(
                f"{where}: {key}: is {kind}, expected {_kind(feature)} for {feature.dtype}",
                "field has the wrong type",
            )
        values = list(getattr(field, kind).value) if kind else []
        if feature.dtype == "text":
            values = [text(value, where, key) for value in values]
        record[key] = shaped(values, feature, where, key)
    return record


def _kind(feature: Feature) -> str:
    if feature.dtype in ("image", "text", "bytes"):
        return "bytes_list"
    return "float_list" if feature.dtype.startswith(("float", "bfloat")) else "int64_list"


def _record(
    features: Mapping[str, Feature], path: str, index: Index, row: int, keys: Sequence[str]
) -> dict[str, Any]:
    return parse(read_raw(path, index, row), keys, features, f"{path} record {row}")


def _build(path: str) -> Index:
    first = files.read(path, 0, _HEAD)
    if first.startswith(_GZIP):
        raise BadInput(
            f"{path}: is compressed, so it cannot be read at random; write it again without "
            "compression (its pictures are compressed already)"
        )
    if first and not _is_head(first):
        raise BadInput(f"{path}: is no TFRecord (its first checksum is wrong)")
    size, begins = files.size(path), [0]
    with open_shard(path) as file:
        while (end := _next_end(file, begins[-1], size)) is not None:
            begins.append(end)
    loss = ""
    if begins[-1] < size:
        loss = (
            f"is cut off or damaged at byte {begins[-1]:,} of {size:,}: "
            f"its {len(begins) - 1:,} records before that are read"
        )
    return {"count": np.array(len(begins) - 1), "loss": pack(loss), "begin": narrow(begins)}


def _next_end(file: io.BufferedReader, begin: int, size: int) -> int | None:
    """Where the record that begins there ends; None if it is not whole."""
    file.seek(begin)
    head = file.read(_HEAD)
    end = begin + _HEAD + int.from_bytes(head[:8], "little") + _TAIL
    return end if end <= size and _is_head(head) else None


def _is_head(head: bytes) -> bool:
    """Whether they are the length of a record and its checksum."""
    return len(head) == _HEAD and _checksum(head[:8]) == head[8:]


def _checksum(data: bytes) -> bytes:
    """CRC-32C, masked since sums of bytes that hold sums are weak (TensorFlow's crc32c.h)."""
    crc = google_crc32c.value(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")
