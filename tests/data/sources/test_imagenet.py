import json

import numpy as np
import pytest
import scipy.io

from data.input import open_input
from data.sources import Feature, open_source
from mm.config import BadInput

IDS = ("n02", "n01", "n02")  # of the three pictures, by name


@pytest.fixture
def val(tmp_path):
    """The flat folder of ILSVRC 2012's validation, and the files that may come with it."""
    folder = tmp_path / "val"
    folder.mkdir()
    names = [f"ILSVRC2012_val_0000000{i}" for i in (1, 2, 3)]
    for name in reversed(names):
        (folder / f"{name}.JPEG").write_bytes(name.encode())
    rows = [f"{names[2]},n02 1 2 3 4 n02 5 6 7 8 ", f"{names[0]},n02 1 2 3 4 ", f"{names[1]},n01 1"]
    csv = "\n".join(["ImageId,PredictionString", *rows])
    (tmp_path / "LOC_val_solution.csv").write_text(f"{csv}\n")
    lines = [f"{name}.JPEG {label}" for name, label in zip(names, (7, 4, 7), strict=True)]
    (tmp_path / "val.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n2\n")
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)]
    synsets = np.array([(1, "n01", 0), (2, "n02", 0), (3, "n00", 2)], fields)
    scipy.io.savemat(tmp_path / "meta.mat", {"synsets": synsets[:, None]})
    return folder


def opened(val, labels, **given):
    path = str(val.parent / labels)
    return open_source(dict(name="folder", path=str(val), labels=path, **given), "source")


def test_a_flat_folder_without_a_file_has_no_labels(val):
    assert "label" not in open_source(dict(name="folder", path=str(val)), "source").features


@pytest.mark.parametrize(
    "labels, expected",
    [
        ("LOC_val_solution.csv", IDS),
        ("ILSVRC2012_validation_ground_truth.txt", IDS),
        ("val.txt", ("7", "4", "7")),
    ],
)
def test_each_file_says_the_label_of_each_picture(val, labels, expected):
    source = opened(val, labels)
    assert source.features["label"] == Feature("text")
    found = source.read(np.arange(3))
    assert [row["label"] for row in found] == list(expected)
    assert [row["image"].decode()[-1] for row in found] == ["1", "2", "3"]
    assert len(opened(val, labels, last=0.4)) == 1


def test_labels_are_numbered_by_names_for_a_text_tower(val, tmp_path):
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps({"tench": ["n01"], "goldfish": ["n02"]}))
    spec = dict(name="folder", path=str(val), labels=str(tmp_path / "LOC_val_solution.csv"))
    ops = f'decode|resize(8)|label("label", classes="{classes}")'
    opened = open_input(dict(source=spec, preprocess=ops), "evals.imagenet")
    assert opened.preprocess.only("label").classes == ("tench", "goldfish")


def test_a_picture_without_a_label_is_refused(val):
    (val / "ILSVRC2012_val_00000009.JPEG").write_bytes(b"9")
    with pytest.raises(BadInput, match="no label for 1 of 4 pictures; the first is .*00000009"):
        opened(val, "LOC_val_solution.csv")
    with pytest.raises(BadInput, match="has 3 labels, in the order of the names, and there are 4"):
        opened(val, "ILSVRC2012_validation_ground_truth.txt")


def test_two_labels_for_pictures_of_one_name_are_refused(val):
    (val.parent / "val.txt").write_text("a/1.jpg 3\na/2.jpg 3\nb/1.jpg 4\n")
    with pytest.raises(BadInput, match="val.txt: gives two labels to pictures called 1"):
        opened(val, "val.txt")


@pytest.mark.parametrize("text", ["", "a picture of a cat\n", "a.jpg\nb.jpg\n"])
def test_another_file_is_refused(val, text):
    (val.parent / "val.txt").write_text(text)
    with pytest.raises(BadInput, match="val.txt: is no file of labels as ImageNet has them"):
        opened(val, "val.txt")


def test_numbers_without_their_classes_are_refused(val):
    truth = "ILSVRC2012_validation_ground_truth.txt"
    (val.parent / truth).write_text("2\n1\n9\n")
    with pytest.raises(BadInput, match="meta.mat: does not name the classes .*KeyError.9"):
        opened(val, truth)
    (val.parent / "meta.mat").write_bytes(b"no matrix")
    with pytest.raises(BadInput, match="meta.mat: does not name the classes"):
        opened(val, truth)
    (val.parent / "meta.mat").unlink()
    with pytest.raises(BadInput, match="meta.mat: is missing; it says which classes"):
        opened(val, truth)
