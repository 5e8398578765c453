"""Data sets prepared by TensorFlow Datasets and stored as ArrayRecord or TFRecord.

`tfds.data_source` decodes every picture of a record in Python; here records are read raw, only the
fields that are asked for are taken out, and pictures stay encoded. Nothing is ever prepared or
downloaded: what is on disk describes itself, the code that built it is not needed.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath
from jaxtyping import Int64

from data.files import local_copy, retried
from data.sources import BadExample, Feature, Source
from data.sources.memory import InMemory
from data.sources.part import part
from data.sources.tfrecord import indexes, parse, read_raw
from mm import registry
from mm.config import BadInput, suggest

_FILTER_BLOCK = 1024  # records held at a time while filtering
# Whole chunks are read by position: nothing to read ahead.
_READER_OPTIONS = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32768}
_FILE_FORMATS = (tfds.core.FileFormat.ARRAY_RECORD, tfds.core.FileFormat.TFRECORD)
# data.builders has them; "icons_held_out" is one of icons, "mnist_5k" of mnist.
_OURS = ("digits", "emoji", "icons", "mnist", "openclipart")
# Reads the records at positions of one file.
ReadRaw = Callable[[Sequence[int]], Sequence[bytes]]


@registry.register("source", "tfds")
def tfds_source(
    *,
    dataset: str,
    split: str,
    data_dir: str | None = None,
    only: Mapping[str, Any] | None = None,
    exclude: Mapping[str, Any] | None = None,
    first: float = 0.0,
    last: float = 1.0,
    cache: bool = False,
    index_dir: str | None = None,
) -> Source:
    """A split of a data set, e.g. dataset="emoji", split="train[:90%]" or "seen+unseen".

    data_dir: where data sets are; None is TFDS's own default. only, exclude: keep, or leave out,
    the examples whose text field has one of the values, as in exclude={"vendor": ("emojione",)};
    one pass over the records when opened. first, last: the share of what is left that is taken, see
    `part`. cache: keep records in memory, pictures decoded.
    index_dir: where it is kept where the records of TFRecord files are, see `data.index`. Fields
    within fields are named "labels/de". Raises BadInput when the data set, the split, a field or a
    value is not there.
    """
    data_dir = str(epath.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser())
    builder = _open(dataset, data_dir)
    source = _records(builder, split, index_dir)
    whole = functools.partial(_records, builder, "+".join(builder.info.splits), index_dir)
    for values, keep in ((only, True), (exclude, False)):
        for key, wanted in (values or {}).items():
            wanted = {wanted} if isinstance(wanted, str) else set(wanted)
            source.filter(key, wanted, keep, whole)
    if not len(source):
        raise BadInput(f"{dataset!r} {split!r} with only={only}, exclude={exclude}: is empty")
    source = part(source, first, last)
    return InMemory(source) if cache else source


def _open(dataset: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """The prepared data set on disk."""
    try:
        builder = tfds.core.read_only_builder.builder_from_files(dataset, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        command = f"tfds build {dataset} --file_format=array_record"
        if (ours := dataset.partition("_")[0]) in _OURS:
            command = f"python -m data.builders.{ours}"
        raise BadInput(
            f"no data set {dataset!r} in {data_dir}: prepare it with `{command} "
            f"--data_dir={data_dir}`, or set data_dir to where it is"
        ) from error
    if builder.info.file_format not in _FILE_FORMATS:
        raise BadInput(
            f"data set {dataset!r} in {data_dir}: is stored as {builder.info.file_format.value}, "
            "which cannot be read at random; prepare it with --file_format=array_record"
        )
    return builder


def _records(builder: tfds.core.DatasetBuilder, split: str, index_dir: str | None) -> "_Records":
    """Those of a split, in the order of its files."""
    try:
        files = builder.info.splits[split].file_instructions
    except (ValueError, KeyError) as error:
        have = list(builder.info.splits)
        raise BadInput(
            f"split {split!r} of {builder.name!r}: cannot be read; the data set has {have}, and "
            "parts such as 'train[:90%]' or 'a+b' of them"
        ) from error
    paths = [str(file.filename) for file in files]
    for path in paths:
        if not epath.Path(path).exists():
            raise BadInput(f"{path}: is missing; prepare the data set again")
    if builder.info.file_format == tfds.core.FileFormat.TFRECORD:
        readers = _tfrecords(paths, index_dir)
    else:
        readers = [functools.partial(_read, path, _reader(path)) for path in paths]
    return _Records(files, readers, _features(builder.info.features))


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


def _reader(path: str) -> ArrayRecordReader:
    """Of what is far away it knows gs:// alone, so of the rest a copy is read."""
    path = path if path.startswith("gs://") else local_copy(path)
    return ArrayRecordReader(path, **_READER_OPTIONS)


