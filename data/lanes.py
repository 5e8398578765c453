"""The order of examples that lie in files which are best read from front to back.

Each epoch puts the files in a random order and lays their examples end to end. The line is cut into
lanes of equal length, and each lane into windows, which are shuffled. A batch takes a few rows of
every lane, and where the lanes divide the batch always the same: so a host reads few lanes, each
from front to back but for the window that is open, and a run that is continued reads the open
windows again and no more. Nothing of it depends on the number of hosts. Where lanes do not divide
the batch, or in a mixture, whose parts have a varying share of it, lanes go round between hosts:
the order is as good, but more than one host reads a lane.

A lane counts its own epochs: where lanes differ in length by one example, so do their epochs.
"""

import functools
from typing import Any

import numpy as np
from jaxtyping import Int64

from data.order import Order, hash_seed, mix, permute
from mm import registry
from mm.config import BadInput, Positive

_EPOCHS_KEPT = 4  # the order of the files of so many epochs


@registry.register("order", "windows")
def windows(
    *, lanes: Positive = 64, size: Positive = 128, source: Any, seed: int, batch_size: int
) -> Order:
    """Shuffles windows of `size` examples in each of `lanes` lanes: see the module.

    So lanes * size examples mix at a time, beside the order of the files. There should be as many
    lanes as hosts or more. Far away, a host keeps the windows of its lanes in memory, 1 GiB at most
    (or MM_READ_CACHE_MB, of the environment): where lanes * size examples per host are more, they
    are read again and again. Raises BadInput when the source does not say what its files hold
    (`shards`).
    """
    shards = getattr(source, "shards", None)
    if shards is None:
        raise BadInput("the source has no shards to read from front to back; use name='shuffle'")
    return lane_order(np.asarray(shards, np.int64), lanes, size, seed, batch_size)


def lane_order(
    shards: Int64[np.ndarray, " s"], lanes: int, size: int, seed: int, batch_size: int
) -> Order:
    """shards: how many examples each file holds, in the order of their numbers."""
    shards = shards[shards > 0] if (shards > 0).any() else shards
    total = int(shards.sum())
    if total < 1:
        raise ValueError("there must be at least one example")
    lanes = min(lanes, total, batch_size)
    rows = batch_size // lanes  # of a batch that follow each other in one lane
    first_ids = np.cumsum(shards) - shards
    base, longer = divmod(total, lanes)  # the first lanes have one example more
    key = hash_seed(seed)

    @functools.lru_cache(_EPOCHS_KEPT)
    def line(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(the files in the order of this epoch, where each begins)."""
        count = len(shards)
        keys = np.repeat(mix(key, np.array([epoch])), count)
        files = permute(np.arange(count), count, keys)
        return files, np.cumsum(shards[files]) - shards[files]

    def order(slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        block, row = np.divmod(np.asarray(slots, np.int64), rows)
        turn, lane = np.divmod(block, lanes)
        lengths = base + (lane < longer)
        epochs, place = np.divmod(turn * rows + row, lengths)
        window, within = np.divmod(place, size)
        keys = mix(mix(mix(key, epochs), lane), window)
        within = permute(within, np.minimum(size, lengths - window * size), keys)
        # From here: places in the whole line.
        place = lane * base + np.minimum(lane, longer) + window * size + within
        ids = np.empty_like(place)
        for epoch in np.unique(epochs):
            files, starts = line(int(epoch))
            here = epochs == epoch
            found = np.searchsorted(starts, place[here], side="right") - 1
            ids[here] = first_ids[files[found]] + place[here] - starts[found]
        return ids, epochs

    return order
