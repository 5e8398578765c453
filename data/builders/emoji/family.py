"""Families of concepts: what differs only by gender, age of a couple's child, direction or skin.

Variants of one concept must fall on one side of the split, or "woman running", seen in training,
would give away "man running", held out. Two concepts are of one family if their code points, or the
words of their labels, are equal once everything that only marks a variant is taken away, or if
they stand together in TOGETHER.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_JOINER = "200D"
_SKIN = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
_HAIR = {"1F9B0", "1F9B1", "1F9B2", "1F9B3"}
_GENDER = {"2640", "2642"}
_DIRECTION = {"27A1"}  # "facing right"
_SAME_PERSON = {
    "1F468": "1F9D1", "1F469": "1F9D1",  # man, woman -> person
    "1F466": "1F9D2", "1F467": "1F9D2",  # boy, girl -> child
    "1F474": "1F9D3", "1F475": "1F9D3",  # old man, old woman -> older person
}  # fmt: skip
_FAMILY, _PEOPLE = "1F46A", {"1F9D1", "1F9D2", _JOINER}

_GENDER_WORDS = frozenset(
    "man men woman women person people boy girl boys girls child children".split()
)
_DIRECTION_WORDS = frozenset(
    "left right up down leftwards rightwards upwards downwards leftward rightward upward downward "
    "facing pointing tilted horizontally vertically clockwise counterclockwise".split()
)
_QUALIFIED = re.compile(r"^(man|woman|person|people|kiss|couple with heart|family): .*$")

# Variants by gender or direction that neither code points nor labels show.
TOGETHER = (
    ("1F934", "1F478", "1FAC5"),  # prince, princess, person with crown
    ("1F385", "1F936", "1F9D1-200D-1F384"),  # Santa Claus, Mrs. Claus, Mx Claus
    ("1F46B", "1F46C", "1F46D", "1F9D1-200D-1F91D-200D-1F9D1"),  # couples holding hands
    ("1F9D1", "1F471", "1F9D4"),  # hair and beards
    ("1F931", "1F9D1-200D-1F37C"),  # breast-feeding, feeding a baby
    ("1F9DC", "1F9DC-200D-2640", "1F9DC-200D-2642"),  # merperson, mermaid, merman
    ("1F6B9", "1F6BA"),  # men's room, women's room
)


def code_key(concept: str) -> str:
    """The concept's code points without those that mark a variant."""
    parts = concept.split("-")
    if len(parts) == 1:
        return _SAME_PERSON.get(concept, concept)
    drop = _SKIN | _HAIR | _GENDER | _DIRECTION
    kept = [parts[0]] + [p for p in parts[1:] if p not in drop]
    kept = [_SAME_PERSON.get(p, p) for p in kept]
    while kept and kept[-1] == _JOINER:
        kept.pop()
    words: list[str] = []
    for part in kept:  # a dropped part leaves two joiners behind
        if part != _JOINER or words[-1] != _JOINER:
            words.append(part)
    if len(words) > 1 and set(words) <= _PEOPLE:
        return _FAMILY
    return "-".join(words)


def label_key(label: str) -> str:
    """The label's words without gender and direction; "" if nothing is left."""
    label = label.casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    label = _QUALIFIED.sub(r"\1", label)
    words = [re.sub(r"'s$", "", w) for w in re.split(r"[\s,:/-]+", label) if w]
    drop = _GENDER_WORDS | _DIRECTION_WORDS | {"and", "with", "the", "a"}
    return " ".join(w for w in words if w not in drop)


def families(labels: Mapping[str, str]) -> dict[str, str]:
    """concept -> family, for concept -> English label. A family is named by its least concept."""
    parent = {concept: concept for concept in labels}

    def root(concept: str) -> str:
        while parent[concept] != concept:
            parent[concept] = parent[parent[concept]]
            concept = parent[concept]
        return concept

    groups: dict[tuple[str, str], list[str]] = {}
    for concept, label in labels.items():
        groups.setdefault(("code", code_key(concept)), []).append(concept)
        if key := label_key(label):
            groups.setdefault(("label", key), []).append(concept)
    together = [[c for c in row if c in labels] for row in TOGETHER]
    for members in [*groups.values(), *together]:
        for member in members[1:]:
            a, b = sorted((root(members[0]), root(member)))
            parent[b] = a
    return {concept: root(concept) for concept in labels}
