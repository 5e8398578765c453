import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from data.sources import BadExample, open_source
from mm.config import BadInput
from tests.data.sources import iconify_sets


@pytest.fixture
def path(tmp_path):
    return iconify_sets.write(tmp_path / "json")


def opened(path, **more):
    return open_source({"name": "iconify", "path": path, **more}, "source")


def names(source):
    records = source.read(np.arange(len(source)), ("set", "name"))
    return [f"{record['set']}:{record['name']}" for record in records]


def example(source, name, *keys):
    return source.read(np.array([names(source).index(name)]), keys or None)[0]


def pixels(record):
    with Image.open(io.BytesIO(record["image"])) as image:
        assert image.format == "PNG" and image.mode == "RGB"
        return np.asarray(image)


def test_an_icon_is_drawn_and_named(path):
    found = example(opened(path), "one:house")
    drawn = pixels(found)
    assert drawn.shape == (64, 64, 3)
    assert (drawn[12:52, 12:52] == 0).all() and (drawn[:10] == 255).all()
    del found["image"]
    assert found == {
        "label": "house",
        "tags": ["home", "buildings", "places"],
        "concept": "house",
        "name": "house",
        "set": "one",
        "author": "Ada",
        "license": "MIT",
    }


def test_colours_stay_and_a_flipped_alias_is_an_icon_of_its_own(path):
    source = opened(path)
    drawn = pixels(example(source, "one:traffic-cone-16"))
    assert (drawn[:, :32] == [255, 0, 0]).all() and (drawn[:, 32:] == 255).all()
    assert (pixels(example(source, "one:cone-mirrored")) == drawn[:, ::-1]).all()


def test_a_set_without_sides_has_those_of_iconify(path):
    drawn = pixels(example(opened(path), "two:outline-house"))
    assert (drawn[:, :32] == 0).all() and (drawn[:, 32:] == 255).all()


def test_one_concept_is_alike_over_sets_and_styles(path):
    source = opened(path)
    found = example(source, "two:outline-house", "label", "concept", "tags")
    assert found == {"label": "house outline", "concept": "house", "tags": ["flags", "maps"]}


def test_closed_licences_emoji_and_hidden_icons_are_left_out_and_counted(path, caplog):
    with caplog.at_level("INFO"):
        source = opened(path)
    assert {name.split(":")[0] for name in names(source)} == {"one", "two", "strange"}
    assert "one:given-up" not in names(source)
    assert "left out: 2 (set is not wanted), 1 (license is GPL-3.0)" in caplog.text
    assert "closed:cup" in names(opened(path, licenses=("MIT", "GPL-3.0")))
    assert "openmoji:fork" in names(opened(path, exclude=()))


def test_every_icon_is_in_one_split_by_its_author_and_its_concept(path):
    splits = {split: names(opened(path, split=split)) for split in ("train", "held_out")}
    splits["unseen_sets"] = names(opened(path, split="unseen_sets"))
    assert splits["held_out"] == ["one:hang-glider-bold"]
    assert splits["unseen_sets"] == ["strange:hang-glider"]
    assert sorted(sum(splits.values(), [])) == sorted(names(opened(path)))


def test_tags_name_nothing_that_is_on_the_other_side_of_the_split(path):
    assert "hang glider" not in example(opened(path), "one:house")["tags"]
    training = opened(path, split="train")
    assert example(training, "one:house", "tags")["tags"] == ["home", "buildings", "places"]


def test_unique_keeps_one_icon_of_each_concept(path):
    source = opened(path, unique=True)
    records = source.read(np.arange(len(source)), ("concept",))
    concepts = [record["concept"] for record in records]
    assert len(set(concepts)) == len(concepts)
    everyone = opened(path)
    records = everyone.read(np.arange(len(everyone)), ("concept",))
    assert set(concepts) == {record["concept"] for record in records}
    assert source.left_out["another icon of its concept is there"] == len(everyone) - len(source)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("one:snow", "picture is all white"), ("one:cracked", "SVG cannot be drawn")],
)
def test_a_drawing_that_shows_nothing_is_a_broken_example(path, name, reason):
    source = opened(path)
    with pytest.raises(BadExample, match=name) as raised:
        example(source, name)
    assert raised.value.reason == reason
    assert example(source, name, "name")["name"] == name[4:]  # the names are whole


def test_shards_are_the_sets_and_a_share_can_be_taken(path):
    source = opened(path)
    assert source.shards.sum() == len(source) and len(source.shards) == 3
    half = [opened(path, last=0.5), opened(path, first=0.5)]
    assert sum(map(names, half), []) == names(source)


def test_two_openings_and_several_threads_read_the_same_bytes(path):
    ids = np.array([0, 6, 2, 0, 7])
    with ThreadPoolExecutor(4) as threads:
        source = opened(path)
        found = list(threads.map(source.read, [ids] * 8))
    assert all(records == opened(path).read(ids) for records in found)


def test_sets_are_taken_by_name_or_pattern(path):
    assert names(opened(path, sets=("tw*",))) == ["two:outline-house"]
    with pytest.raises(BadInput, match="no set fits 'onne'; did you mean 'one'"):
        opened(path, sets=("onne",))


def test_nothing_left_says_why(path):
    with pytest.raises(BadInput, match="no icon for split='held_out'; left out: .* another split"):
        opened(path, sets=("two",), split="held_out")


def test_a_folder_without_sets_says_how_to_get_them(tmp_path):
    with pytest.raises(BadInput, match="python -m data.builders.icons"):
        opened(str(tmp_path))


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"prefix": "a", "info": {}, "icons": {}}', '{"icons": {"a": {}}}']
)
def test_a_file_that_is_no_set_is_named(tmp_path, content):
    (tmp_path / "broken.json").write_text(content)
    with pytest.raises(BadInput, match=r"broken.json: is no icon set of Iconify"):
        opened(str(tmp_path))
