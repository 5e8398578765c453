"""Reads examples of a source in several threads, and keeps of each what a summary needs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from data import tokenizers
from data.order import example_at
from data.sources import BadExample, Feature, Source, read_each
from data.sources.pictures import decode, file_format
from mm.config import BadInput, suggest

CHUNK = 32  # examples that a thread holds with their pictures
_AHEAD = 1 << 14  # examples whose chunks wait at once
_LIKELY = ("caption", "captions", "text", "label", "title", "description")
_TOKENS = 4096  # longer captions are counted as that long


class Fields(NamedTuple):
    """Where the pictures and the captions are."""

    image: str | None
    caption: str | None


@dataclass
class Found:
    """What some examples are like; pictures are gone. Memory: numbers, and the captions once."""

    first: dict[str, Any] | None = None  # one example, for the look of its fields
    examples: int = 0
    sizes: list[tuple[int, int, int]] = field(default_factory=list)  # height, width, bytes
    formats: Counter[str] = field(default_factory=Counter)
    captions: Counter[str] = field(default_factory=Counter)
    captions_each: list[int] = field(default_factory=list)  # of an example
    characters: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    broken: dict[str, list[int]] = field(default_factory=dict)  # reason -> examples

    def add(self, other: "Found") -> None:
        """Appends what is in another."""
        self.first = self.first or other.first
        self.examples += other.examples
        self.formats += other.formats
        self.captions += other.captions
        for name in ("sizes", "captions_each", "characters", "words", "tokens"):
            getattr(self, name).extend(getattr(other, name))
        for reason, examples in other.broken.items():
            self.broken.setdefault(reason, []).extend(examples)


def choose_fields(
    features: Mapping[str, Feature], image: str | None, caption: str | None
) -> Fields:
    """The fields given, or the likeliest; None without any. Raises BadInput on one that is not."""
    images = [key for key, f in sorted(features.items()) if f.dtype == "image" or _is_pixels(f)]
    texts = [key for key, f in sorted(features.items()) if f.dtype == "text"]
    for flag, given, have in (("image_key", image, images), ("caption_key", caption, texts)):
        if given is not None and given not in have:
            raise BadInput(f"--{flag}={given}: no such field{suggest(given, have)} (have {have})")
    likely = [key for key in _LIKELY if key in texts]
    return Fields(image or next(iter(images), None), caption or next(iter(likely + texts), None))


def sample(length: int, num_examples: int, seed: int) -> Int64[np.ndarray, " n"]:
    """Numbers of examples, ascending, spread over all; every one for num_examples=0."""
    if num_examples == 0 or num_examples >= length:
        return np.arange(length)
    return np.sort(example_at(np.arange(num_examples), length, seed)[0])


def examine(
    source: Source,
    ids: Int64[np.ndarray, " n"],
    fields: Fields,
    num_threads: int,
    tokenizer: str | None = None,
) -> Found:
    """Reads and decodes the examples. tokenizer: the path of a tokenizer.json."""
    encoder = tokenizers.load(tokenizer, _TOKENS) if tokenizer else None
    total = Found()
    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(ids), _AHEAD):
            some = ids[start : start + _AHEAD]
            chunks = [some[i : i + CHUNK] for i in range(0, len(some), CHUNK)]
            for found in pool.map(lambda chunk: _examine(source, chunk, fields, encoder), chunks):
                total.add(found)
    return total


def texts(value: str | Sequence[str]) -> list[str]:
    """The captions of an example: one or some."""
    return [value] if isinstance(value, str) else list(value)


def _examine(
    source: Source, ids: np.ndarray, fields: Fields, encoder: tokenizers.Tokenizer | None
) -> Found:
    found = Found(examples=len(ids))
    keys = [key for key in fields if key is not None]
    for example, record in zip(ids.tolist(), read_each(source, ids, keys or None), strict=True):
        try:
            if isinstance(record, BadExample):
                raise record
            if fields.image is not None:
                _examine_picture(record[fields.image], found)
        except BadExample as error:
            found.broken.setdefault(error.reason, []).append(example)
            continue
        if found.first is None:
            whole = read_each(source, np.array([example]))[0]
            found.first = record if isinstance(whole, BadExample) else whole
        if fields.caption is not None:
            captions = texts(record[fields.caption])
            found.captions.update(captions)
            found.captions_each.append(len(captions))
            found.characters += map(len, captions)
            found.words += (len(caption.split()) for caption in captions)
            if encoder is not None and captions:
                found.tokens += encoder.encode(captions)[1].sum(axis=1).tolist()
    return found


def _examine_picture(value: bytes | np.ndarray, found: Found) -> None:
    encoded = isinstance(value, bytes)
    height, width, *_ = (decode(value) if encoded else value).shape
    found.sizes.append((height, width, len(value) if encoded else value.nbytes))
    found.formats[file_format(value) if encoded else "decoded"] += 1


def _is_pixels(feature: Feature) -> bool:
    return feature.dtype == "uint8" and len(feature.shape) == 3
