"""What an example must be like to stay. Each rule is a function, registered with kind "rule".

A rule is made once a process and asked by several threads at once: True keeps the example. Where a
picture has several captions, all must pass.
"""

import functools
import unicodedata
from collections.abc import Callable
from typing import Annotated, NamedTuple

import numpy as np

from data.prepare.scores import read_scores
from mm import registry
from mm.config import BadInput, Count, Keep, Positive, Range, Share, suggest

_UNICODE = 0x110000


class Example(NamedTuple):
    """What rules see. id: the example's number in the source. height, width: in pixels."""

    id: int
    height: int
    width: int
    captions: tuple[str, ...]


class Rule(NamedTuple):
    """keeps: whether an example stays. num_examples: of the only source that it fits, if any."""

    keeps: Callable[[Example], bool]
    reads_captions: bool = False
    num_examples: int | None = None


@registry.register("rule", "size")
def size(
    *, min_side: Positive = 1, min_pixels: Positive = 1, max_pixels: int | None = None
) -> Rule:
    """The shorter side of the picture, and its area, in pixels."""

    def keeps(example: Example) -> bool:
        area = example.height * example.width
        large = min(example.height, example.width) >= min_side and area >= min_pixels
        return large and (max_pixels is None or area <= max_pixels)

    return Rule(keeps)


@registry.register("rule", "aspect")
def aspect(*, max_ratio: Annotated[float, Range("at least 1", lambda x: x >= 1)]) -> Rule:
    """The longer side of the picture over the shorter one: 3.0 keeps 3:1 and 1:3."""

    def keeps(example: Example) -> bool:
        shorter, longer = sorted((example.height, example.width))
        return longer <= max_ratio * shorter

    return Rule(keeps)


@registry.register("rule", "caption_length")
def caption_length(
    *,
    min_characters: Count = 1,
    max_characters: int | None = None,
    min_words: Count = 0,
    max_words: int | None = None,
) -> Rule:
    """Of captions without the white space around them; words are what white space parts."""

    def fits(caption: str) -> bool:
        characters, words = len(caption.strip()), len(caption.split())
        return min_characters <= characters <= _or_any(
            max_characters
        ) and min_words <= words <= _or_any(max_words)

    return _of_captions(fits)


@registry.register("rule", "language")
def language(
    *, keep: tuple[str, ...], min_confidence: Share = 0.0, min_characters: Count = 20
) -> Rule:
    """Captions in one of the languages `keep`, ISO 639-1, as ("en", "de"), guessed by py3langid.

    min_confidence: the guess's probability. Captions shorter than min_characters pass: of a word or
    two, no language can be told.
    """
    identifier = _identifier()
    known = sorted(set(identifier.nb_classes))
    for code in keep:
        if code not in known:
            raise BadInput(f"keep={code!r}: unknown language{suggest(code, known)} (have {known})")
    wanted = frozenset(keep)

    def fits(caption: str) -> bool:
        if len(caption) < min_characters:
            return True
        found, confidence = identifier.classify(caption)
        return found in wanted and confidence >= min_confidence

    return _of_captions(fits)


@registry.register("rule", "alphabet")
def alphabet(*, scripts: tuple[str, ...], min_share: Share = 0.5) -> Rule:
    """At least this share of a caption's letters are of the scripts, as ("LATIN", "GREEK").

    A script is the first word of a letter's Unicode name. A caption without letters passes.
    """
    for script in scripts:
        if script not in _scripts():
            near = suggest(script.upper(), _scripts())
            raise BadInput(f"scripts={script!r}: no letter's Unicode name begins so{near}")
    wanted = frozenset(scripts)

    def fits(caption: str) -> bool:
        letters = [_script(character) for character in caption if character.isalpha()]
        return sum(map(wanted.__contains__, letters)) >= min_share * len(letters)

    return _of_captions(fits)


@registry.register("rule", "score")
def score(
    *, path: str, key: str = "score", min: float | None = None, top: Keep | None = None
) -> Rule:
    """Scores of at least `min`, or the `top` share of all in the file, ties included.

    path: see `data.prepare.scores`. key: which of its numbers. In memory: 12 bytes an example.
    """
    if (min is None) == (top is None):
        raise BadInput(f"min={min}, top={top}: give one of them")
    scores = read_scores(path, key)
    least = scores.threshold(top) if min is None else min
    return Rule(lambda example: scores.of(example.id) >= least, num_examples=scores.num_examples)


def _of_captions(fits: Callable[[str], bool]) -> Rule:
    return Rule(lambda example: all(map(fits, example.captions)), reads_captions=True)


def _or_any(most: int | None) -> float:
    return np.inf if most is None else most


@functools.lru_cache(1 << 16)
def _script(character: str) -> str:
    return unicodedata.name(character, "").split(" ")[0]


@functools.cache
def _scripts() -> frozenset[str]:
    return frozenset(_script(chr(code)) for code in range(_UNICODE) if chr(code).isalpha())


@functools.cache
def _identifier():
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise BadInput("needs py3langid: `make prepare-tools` installs it") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
