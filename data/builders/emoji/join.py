"""Which icon shows which concept: by code point where the set has them, else by name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import NamedTuple

from data.builders.iconify import IconSet

SKIN_TONES = frozenset({"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"})
_SKIN_NAME = re.compile(r"skin-tone|-tone-?[1-5]$|-(light|medium|dark)$")
_NUMBERED = re.compile(r"(.*\D)-\d")  # "pizza-2": another drawing of "pizza"


class Drawing(NamedTuple):
    """One icon of a set, and the concept it shows."""

    concept: str  # hexcode without FE0F
    icon: str
    how: str  # "code point", or the list that had the name


class Joined(NamedTuple):
    drawings: list[Drawing]
    skin_tones: list[str]  # icons that differ from another only by skin tone: left out
    unmatched: list[str]  # icons of which nobody knows what they show


def concept_of(hexcode: str) -> str:
    """A code point sequence without FE0F, the selector that vendors set or leave as they like."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def squeeze(name: str) -> str:
    """A name as letters and digits only: `Two Hearts`, `two_hearts` and `twohearts` are equal."""
    plain = unicodedata.normalize("NFKD", name.replace("#", "hash").replace("*", "asterisk"))
    return "".join(c for c in plain.casefold() if c.isalnum())


def name_index(
    tiers: Iterable[tuple[str, Iterable[tuple[str, str]]]],
) -> dict[str, tuple[str | None, str]]:
    """squeezed name -> (concept, list), from (list, (name, concept) pairs), the best list first.

    A name that means two concepts in one list is (None, list): the later lists are less exact, so
    they cannot settle it.
    """
    index: dict[str, tuple[str | None, str]] = {}
    for tier, pairs in tiers:
        found: dict[str, set[str]] = {}
        for name, concept in pairs:
            found.setdefault(squeeze(name), set()).add(concept)
        for name, concepts in found.items():
            if name:
                only = next(iter(concepts)) if len(concepts) == 1 else None
                index.setdefault(name, (only, tier))
    return index


def join(
    icon_set: IconSet,
    concepts: Container[str],
    skin_tones: Container[str],
    names: Mapping[str, tuple[str | None, str]],
) -> Joined:
    """Joins every icon that is not hidden; `names` comes from `name_index`.

    A set may draw one concept several times (`pizza-1`, `pizza-2`): each is a drawing.
    """
    drawings, toned, unmatched = [], [], []
    codes: dict[str, list[str]] = {}
    for hexcode, icon in icon_set.chars.items():
        codes.setdefault(icon, []).append(concept_of(hexcode))
    also: dict[str, list[str]] = {}
    for alias, entry in icon_set.aliases.items():
        if not icon_set.moves(alias):
            also.setdefault(entry["parent"], []).append(alias)
    for icon in icon_set.drawable():
        if known := [code for code in codes.get(icon, ()) if code in concepts]:
            drawings += [Drawing(code, icon, "code point") for code in known]
        elif icon in codes:
            is_toned = any(c in skin_tones or SKIN_TONES & set(c.split("-")) for c in codes[icon])
            (toned if is_toned else unmatched).append(icon)
        elif found := _by_name([icon, *also.get(icon, ())], names):
            drawings.append(Drawing(found[0], icon, found[1]))
        else:
            (toned if _SKIN_NAME.search(icon) else unmatched).append(icon)
    return Joined(sorted(drawings), sorted(toned), sorted(unmatched))


def _by_name(
    known_as: Iterable[str], names: Mapping[str, tuple[str | None, str]]
) -> tuple[str, str] | None:
    for name in known_as:
        for spelling in _spellings(name):
            concept, tier = names.get(squeeze(spelling), (None, ""))
            if concept:
                return concept, tier
    return None


def _spellings(name: str) -> Iterator[str]:
    if name.startswith("flag-for-"):  # before the name itself: some sets draw two flags as one
        yield "flag-" + name.removeprefix("flag-for-").removeprefix("flag-")
    yield name
    if match := _NUMBERED.fullmatch(name):
        yield match[1]
