"""The values of a field as classes, and the label that comes of them."""

import json

import numpy as np
import pytest
from PIL import Image

from data import classes
from data.input import example, open_input
from mm.config import BadInput


@pytest.mark.parametrize(
    ("field", "want"), [("kind", ["cat", "dog"]), ("tags", ["big", "old", "red"])]
)
def test_values_are_written_sorted_and_once(tmp_path, capsys, field, want):
    kinds, tags = ["dog", "cat", "dog"], [["red"], [], ["old", "big"]]
    lines = [
        {"image": "x", "kind": kind, "tags": some} for kind, some in zip(kinds, tags, strict=True)
    ]
    lines[1]["tags"] = ["big"]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, [lines[0], lines[2], lines[1]])))
    output = tmp_path / "classes.json"
    assert classes.main([str(path), f"--field={field}", f"--output={output}"]) == 0
    assert json.loads(output.read_text()) == want
    assert f"{len(want)} classes in" in capsys.readouterr().out


def test_the_most_frequent_values_are_those_of_most_examples(tmp_path):
    path = tmp_path / "pairs.jsonl"
    tags = [["a", "z", "z", "z"], ["a", "b"], ["b", "c"]]
    path.write_text("\n".join(json.dumps({"image": "x", "tags": some}) for some in tags))
    assert classes.classes(str(path), "tags", most=2) == ["a", "b"]
    assert classes.classes(str(path), "tags", most=3) == ["a", "b", "c"]  # before z, as many
    with pytest.raises(BadInput, match="--most=0: expected at least 1"):
        classes.classes(str(path), "tags", most=0)


def test_a_folder_of_classes_is_labelled_by_its_file(tmp_path):
    for name in ("tench", "goldfish"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name / "1.png")
    output = tmp_path / "classes.json"
    assert classes.main([f"{tmp_path}/photos", "--field=label", f"--output={output}"]) == 0
    spec = dict(source=dict(name="folder", path=f"{tmp_path}/photos"))
    source, ops, _ = open_input(spec | dict(preprocess=f"label('label', '{output}')"), "x")
    np.testing.assert_array_equal(example(source, ops)["label"], [0])
    assert ops.classes == ("goldfish", "tench")


def test_a_field_that_is_not_there_is_refused(tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"image": "x", "kind": "cat", "size": 3}))
    assert classes.main([str(path), "--field=size", f"--output={tmp_path}/c.json"]) == 2
    assert "--field=size: the source has no such texts (have ['kind'])" in capsys.readouterr().err
    with pytest.raises(BadInput, match="did you mean 'kind'"):
        classes.classes(str(path), "kinds")
