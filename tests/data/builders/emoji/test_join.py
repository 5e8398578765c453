from hypothesis import given
from hypothesis import strategies as st

from data.builders.emoji.join import Drawing, concept_of, join, name_index, squeeze
from data.builders.iconify import IconSet

CONCEPTS = {"1F495", "2764", "1F355", "1F1EB-1F1F7", "1F449", "1F448"}
NAMES = name_index(
    [
        ("label", [("two hearts", "1F495"), ("red heart", "2764"), ("pizza", "1F355"),
                   ("flag: France", "1F1EB-1F1F7"), ("backhand index pointing right", "1F449")]),
        ("short", [("heart", "2764"), ("love", "2764"), ("love", "1F495")]),
        ("shorter", [("love", "1F355")]),
    ]
)  # fmt: skip


def icon_set(*icons, aliases=None, chars=None, **special):
    every = {**{name: {"body": "<g/>"} for name in icons}, **special}
    return IconSet(every, aliases or {}, chars or {}, {"width": 16, "height": 16})


def joined(icons):
    return join(icons, CONCEPTS, {"1F44D-1F3FB"}, NAMES)


def test_code_point_decides_before_the_name():
    found = joined(icon_set("pizza", chars={"1f495": "pizza"}))
    assert found.drawings == [Drawing("1F495", "pizza", "code point")]


def test_variation_selector_does_not_matter():
    found = joined(icon_set("x", chars={"2764-fe0f": "x"}))
    assert [d.concept for d in found.drawings] == ["2764"]
    assert concept_of("1f3f3-fe0f-200d-1f308") == "1F3F3-200D-1F308"


def test_without_code_points_the_name_joins():
    found = joined(icon_set("twohearts", "heart"))
    assert found.drawings == [
        Drawing("1F495", "twohearts", "label"),
        Drawing("2764", "heart", "short"),
    ]


def test_alias_of_an_icon_joins_it():
    found = joined(icon_set("corazon", aliases={"red-heart": {"parent": "corazon"}}))
    assert found.drawings == [Drawing("2764", "corazon", "label")]


def test_name_of_two_concepts_is_not_settled_by_a_worse_list():
    assert joined(icon_set("love")).unmatched == ["love"]


def test_flag_for_a_country_is_its_flag():
    assert [d.concept for d in joined(icon_set("flag-for-france")).drawings] == ["1F1EB-1F1F7"]


def test_several_drawings_of_one_concept_are_all_kept():
    found = joined(icon_set("pizza-1", "pizza-2"))
    assert [(d.concept, d.icon) for d in found.drawings] == [
        ("1F355", "pizza-1"),
        ("1F355", "pizza-2"),
    ]


def test_skin_tones_are_left_out_by_code_point_and_by_name():
    by_code = joined(icon_set("thumbs-up-1", chars={"1f44d-1f3fb": "thumbs-up-1"}))
    by_name = joined(icon_set("thumbs-up-dark-skin-tone", "elf-tone3"))
    assert by_code.skin_tones == ["thumbs-up-1"]
    assert by_name.skin_tones == ["elf-tone3", "thumbs-up-dark-skin-tone"]
    assert not by_code.drawings and not by_name.drawings


def test_hidden_icon_is_not_drawn():
    found = joined(icon_set(pizza={"body": "<g/>", "hidden": True}))
    assert found == ([], [], [])


def test_mirrored_alias_is_a_drawing_and_no_name_of_its_parent():
    icons = icon_set(
        "left", aliases={"backhand-index-pointing-right": {"parent": "left", "hFlip": True}},
        chars={"1f448": "left"},
    )  # fmt: skip
    assert {d.concept: d.icon for d in joined(icons).drawings} == {
        "1F448": "left",
        "1F449": "backhand-index-pointing-right",
    }
    assert icons.drawable()["backhand-index-pointing-right"]["hFlip"] is True


def test_code_point_that_is_no_concept_is_unmatched_even_if_the_name_is_known():
    assert joined(icon_set("pizza", chars={"e50a": "pizza"})).unmatched == ["pizza"]


@given(st.lists(st.text("abcz09", min_size=1), min_size=1), st.sampled_from("-_ :"))
def test_squeeze_ignores_how_words_are_parted(words, separator):
    assert squeeze(separator.join(words)) == squeeze("".join(words)) == "".join(words)


def test_squeeze_keeps_keycaps_apart():
    assert len({squeeze("keycap: #"), squeeze("keycap: *"), squeeze("keycap: 1")}) == 3
