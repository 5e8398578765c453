"""What is to be prepared: a config, checked, and what every process opens from it."""

import functools
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from data.prepare.rules import Rule
from data.sources import Feature, Source, open_source
from mm import registry
from mm.config import BadInput, Positive, Range, Share, suggest

Distance = Annotated[int, Range("0 to 16", lambda n: 0 <= n <= 16)]
Difference = Annotated[int, Range("0 to 255", lambda n: 0 <= n <= 255)]
Name = Annotated[str, Range("letters, digits and _", str.isidentifier)]


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """What is there twice; the one with the smallest number stays.

    bytes: the same file. pixels: the same decoded picture. pictures: nearly the same, whose hashes
    differ in max_distance of 64 bits at most, and the mean colour of no cell of 4 x 4 by more than
    max_color_difference of 255. captions: whose sets of `ngram` characters have a Jaccard index of
    the threshold or more.
    """

    bytes: bool = True
    pixels: bool = True
    pictures: bool = True
    max_distance: Distance = 4
    max_color_difference: Difference = 32
    captions: bool = False
    threshold: Share = 0.8
    ngram: Positive = 4


@dataclass(frozen=True, kw_only=True)
class Decontaminate:
    """Pictures near which none may stay, as of `Duplicates`; sources: name -> {"source": {...}},
    with an "image_key" if it is not "image"."""

    sources: Mapping | None = None
    max_distance: Distance = 4
    max_color_difference: Difference = 32


@dataclass(frozen=True, kw_only=True)
class Output:
    """format: array_record is a data set of TFDS, tar one of WebDataset.

    shuffle: in an order drawn from the seed, for readers that go from front to back.
    """

    format: Literal["array_record", "tar"] = "array_record"
    split: Name = "train"
    examples_per_shard: Positive = 8192
    shuffle: bool = False
    seed: int = 0


class Job(NamedTuple):
    """A checked config with its sources open. references: name -> (source, key of its pictures)."""

    source: Source
    image_key: str
    caption_key: str | None
    rules: dict[str, Rule]
    duplicates: Duplicates
    decontaminate: Decontaminate
    references: dict[str, tuple[Source, str]]
    output: Output


_lock = threading.Lock()


def open_job(config: Mapping[str, Any]) -> Job:
    """Checks a config and opens its sources. Raises BadInput."""
    return registry.call(_job, config, "config")


def opened(text: str) -> Job:
    """As `open_job`, of a config as JSON; once a process, however many threads ask."""
    with _lock:
        return _opened(text)


@functools.lru_cache(2)
def _opened(text: str) -> Job:
    return open_job(json.loads(text))


def _job(
    *,
    source: Mapping,
    image_key: str = "image",
    caption_key: str | None = None,
    fields: tuple | list | None = None,
    rules: Mapping | None = None,
    duplicates: Mapping | None = None,
    decontaminate: Mapping | None = None,
    output: Mapping | None = None,
) -> Job:
    """The schema. rules: name -> {"name": of the rule, ...}, asked in the order of their names.

    fields: what is written beside the picture and the caption; None is all that the source has. An
    example in which one of them is broken, or null, is dropped.
    """
    found = open_source(source, "config.source")
    _check_field(found.features, image_key, "image", "config.image_key")
    if caption_key is not None:
        _check_field(found.features, caption_key, "text", "config.caption_key")
    if fields is not None:
        found = _Only(found, dict.fromkeys([image_key, caption_key or image_key, *fields]))
    made = {
        key: registry.build("rule", spec, f"config.rules.{key}")
        for key, spec in sorted((rules or {}).items())
    }
    kinds = registry.call(Duplicates, duplicates or {}, "config.duplicates")
    reading = [f"config.rules.{key}" for key, rule in made.items() if rule.reads_captions]
    reading += ["config.duplicates.captions"] if kinds.captions else []
    if reading and caption_key is None:
        raise BadInput(f"{reading[0]}: reads captions; set config.caption_key to their field")
    for key, rule in made.items():
        if rule.num_examples not in (None, len(found)):
            raise BadInput(
                f"config.rules.{key}: was made for {rule.num_examples:,} examples, the source has "
                f"{len(found):,}; score the source that is prepared"
            )
    clean = registry.call(Decontaminate, decontaminate or {}, "config.decontaminate")
    references = {
        key: registry.call(_reference, spec, f"config.decontaminate.sources.{key}")
        for key, spec in sorted((clean.sources or {}).items())
    }
    written = registry.call(Output, output or {}, "config.output")
    return Job(found, image_key, caption_key, made, kinds, clean, references, written)


class _Only:
    """A source without the other fields."""

    def __init__(self, source: Source, names: Iterable[str]):
        self._source = source
        for name in names:
            if name not in source.features:
                raise BadInput(
                    f"fields: the source has no field {name!r}{suggest(name, source.features)} "
                    f"(have {sorted(source.features)})"
                )
        self.features = {name: source.features[name] for name in names}

    def __len__(self) -> int:
        return len(self._source)

    def read(self, ids: np.ndarray, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
        return self._source.read(ids, tuple(self.features) if keys is None else keys)


def _reference(*, source: Mapping, image_key: str = "image") -> tuple[Source, str]:
    found = open_source(source, "source")
    _check_field(found.features, image_key, "image", "image_key")
    return found, image_key


def _check_field(features: Mapping[str, Feature], key: str, dtype: str, where: str) -> None:
    if key in features and features[key].dtype == dtype:
        return
    have = sorted(name for name, feature in features.items() if feature.dtype == dtype)
    hint = suggest(key, have)
    if key in features and features[key].dtype == "uint8":
        hint = "; pictures are decoded already, set the source's cache=False"
    raise BadInput(f"{where}={key!r}: the source has no {dtype} field of that name{hint} ({have})")
