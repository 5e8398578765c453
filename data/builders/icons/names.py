"""What the name of an icon says: "arrow-left-16-bold" is an arrow left, bold."""

import re
from collections.abc import Iterable

# Sizes that a picture was drawn for, and numbers of variants: "24", "16px", "4x3", "01".
_NUMBER = re.compile(r"0\d|10|12|16|20|24|28|32|48|96|\d+px|\d+x\d+")
# How an icon is drawn, at the end of names. Some are things too: "traffic light" has the concept
# "traffic". The other error would be worse: a drawing of a house in training, in a pen that is
# called light, and another, held out, as "house".
_STYLES = frozenset(
    "alt baseline bold broken color colored dark duo duotone fill filled flat light line linear "
    "outline outlined regular remix round rounded sharp solid stroke thin tone two twotone".split()
)


def label(name: str, prefixes: Iterable[str] = ()) -> str:
    """The words of a name, without the numbers among the styles at its end.

    prefixes: styles with which names of its set begin; they are put last, as in other sets.
    """
    for prefix in prefixes:
        if name.startswith(f"{prefix}-"):
            name = f"{name.removeprefix(prefix)[1:]}-{prefix}"
    words = _words(name)
    count = _subject(words)
    return " ".join(words[:count] + [word for word in words[count:] if not word.isdigit()
                                     and not _NUMBER.fullmatch(word)])  # fmt: skip


def concept(label: str) -> str:
    """What is drawn, however it is drawn: the words without styles and numbers at the end, sorted.

    A function of the label alone: what differs in its concept, differs in its label.
    """
    words = _words(label)
    kept = words[: _subject(words)]
    while len(kept) > 1 and kept[-1].isdigit():  # "house 2" is another drawing of a house
        kept = kept[: _subject(kept[:-1])]
    return " ".join(sorted(set(kept)))


def _words(name: str) -> list[str]:
    return re.findall(r"[^\s_-]+", name.lower())


def _subject(words: list[str]) -> int:
    """How many words come before styles and sizes; the first always does."""
    count = len(words)
    while count > 1 and (words[count - 1] in _STYLES or _NUMBER.fullmatch(words[count - 1])):
        count -= 1
    return count
