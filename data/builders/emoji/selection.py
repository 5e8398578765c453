"""Which picture goes to which split, and the account of what was left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from data.builders.emoji.catalogue import Catalogue, Concept, name_tiers
from data.builders.emoji.join import Joined, join, name_index
from data.builders.holdout import held_out
from data.builders.iconify import IconSet

VALIDATION_VENDOR = "twemoji"
TRAIN_VENDORS = (
    "noto", "noto-v1", "fluent-emoji-flat", "emojione", "emojione-v1", "fxemoji",
    "streamline-emojis",
)  # fmt: skip
VENDORS = (*TRAIN_VENDORS, VALIDATION_VENDOR)
# vendor -> {icon: English label}, for names that no list has or that mean something else elsewhere.
OWN_NAMES = json.loads((Path(__file__).parent / "names.json").read_text())


class Picture(NamedTuple):
    """One example before it is rendered."""

    id: str  # vendor/concept, and /2 for the vendor's second drawing of it
    vendor: str
    concept: Concept
    icon: dict  # body, sides, moves


class Selection(NamedTuple):
    splits: dict[str, list[Picture]]  # `train`, sorted by vendor; `seen`; `unseen`
    joined: dict[str, Joined]  # by vendor
    unscored: int  # validation pictures that are flags or skin tones
    undrawn: int  # other validation pictures of concepts that training neither has nor holds out


def select(
    catalogue: Catalogue,
    icon_sets: Mapping[str, IconSet],
    own_names: Mapping[str, Mapping[str, str]],
) -> Selection:
    """Joins the icons of every vendor and deals them out; `icon_sets` are by vendor."""
    joined = join_all(catalogue, icon_sets, own_names)
    pictures = {
        vendor: list(_pictures(vendor, icon_sets[vendor], found, catalogue))
        for vendor, found in joined.items()
    }
    train = [
        picture
        for vendor in pictures
        if vendor != VALIDATION_VENDOR
        for picture in pictures[vendor]
        if not is_held_out(picture.concept)
    ]
    trained = {picture.concept.code for picture in train}
    validation = pictures[VALIDATION_VENDOR]
    scored = [picture for picture in validation if picture.concept.scored]
    unseen = [picture for picture in scored if is_held_out(picture.concept)]
    seen = [picture for picture in scored if picture.concept.code in trained]
    return Selection(
        splits={"train": train, "seen": seen, "unseen": unseen},
        joined=joined,
        unscored=len(validation) - len(scored),
        undrawn=len(scored) - len(seen) - len(unseen),
    )


def is_held_out(concept: Concept) -> bool:
    """Whether no vendor's picture of the concept may be trained on."""
    return concept.scored and held_out(concept.family)


def join_all(
    catalogue: Catalogue,
    icon_sets: Mapping[str, IconSet],
    own_names: Mapping[str, Mapping[str, str]],
) -> dict[str, Joined]:
    """vendor -> its icons joined. Raises ValueError if `own_names` has a label that is none."""
    codes = {concept.label: code for code, concept in catalogue.concepts.items()}
    tiers = name_tiers(catalogue, {v: s for v, s in icon_sets.items() if s.chars})
    joined = {}
    for vendor, icon_set in icon_sets.items():
        own = own_names.get(vendor, {})
        if unknown := sorted(set(own.values()) - codes.keys()):
            raise ValueError(f"names.json: {vendor}: no concept has the label {unknown[0]!r}")
        first = [("names.json", [(icon, codes[label]) for icon, label in own.items()])]
        names = name_index([*first, *tiers])
        joined[vendor] = join(icon_set, catalogue.concepts, catalogue.skin_tones, names)
    return joined


def _pictures(
    vendor: str, icon_set: IconSet, joined: Joined, catalogue: Catalogue
) -> Iterator[Picture]:
    """In the catalogue's order; a vendor's drawings of one concept in the order of their names."""
    icons, count = icon_set.drawable(), Counter()
    order = {code: position for position, code in enumerate(catalogue.concepts)}
    for drawing in sorted(joined.drawings, key=lambda d: (order[d.concept], d.icon)):
        code = drawing.concept
        count[code] += 1
        again = f"/{count[code]}" if count[code] > 1 else ""
        name = f"{vendor}/{code.lower()}{again}"
        yield Picture(name, vendor, catalogue.concepts[code], icons[drawing.icon])


def vendor_ranges(pictures: list[Picture]) -> dict[str, list[int]]:
    """vendor -> [start, end) of its pictures in a split."""
    ranges: dict[str, list[int]] = {}
    for position, picture in enumerate(pictures):
        ranges.setdefault(picture.vendor, [position, position])[1] = position + 1
    return ranges


def report(selection: Selection) -> Iterator[str]:
    """Lines for people: what joined, what did not, what is in the splits."""
    for vendor, joined in selection.joined.items():
        by_code = sum(d.how == "code point" for d in joined.drawings)
        lost = joined.unmatched
        names = f": {', '.join(lost[:4])}{', ...' if len(lost) > 4 else ''}" if lost else ""
        yield (
            f"{vendor:<18}{len(joined.drawings):>5} icons joined ({by_code} by code point, "
            f"{len(joined.drawings) - by_code} by name), {len(joined.skin_tones)} with skin tone "
            f"left out, {len(lost)} not joined{names}"
        )
    train, unseen = selection.splits["train"], selection.splits["unseen"]
    concepts = {picture.concept.code for picture in train}
    held = {picture.concept.family for picture in unseen}
    yield (
        f"training has {len(train)} pictures of {len(concepts)} concepts; held out of every vendor "
        f"are {len(unseen)} concepts in {len(held)} families"
    )
    yield (
        f"{VALIDATION_VENDOR}: {selection.unscored} flags and skin tones and {selection.undrawn} "
        "concepts that no other vendor draws are in no split"
    )
    for split in ("seen", "unseen"):
        captions = Counter(picture.concept.label.casefold() for picture in selection.splits[split])
        twice = sorted(label for label, number in captions.items() if number > 1)
        yield f"{split}: {len(twice)} labels stand for two pictures{': ' * bool(twice)}" + (
            ", ".join(twice)
        )
