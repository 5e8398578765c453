"""Data sets prepared by TensorFlow Datasets and stored as ArrayRecord.

`tfds.data_source` decodes every picture of a record in Python; here records are read raw, only the
fields that are asked for are taken out, and pictures stay encoded. Nothing is ever prepared or
downloaded: what is on disk describes itself, the code that built it is not needed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from data.sources import Feature, Source
from data.sources.memory import InMemory
from mm import registry
from mm.config import BadInput, suggest

_FILTER_BLOCK = 1024  # records held at a time while filtering
# Whole chunks are read by position: nothing to read ahead.
_READER_OPTIONS = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32768}


@registry.register("source", "tfds")
def tfds_source(
    *,
    dataset: str,
    split: str,
    data_dir: str | None = None,
    only: Mapping[str, Any] | None = None,
    exclude: Mapping[str, Any] | None = None,
    cache: bool = False,
) -> Source:
    """A split of a data set, e.g. dataset="emoji", split="train[:90%]" or "seen+unseen".

    data_dir: where data sets are; None is TFDS's own default. only, exclude: keep, or leave out,
    the examples whose text field has one of the values, as in exclude={"vendor": ("emojione",)};
    one pass over the records when opened. cache: keep records in memory, pictures decoded.
    Fields within fields are named "labels/de". Raises BadInput when the data set, the split, a
    field or a value is not there.
    """
    data_dir = str(epath.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser())
    builder = _open(dataset, data_dir)
    try:
        files = builder.info.splits[split].file_instructions
    except (ValueError, KeyError) as error:
        have = list(builder.info.splits)
        raise BadInput(
            f"split {split!r} of {dataset!r}: cannot be read; the data set has {have}, and parts "
            "such as 'train[:90%]' or 'a+b' of them"
        ) from error
    source = _Records(files, _features(builder.info.features))
    for values, keep in ((only, True), (exclude, False)):
        for key, wanted in (values or {}).items():
            source.filter(key, {wanted} if isinstance(wanted, str) else set(wanted), keep)
    if not len(source):
        raise BadInput(f"{dataset!r} {split!r} with only={only}, exclude={exclude}: is empty")
    return InMemory(source) if cache else source


def _open(dataset: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """The prepared data set on disk."""
    try:
        builder = tfds.core.read_only_builder.builder_from_files(dataset, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        command = f"tfds build {dataset} --file_format=array_record"
        if dataset == "emoji":
            command = "python -m data.builders.emoji"
        raise BadInput(
            f"no data set {dataset!r} in {data_dir}: prepare it with `{command} "
            f"--data_dir={data_dir}`, or set data_dir to where it is"
        ) from error
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise BadInput(
            f"data set {dataset!r} in {data_dir}: is stored as {builder.info.file_format.value}, "
            "which cannot be read at random; prepare it with --file_format=array_record"
        )
    return builder


def _features(features: tfds.features.FeaturesDict, prefix: str = "") -> dict[str, Feature]:
    """Flat name -> Feature. Fields that no op could read (lists of lists, of records) stay out."""
    flat = {}
    for name, feature in sorted(features.items()):
        key = prefix + name
        if isinstance(feature, tfds.features.FeaturesDict):
            flat |= _features(feature, f"{key}/")
            continue
        inner = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
        info = feature.get_serialized_info()
        if not isinstance(info, tfds.features.TensorInfo):
            continue
        ragged = None in info.shape
        if ragged and len(info.shape) > 1:
            continue
        if isinstance(inner, tfds.features.Image):
            dtype = "image"
        elif isinstance(inner, tfds.features.Text):
            dtype = "text"
        else:
            dtype = "bytes" if info.tf_dtype == tf.string else info.tf_dtype.name
        flat[key] = Feature(dtype, ragged, () if ragged else tuple(info.shape))
    return flat


class _Records:
    """Serialized tf.Examples in ArrayRecord files."""

    def __init__(self, files: Sequence, features: Mapping[str, Feature]):
        self.features = features
        for file in files:
            if not epath.Path(file.filename).exists():
                raise BadInput(f"{file.filename}: is missing; prepare the data set again")
        self._readers = [ArrayRecordReader(str(f.filename), **_READER_OPTIONS) for f in files]
        self._first = np.array([file.skip for file in files])  # the record where each begins
        self._ends = np.cumsum([file.take for file in files])
        self._rows = np.arange(self._ends[-1] if len(files) else 0)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, ids: np.ndarray, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
        keys = tuple(self.features) if keys is None else keys
        return [self._parse(raw, keys) for raw in self._raw(self._rows[ids])]

    def filter(self, key: str, values: set[str], keep: bool) -> None:
        """Keeps the records whose `key` is (keep) or is not (not keep) among `values`."""
        if key not in self.features or self.features[key] != Feature("text"):
            have = [name for name, feature in self.features.items() if feature == Feature("text")]
            raise BadInput(
                f"{key!r}: is no text field of the data set{suggest(key, have)} ({have})"
            )
        blocks = range(0, len(self), _FILTER_BLOCK)
        ids = [np.arange(start, min(start + _FILTER_BLOCK, len(self))) for start in blocks]
        found = [record[key] for block in ids for record in self.read(block, (key,))]
        unknown = values - set(found)
        if unknown:
            have = sorted(set(found))
            raise BadInput(
                f"{key}={sorted(unknown)}: no example has that{suggest(min(unknown), have)}; "
                f"there are {have[:20]}"
            )
        self._rows = self._rows[[(value in values) == keep for value in found]]

    def _raw(self, rows: np.ndarray) -> list[bytes]:
        shards = np.searchsorted(self._ends, rows, side="right")
        starts = np.concatenate([[0], self._ends[:-1]])
        positions = rows - starts[shards] + self._first[shards]
        records: list[bytes] = [b""] * len(rows)
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            found = self._readers[shard].read(positions[here].tolist())
            for row, record in zip(here.tolist(), found, strict=True):
                records[row] = record
        return records

    def _parse(self, raw: bytes, keys: Sequence[str]) -> dict[str, Any]:
        fields = tf.train.Example.FromString(raw).features.feature
        return {key: _value(key, fields[key], self.features[key]) for key in keys}


def _value(key: str, field: tf.train.Feature, feature: Feature) -> Any:
    if feature.dtype in ("image", "text", "bytes"):
        values = list(field.bytes_list.value)
        if feature.dtype == "text":
            values = [value.decode("utf-8") for value in values]
    elif feature.dtype.startswith(("float", "bfloat")):
        values = np.array(field.float_list.value, feature.dtype)
    else:
        values = np.array(field.int64_list.value, feature.dtype)
    if feature.ragged:
        return values
    if feature.shape:
        return np.reshape(values, feature.shape)
    if len(values) != 1:
        raise ValueError(f"field {key!r}: has {len(values)} values, expected one")
    return values[0]
