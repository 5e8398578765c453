import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.builders.emoji.catalogue import Catalogue, Concept
from data.builders.emoji.selection import (
    TRAIN_VENDORS,
    VENDORS,
    report,
    select,
    vendor_ranges,
)
from data.builders.iconify import IconSet

SIDES = {"width": 16, "height": 16}


def labels(pictures):
    return {picture.concept.label for picture in pictures}


def test_held_out_concept_is_in_no_training_vendor_and_flags_are_not_scored(world):
    splits = select(*world, own_names={}).splits
    assert labels(splits["unseen"]) == {"honeybee"}
    assert labels(splits["seen"]) == {"grinning face", "person running", "woman running"}
    assert labels(splits["train"]) == labels(splits["seen"]) | {"flag: France"}
    assert {picture.vendor for picture in splits["train"]} == set(TRAIN_VENDORS)
    assert {picture.vendor for picture in splits["seen"] + splits["unseen"]} == {"twemoji"}


def test_training_is_sorted_by_vendor_and_its_ranges_cover_it(world):
    train = select(*world, own_names={}).splits["train"]
    ranges = vendor_ranges(train)
    assert list(ranges) == list(TRAIN_VENDORS)
    for vendor, (start, end) in ranges.items():
        assert {picture.vendor for picture in train[start:end]} == {vendor}
    assert sum(end - start for start, end in ranges.values()) == len(train)


def test_own_name_of_a_vendor_beats_every_list(world):
    catalogue, sets = world
    own = {"fxemoji": {"grinning-face": "person running"}}
    drawings = select(catalogue, sets, own).joined["fxemoji"].drawings
    assert {d.icon: d.concept for d in drawings}["grinning-face"] == "1F3C3"


def test_own_name_that_is_no_label_is_refused(world):
    with pytest.raises(ValueError, match="'gone'"):
        select(*world, own_names={"fxemoji": {"x": "gone"}})


def test_concept_that_only_the_validation_vendor_draws_is_in_no_split(world):
    catalogue, sets = world
    for vendor in TRAIN_VENDORS:
        icons = {name: icon for name, icon in sets[vendor].icons.items() if name != "grinning-face"}
        sets[vendor] = sets[vendor]._replace(icons=icons, chars={})
    selection = select(catalogue, sets, {})
    assert "grinning face" not in labels(selection.splits["seen"])
    assert selection.undrawn == 1


def test_report_names_what_did_not_join(world):
    catalogue, sets = world
    icons = {**sets["fxemoji"].icons, "acorn": {"body": "<g/>"}}
    sets["fxemoji"] = sets["fxemoji"]._replace(icons=icons)
    lines = list(report(select(catalogue, sets, {})))
    assert sum(line.endswith("0 not joined") for line in lines) == len(VENDORS) - 1
    assert sum(line.endswith("1 not joined: acorn") for line in lines) == 1


def test_report_names_captions_that_stand_for_two_pictures(world):
    catalogue, sets = world
    woman = catalogue.concepts["1F3C3-200D-2640"]._replace(label="Person running")
    catalogue.concepts["1F3C3-200D-2640"] = woman
    lines = list(report(select(catalogue, sets, {})))
    assert "seen: 1 labels stand for two pictures: person running" in lines


@given(st.data())
def test_no_family_is_on_both_sides(data):
    """Whatever vendors draw and however concepts fall into families."""
    codes = [f"{code:X}" for code in range(0x1F300, 0x1F300 + 60)]
    family = data.draw(st.lists(st.sampled_from(codes), min_size=60, max_size=60))
    concepts = {
        code: Concept(code, f"name {code}", (), "objects", "", {}, family[i])
        for i, code in enumerate(codes)
    }
    sets = {}
    for vendor in VENDORS:
        drawn = data.draw(st.lists(st.sampled_from(codes), unique=True))
        icons = {f"i{code}": {"body": "<g/>"} for code in drawn}
        sets[vendor] = IconSet(icons, {}, {code: f"i{code}" for code in drawn}, SIDES)
    splits = select(Catalogue(concepts, frozenset(), []), sets, {}).splits
    sides = [{p.concept.family for p in splits[name]} for name in ("train", "unseen")]
    assert not sides[0] & sides[1]
    assert {p.concept.code for p in splits["seen"]} <= {p.concept.code for p in splits["train"]}
    ids = [p.id for pictures in splits.values() for p in pictures]
    assert len(ids) == len(set(ids))
