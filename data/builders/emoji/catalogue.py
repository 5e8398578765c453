"""What emojibase knows: the concepts, their names in 28 languages, and every name an icon may have.

emojibase-data: https://emojibase.dev/docs/datasets
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from data.builders.emoji.family import families
from data.builders.emoji.join import concept_of
from data.builders.iconify import IconSet
from mm.config import BadInput

LANGUAGES = tuple(
    "bn da de en-gb es es-mx et fi fr hi hu it ja ko lt ms nb nl pl pt ru sv th uk vi zh "
    "zh-hant".split()
)
# Lists of short names, the more exact first.
_SHORTCODES = ("cldr", "emojibase", "joypixels", "iamcal", "github", "emojibase-legacy")
_UNSCORED_GROUPS = ("", "component", "flags")  # "": the 26 letters that flags are spelled with


class Concept(NamedTuple):
    """One emoji without skin tone."""

    code: str  # hexcode without FE0F
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str
    labels: Mapping[str, str]  # language -> label, "" where emojibase has none
    family: str

    @property
    def scored(self) -> bool:
        """Whether it may stand in a pool that is scored: no flag and no skin tone."""
        return self.group not in _UNSCORED_GROUPS


class Catalogue(NamedTuple):
    concepts: dict[str, Concept]  # by code, in the order of the emoji keyboard
    skin_tones: frozenset[str]  # codes of concepts with a skin tone
    shortcodes: list[tuple[str, list[tuple[str, str]]]]  # (list, (name, code) pairs), best first


def read_catalogue(read: Callable[[str], Any]) -> Catalogue:
    """The catalogue, with `read(file)` giving the parsed JSON files of emojibase-data.

    Raises:
      BadInput: a file lacks what we use.
    """
    try:
        return _catalogue(read)
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"emoji: package emojibase-data is damaged: {error!r}") from error


def _catalogue(read: Callable[[str], Any]) -> Catalogue:
    entries = {concept_of(e["hexcode"]): e for e in read("en/data.json")}
    groups = read("meta/groups.json")
    labels = {
        language: {concept_of(e["hexcode"]): e["label"] for e in read(f"{language}/data.json")}
        for language in LANGUAGES
    }
    family = families({code: e["label"] for code, e in entries.items()})
    concepts = {
        code: Concept(
            code=code,
            label=e["label"],
            tags=tuple(e.get("tags", ())),
            group=groups["groups"].get(str(e.get("group")), ""),
            subgroup=groups["subgroups"].get(str(e.get("subgroup")), ""),
            labels={language: labels[language].get(code, "") for language in LANGUAGES},
            family=family[code],
        )
        for code, e in sorted(entries.items(), key=lambda item: item[1].get("order", 0))
    }
    toned = frozenset(
        concept_of(s["hexcode"]) for e in entries.values() for s in e.get("skins", ())
    )
    lists = [(name, read(f"en/shortcodes/{name}.json")) for name in _SHORTCODES]
    lists.append(("unicode", read("meta/unicode-names.json")))
    return Catalogue(
        concepts, toned, [(name, list(_named(table, concepts))) for name, table in lists]
    )


def name_tiers(
    catalogue: Catalogue, by_code: Mapping[str, IconSet]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """All names of all concepts, the most exact list first: (list, (name, code) pairs).

    Labels come first, then the icon names and aliases of the sets in `by_code`, whose icons are
    known by code point, because Iconify names icons alike over its sets; then short codes.
    """
    labels = [(c.label, code) for code, c in catalogue.concepts.items()]
    sets = [(name, list(_icon_names(s, catalogue.concepts))) for name, s in by_code.items()]
    return [("label", labels), *sets, *catalogue.shortcodes]


def _named(table: Mapping[str, str | list[str]], concepts: Mapping) -> Iterator[tuple[str, str]]:
    for hexcode, names in table.items():
        if (code := concept_of(hexcode)) in concepts:
            yield from ((name, code) for name in ([names] if isinstance(names, str) else names))


def _icon_names(icons: IconSet, concepts: Mapping) -> Iterator[tuple[str, str]]:
    shown = {icon: code for hexcode, icon in icons.chars.items()
             if (code := concept_of(hexcode)) in concepts}  # fmt: skip
    yield from shown.items()
    for alias, entry in icons.aliases.items():
        if entry["parent"] in shown and not icons.moves(alias):
            yield alias, shown[entry["parent"]]
