"""Examples of many shards, numbered from the first shard's first to the last shard's last."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data.index import Index, Indexes
from data.sources import Feature
from mm.config import BadInput

# (path, its index, row, fields) -> the record of that row of the shard
ReadRecord = Callable[[str, Index, int, Sequence[str]], dict[str, Any]]


class Sharded:
    """shards, int64: how many examples each shard has that has any."""

    def __init__(
        self,
        paths: Sequence[str],
        indexes: Indexes,
        features: Mapping[str, Feature],
        record: ReadRecord,
    ):
        counts = indexes.count(paths)
        self.features = features
        self.shards = counts[counts > 0]
        self._paths = [path for path, count in zip(paths, counts, strict=True) if count]
        self._ends = np.cumsum(self.shards)
        self._indexes, self._record = indexes, record
        if not len(self):
            raise BadInput(f"{', '.join(paths[:3])}: no example is in these {len(paths)} shards")

    def __len__(self) -> int:
        return int(self.shards.sum())

    def first(self) -> tuple[str, Index]:
        """The first shard that has an example."""
        return self._paths[0], self._indexes.load(self._paths[0])

    def read(self, ids: np.ndarray, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
        keys = tuple(self.features) if keys is None else keys
        shards = np.searchsorted(self._ends, ids, side="right")
        rows = ids - (self._ends - self.shards)[shards]
        records: list[dict[str, Any]] = [{}] * len(ids)
        for shard in np.unique(shards):
            path = self._paths[shard]
            index = self._indexes.load(path)
            if index["count"] != self.shards[shard]:
                raise BadInput(
                    f"{path}: had {self.shards[shard]:,} examples when it was opened, has "
                    f"{index['count']:,}; start again"
                )
            for here in np.flatnonzero(shards == shard).tolist():
                records[here] = self._record(path, index, int(rows[here]), keys)
        return records
