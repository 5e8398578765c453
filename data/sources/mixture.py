"""Several sources as one: which of them a slot of the stream takes, the seed and the slot say."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from data.order import hash_seed, mix, permute
from data.sources import Feature, Source, open_source
from mm import registry
from mm.config import BadInput, Scale, suggest

# Slots are dealt in blocks of so many: in each, every part has exactly its share.
_BLOCK = 1 << 16
_BLOCKS_KEPT = 8


@registry.register("source", "mixture")
def mixture(
    *,
    parts: Mapping[str, Any],
    weights: Mapping[str, float] | tuple | list | None = None,
    temperature: Scale = 1.0,
) -> "Mixture":
    """`parts` are sources by name, as in parts={"web": {"name": "webdataset", ...}, ...}.

    weights: how often each is drawn, as in {"web": 3, "coco": 1}; or ((step, weights), ...), in
    force from that step on, the first from step 0. None: by size ** (1 / temperature), so that 1
    draws every example of all equally often, and a large one every source (Devlin's multilingual
    BERT uses 1 / 0.7). Each part is shuffled by itself and has its own epochs. The fields are those
    that all parts have. Raises BadInput when a weight names no part, or is so small that a part
    would never come.
    """
    if not parts:
        raise BadInput("parts={}: expected sources by name")
    names = list(parts)
    sources = [open_source(parts[name], f"parts.{name}") for name in names]
    if inner := [n for n, source in zip(names, sources, strict=True) if hasattr(source, "parts")]:
        raise BadInput(f"parts {inner} are mixtures; give all sources as parts of one")
    if weights is None:
        sizes = [len(source) for source in sources]
        largest = max(sizes)
        scaled = [(size / largest) ** (1 / temperature) for size in sizes]
        weights = dict(zip(names, scaled, strict=True))
    elif temperature != 1:
        raise BadInput(f"temperature={temperature}: says nothing beside weights; give one of them")
    phases = [(0, weights)] if isinstance(weights, Mapping) else list(weights)
    return Mixture(sources, names, _counts(phases, names))


class Phase(NamedTuple):
    """From `step` on, of each block of slots so many belong to each part."""

    step: int
    counts: Int64[np.ndarray, " parts"]


class Mixture:
    """Examples are numbered through all `parts`; part k begins at `starts[k]`."""

    def __init__(self, parts: Sequence[Source], names: Sequence[str], phases: Sequence[Phase]):
        self.parts, self.names, self.phases = parts, names, phases
        sizes = np.array([len(part) for part in parts])
        self.starts = np.cumsum(sizes) - sizes
        self._size = int(sizes.sum())
        common = set.intersection(*(set(part.features) for part in parts))
        self.features: Mapping[str, Feature] = {
            key: parts[0].features[key]
            for key in parts[0].features
            if key in common and len({_kind(part.features[key]) for part in parts}) == 1
        }

    @property
    def shares(self) -> Float64[np.ndarray, " parts"]:
        """The greatest share of the slots that each part has at any time."""
        return np.max([phase.counts for phase in self.phases], axis=0) / _BLOCK

    def __len__(self) -> int:
        return self._size

    def read(self, ids: np.ndarray, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
        keys = tuple(self.features) if keys is None else keys
        numbers = np.searchsorted(self.starts, ids, side="right") - 1
        records: list[dict[str, Any]] = [{}] * len(ids)
        for number in np.unique(numbers):
            here = np.flatnonzero(numbers == number)
            found = self.parts[number].read(ids[here] - self.starts[number], keys)
            for row, record in zip(here.tolist(), found, strict=True):
                records[row] = record
        return records

    def chooser(
        self, seed: int, batch_size: int
    ) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """slots [b] -> (part [b], how many earlier slots took that part [b])."""
        firsts = np.array([phase.step * batch_size for phase in self.phases])
        key = hash_seed(seed)

        @functools.lru_cache(_BLOCKS_KEPT)
        def deal(phase: int, block: int) -> tuple[np.ndarray, np.ndarray]:
            """(part, rank among the block's slots of that part) of each slot of a block."""
            keys = np.repeat(mix(mix(key, np.array([phase])), np.array([block])), _BLOCK)
            ends = np.cumsum(self.phases[phase].counts)
            cards = permute(np.arange(_BLOCK), _BLOCK, keys)
            parts = np.searchsorted(ends, cards, side="right")
            ranks = np.empty(_BLOCK, np.int64)
            for part in range(len(ends)):
                here = parts == part
                ranks[here] = np.arange(here.sum())
            return parts, ranks

        used = [np.zeros(len(self.parts), np.int64)]  # slots of each part before each phase
        for number, length in enumerate(np.diff(firsts)):
            blocks, rest = divmod(int(length), _BLOCK)
            taken = np.bincount(deal(number, blocks)[0][:rest], minlength=len(self.parts))
            used.append(used[-1] + blocks * self.phases[number].counts + taken)

        def choose(slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            slots = np.asarray(slots, np.int64)
            phases = np.searchsorted(firsts, slots, side="right") - 1
            blocks, places = np.divmod(slots - firsts[phases], _BLOCK)
            parts, earlier = np.empty((2, len(slots)), np.int64)
            for phase, block in np.unique(np.stack([phases, blocks], 1), axis=0).tolist():
                here = (phases == phase) & (blocks == block)
                dealt, ranks = deal(phase, block)
                part = parts[here] = dealt[places[here]]
                before = used[phase] + block * self.phases[phase].counts
                earlier[here] = before[part] + ranks[places[here]]
            return parts, earlier

        return choose


def _counts(phases: Sequence[Any], names: Sequence[str]) -> list[Phase]:
    """Weights as whole numbers of slots of a block."""
    found: list[Phase] = []
    for item in phases:
        if not (isinstance(item, tuple | list) and len(item) == 2 and type(item[0]) is int):
            raise BadInput(f"weights: {item!r} is no (step, weights by name)")
        step, weights = item
        if (not found and step != 0) or (found and step <= found[-1].step):
            raise BadInput(f"weights from step {step}: expected 0 first, then growing steps")
        for name, value in weights.items():
            if name not in names:
                raise BadInput(f"weights: no part {name!r}{suggest(name, names)} (have {names})")
            if type(value) not in (int, float) or not 0 <= value < float("inf"):
                raise BadInput(f"weights: {name}={value!r}: expected a number of at least 0")
        if missing := [name for name in names if name not in weights]:
            raise BadInput(f"weights: none for {missing}; 0 leaves a part out for a while")
        values = np.array([weights[name] for name in names], np.float64)
        if not values.any():
            raise BadInput("weights: all are 0; expected one above it")
        ends = np.floor(np.cumsum(values) / values.sum() * _BLOCK + 0.5).astype(np.int64)
        ends[-1] = _BLOCK
        counts = np.diff(ends, prepend=0)
        if lost := [n for n, v, c in zip(names, values, counts, strict=True) if v > 0 and c < 1]:
            raise BadInput(f"weights: {lost} would have less than 1 of {_BLOCK:,} examples")
        found.append(Phase(step, counts))
    return found


def _kind(feature: Feature) -> tuple:
    """What two parts have to agree on; pictures may be decoded in one and not in the other."""
    return ("image",) if _is_picture(feature) else (feature.dtype, feature.ragged, feature.shape)


def _is_picture(feature: Feature) -> bool:
    return feature.dtype == "image" or (feature.dtype == "uint8" and len(feature.shape) == 3)
