"""Captions that are wrong by one thing, made of right ones by rules.

What ARO (Yuksekgonul et al. 2023) and SugarCrepe (Hsieh et al. 2023) ask of people or of language
models, as far as lists of English words reach: cheap, the same on every machine, and of any source.
Some are no good English; a model that prefers them still has not read the picture.
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np

from data.preprocess import Columns, Op
from data.preprocess.draws import Draws
from mm import registry
from mm.config import BadInput

Kind = Literal["swap", "shuffle", "color", "number", "side"]
KINDS: tuple[Kind, ...] = get_args(Kind)
COLORS = "red orange yellow green blue purple pink brown black white grey".split()
NUMBERS = "one two three four five six seven eight nine ten eleven twelve".split()
OPPOSITES = dict(
    pair
    for one, other in (
        ("left", "right"), ("leftwards", "rightwards"), ("above", "below"), ("up", "down"),
        ("upwards", "downwards"), ("upper", "lower"), ("top", "bottom"), ("over", "under"),
        ("in front of", "behind"), ("inside", "outside"),
    )
    for pair in ((one, other), (other, one))
)  # fmt: skip
# Between two things that may change places.
RELATIONS = (
    "to the left of", "to the right of", "left of", "right of", "on top of", "in front of",
    "next to", "above", "below", "behind", "under", "over", "inside", "outside", "beside",
    "holding", "riding", "eating", "wearing", "feeding", "on", "in", "with", "without", "from",
    "into", "onto",
)  # fmt: skip


def _words(listed: Sequence[str]) -> re.Pattern:
    """Any of them, the longest first; "gray" is grey."""
    longest = sorted([*listed, *(["gray"] if "grey" in listed else [])], key=len, reverse=True)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, longest))})(?![\w])", re.IGNORECASE)


_COLOR, _NUMBER, _SIDE = _words(COLORS), _words(NUMBERS), _words(list(OPPOSITES))
_RELATION = re.compile(
    rf"^(?P<one>.*?\w)(?P<between> (?:{'|'.join(RELATIONS)}) )(?P<other>.*\w)(?P<end>\W*)$",
    re.IGNORECASE,
)


@registry.register("op", "hard_negative")
def hard_negative(*, kind: Kind) -> Op:
    """Makes `text` wrong, after the op that writes it; and `text_changed`, bool [b]: whether it is.

    kind: "swap", what stands on both sides of the first of RELATIONS changes places. "shuffle", all
    words in another order. "color", "number": of two different ones the first two change places; a
    single one becomes another. "side": each becomes its opposite. A text without such a word, or
    with the same on both sides, stays as it is. What is drawn belongs to the example.
    """
    change = _CHANGES[kind]

    def apply(columns: Columns, draws: Draws) -> Columns:
        texts = columns.get("text")
        if not isinstance(texts, list):
            raise BadInput("belongs between the op that writes the text and tokenize")
        drawn = draws.uniform(_DRAWN).T.astype(np.float64)
        found = [change(text, row) for text, row in zip(texts, drawn, strict=True)]
        changed = np.array([a != b for a, b in zip(found, texts, strict=True)])
        return columns | {"text": found, "text_changed": changed}

    return Op(apply, stage="text")


_DRAWN = 64  # numbers an example; of longer texts the words after so many stay where they are


def _swap(text: str, drawn: np.ndarray) -> str:
    match = _RELATION.match(text)
    if match is None:
        return text
    one, other = match["one"], match["other"]
    if text[0].isupper() and not one[1:2].isupper():  # of a sentence, not of "TV"
        one, other = one[0].lower() + one[1:], other[0].upper() + other[1:]
    return f"{other}{match['between']}{one}{match['end']}"


def _shuffle(text: str, drawn: np.ndarray) -> str:
    words = text.split()
    some = min(len(words), _DRAWN)
    order = np.argsort(drawn[:some], kind="stable")
    found = [words[i] for i in order] + words[some:]
    if found == words:  # the draw, or words that are the same
        found = words[1:] + words[:1]
    return text if found == words else " ".join(found)


def _replace(pattern: re.Pattern, listed: Sequence[str]) -> Callable[[str, np.ndarray], str]:
    def change(text: str, drawn: np.ndarray) -> str:
        found = list(pattern.finditer(text))
        if not found:
            return text
        first, own = found[0], _spelled(found[0])
        other = next((m for m in found if _spelled(m) != own), None)
        if other is None:
            others = [word for word in listed if word != own]
            new = others[int(drawn[0] * len(others))]
            return pattern.sub(lambda match: _like(match[0], new), text)
        between = text[first.end() : other.start()]
        return (
            text[: first.start()] + _like(first[0], other[0]) + between
            + _like(other[0], first[0]) + text[other.end() :]
        )  # fmt: skip

    return change


def _oppose(text: str, drawn: np.ndarray) -> str:
    return _SIDE.sub(lambda match: _like(match[0], OPPOSITES[match[0].lower()]), text)


def _spelled(match: re.Match) -> str:
    """The word as it is listed."""
    return {"gray": "grey"}.get(match[0].lower(), match[0].lower())


def _like(word: str, new: str) -> str:
    """The new one with a capital where the word has one."""
    return new[0].upper() + new[1:] if word[0].isupper() else new.lower()


_CHANGES: dict[str, Callable[[str, np.ndarray], str]] = {
    "swap": _swap,
    "shuffle": _shuffle,
    "color": _replace(_COLOR, COLORS),
    "number": _replace(_NUMBER, NUMBERS),
    "side": _oppose,
}
