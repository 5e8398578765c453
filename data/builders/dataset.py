"""What the TFDS builders of our data sets have in common."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import tensorflow_datasets as tfds
from tensorflow_datasets.core.example_serializer import ExampleSerializer


class Dataset(tfds.core.GeneratorBasedBuilder):
    """A data set that is made here, the same bytes in every process: `data.builders.preparation`.

    A class has VERSION, `_info` (with disable_shuffling, which keeps the order), and
    `_split_generators`, which may say something with `log`.
    """

    # Nothing is downloaded through TFDS; looking for checksums needs the package
    # importlib_resources, which TFDS 4.9.10 imports but does not require.
    url_infos = None
    log: Callable[[str], None] = print

    def _log_download_bytes(self) -> None:
        """Instead of TFDS's "Unknown size (download: Unknown size, ...)"."""

    def _log_download_done(self) -> None:
        """`prepare` says it, after its checks."""

    def _download_and_prepare(self, *args, **kwargs) -> None:
        # TFDS lets protobuf order the features by a hash that differs from process to process.
        def serialize(serializer: ExampleSerializer, example: dict) -> bytes:
            return serializer.get_tf_example(example).SerializeToString(deterministic=True)

        with mock.patch.object(ExampleSerializer, "serialize_example", serialize):
            super()._download_and_prepare(*args, **kwargs)