def _read(path: str, reader: ArrayRecordReader, positions: Sequence[int]) -> list[bytes]:
    """Of an ArrayRecord file; its checksums tell what is damaged."""

    def read() -> list[bytes]:
        try:
            return reader.read(positions)
        except RuntimeError as error:  # it has no other
            if "mismatch" in str(error) or "orrupt" in str(error):
                message = f"{path} record {positions[0]}: {error}"
                raise BadExample(message, "record is damaged") from error
            raise OSError(str(error)) from error

    try:
        return retried(path, read)
    except BadExample:
        if len(positions) == 1:
            raise
        return [_read(path, reader, [position])[0] for position in positions]


def _tfrecords(paths: Sequence[str], index_dir: str | None) -> list[ReadRaw]:
    kept = indexes(index_dir)
    kept.count(paths)  # all at once, and what is lost is said now

    def read(path: str, positions: Sequence[int]) -> list[bytes]:
        index = kept.load(path)
        if max(positions) >= index["count"]:
            raise BadExample(
                f"{path}: has no record {max(positions)}, only {index['count']:,}",
                "record is missing",
            )
        return [read_raw(path, index, position) for position in positions]

    return [functools.partial(read, path) for path in paths]


class _Records:
    """Serialized tf.Examples in files that are read at random."""

    def __init__(
        self, files: Sequence, readers: Sequence[ReadRaw], features: Mapping[str, Feature]
    ):
        self.features = features
        self._readers = readers
        self._paths = [str(file.filename) for file in files]
        self._first = np.array([file.skip for file in files])  # the record where each begins
        self._ends = np.cumsum([file.take for file in files])
        self._rows: Int64[np.ndarray, " n"] | None = None  # what a filter left; all otherwise
        self.shards = np.array([file.take for file in files], np.int64)

    def __len__(self) -> int:
        return int(self.shards.sum())

    def read(self, ids: np.ndarray, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
        keys = tuple(self.features) if keys is None else keys
        rows = ids if self._rows is None else self._rows[ids]
        shards = self._shards(rows)
        starts = np.concatenate([[0], self._ends[:-1]])
        positions = rows - starts[shards] + self._first[shards]
        records: list[dict[str, Any]] = [{}] * len(rows)
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard).tolist()
            found = self._readers[shard](positions[here].tolist())
            for row, raw in zip(here, found, strict=True):
                where = f"{self._paths[shard]} record {positions[row]}"
                records[row] = parse(raw, keys, self.features, where)
        return records

    def _shards(self, rows: np.ndarray) -> Int64[np.ndarray, " b"]:
        return np.searchsorted(self._ends, rows, side="right")

    def column(self, key: str) -> list:
        """A field of all records."""
        blocks = range(0, len(self), _FILTER_BLOCK)
        ids = [np.arange(start, min(start + _FILTER_BLOCK, len(self))) for start in blocks]
        return [record[key] for block in ids for record in self.read(block, (key,))]

    def filter(
        self, key: str, values: set[str], keep: bool, whole: Callable[[], "_Records"]
    ) -> None:
        """Keeps the records whose `key` is (keep) or is not (not keep) among `values`.

        Raises BadInput for a value that not even `whole` has, the records of all splits.
        """
        if key not in self.features or self.features[key] != Feature("text"):
            have = [name for name, feature in self.features.items() if feature == Feature("text")]
            raise BadInput(
                f"{key!r}: is no text field of the data set{suggest(key, have)} ({have})"
            )
        found = self.column(key)
        if values - set(found) and (unknown := values - set(every := whole().column(key))):
            have = sorted(set(every))
            raise BadInput(
                f"{key}={sorted(unknown)}: no example has that{suggest(min(unknown), have)}; "
                f"there are {have[:20]}"
            )
        rows = np.arange(len(self)) if self._rows is None else self._rows
        self._rows = rows[[(value in values) == keep for value in found]]
        counts = np.bincount(self._shards(self._rows))
        self.shards = counts[counts > 0]
