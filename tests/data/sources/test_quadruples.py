"""Two pictures and two captions a row, as pairs; and the builder that makes some."""

import json

import numpy as np
import pytest
from PIL import Image

from data.builders import quadruples
from data.sources import open_source
from data.sources.pictures import decode
from mm.config import BadInput


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    source = open_source(dict(name="synthetic", num_examples=30, image_size=12), "x")
    return source, quadruples.build(source, tmp_path_factory.mktemp("quadruples"), 5)


def test_rows_become_two_examples_each(built):
    _, path = built
    source = open_source(dict(name="quadruples", of=dict(name="jsonl", path=str(path))), "x")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(source) == 10 and set(source.features) == {"image", "caption"}
    records = source.read(np.array([6, 7, 0]))
    assert [r["caption"] for r in records] == [
        lines[3]["caption_0"], lines[3]["caption_1"], lines[0]["caption_0"],
    ]  # fmt: skip
    assert records[1]["image"] == (path.parent / lines[3]["image_1"]).read_bytes()
    assert source.read(np.array([2]), ("caption",)) == [{"caption": lines[1]["caption_0"]}]


def test_other_columns_have_other_names(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    row = {"left": "a.png", "right": "a.png", "one": "x", "two": "y"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    of = dict(name="jsonl", path=str(tmp_path / "rows.jsonl"))
    spec = dict(name="quadruples", of=of, images=("left", "right"), captions=("one", "two"))
    found = open_source(spec, "x").read(np.arange(2))
    assert [record["caption"] for record in found] == ["x", "y"]
    with pytest.raises(BadInput, match="expected two columns each"):
        open_source(spec | dict(images=("left",)), "x")
    with pytest.raises(BadInput, match="has no picture's path in 'image_0'"):
        open_source(dict(name="quadruples", of=of), "x")


def test_the_pictures_and_captions_that_are_made_say_the_same_with_places_changed(built):
    source, path = built
    labels = {record["label"]: decode(record["image"]) for record in source.read(np.arange(30))}
    for line in map(json.loads, path.read_text().splitlines()):
        for side in (0, 1):
            caption, other = line[f"caption_{side}"], line[f"caption_{1 - side}"]
            relation = next(r for r in quadruples._RELATIONS if f" {r} " in caption)
            one, two = caption.split(f" {relation} ")
            assert other == f"{two} {relation} {one}" and {one, two} <= {*labels}
            pixels = np.asarray(Image.open(path.parent / line[f"image_{side}"]))
            pixels = pixels if relation == "left of" else pixels.swapaxes(0, 1)
            assert pixels.shape == (24, 24, 3) and (pixels[:6] == 255).all()
            swapped = np.asarray(Image.open(path.parent / line[f"image_{1 - side}"]))
            swapped = swapped if relation == "left of" else swapped.swapaxes(0, 1)
            np.testing.assert_array_equal(pixels[6:18, :12], swapped[6:18, 12:])


def test_the_same_call_writes_the_same(built, tmp_path):
    source, path = built
    again = quadruples.build(source, tmp_path, 5)
    assert again.read_text() == path.read_text()
    for picture in path.parent.glob("*.png"):
        assert picture.read_bytes() == (tmp_path / picture.name).read_bytes()


def test_mistakes_are_told_in_one_line(capsys, tmp_path):
    assert quadruples.main(["--count=0"]) == 2
    assert quadruples.main([f"--data_dir={tmp_path}"]) == 2
    assert capsys.readouterr().err.count("error: ") == 2
