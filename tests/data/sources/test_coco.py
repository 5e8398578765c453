import json

import numpy as np
import pytest

from data.sources import BadExample, Feature, open_source
from mm.config import BadInput


def opened(name, path, **kwargs):
    return open_source({"name": name, "path": str(path)} | kwargs, "config.input.source")


def pictures(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(name.encode())


@pytest.fixture
def annotations(tmp_path):
    """The layout of COCO 2017, with a picture without captions and a caption without picture."""
    pictures(tmp_path / "train2017", "1.jpg", "2.jpg", "3.jpg")
    found = {
        "info": {},
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 2} for i in (3, 1, 2)],
        "annotations": [
            {"id": 10, "image_id": 2, "caption": "größe "},
            {"id": 11, "image_id": 3, "caption": "a"},
            {"id": 12, "image_id": 2, "caption": "b"},
            {"id": 13, "image_id": 9, "caption": "c"},
        ],
    }
    path = tmp_path / "annotations/captions_train2017.json"
    path.parent.mkdir()
    path.write_text(json.dumps(found))
    return path


def test_an_example_is_a_picture_with_all_its_captions(annotations, caplog):
    source = opened("coco", annotations)
    assert source.features == {
        "image": Feature("image"),
        "file_name": Feature("text"),
        "caption": Feature("text"),
        "captions": Feature("text", ragged=True),
        "image_id": Feature("int64"),
    }
    want = {"image": b"2.jpg", "file_name": "2.jpg", "image_id": 2, "caption": "größe "}
    assert source.read(np.array([1])) == [want | {"captions": ["größe ", "b"]}]
    assert [row["image_id"] for row in source.read(np.arange(2), ["image_id"])] == [3, 2]
    assert "1 of 3 pictures have no caption and are left out" in caplog.text
    assert "1 captions are of no picture" in caplog.text


def test_an_example_may_be_a_caption_that_says_whose_it_is(annotations):
    source = opened("coco", annotations, each_caption=True)
    found = source.read(np.arange(len(source)), ["image_id", "caption", "image"])
    assert [(x["image_id"], x["caption"], x["image"]) for x in found] == [
        (3, "a", b"3.jpg"), (2, "größe ", b"2.jpg"), (2, "b", b"2.jpg"),
    ]  # fmt: skip
    assert "captions" not in source.features


def test_a_tilde_is_the_home_folder(annotations, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = annotations.relative_to(tmp_path)
    assert len(opened("coco", f"~/{path}")) == 2
    pictures(tmp_path / "flickr30k-images", "7.jpg")
    (tmp_path / "results.token").write_text("7.jpg#0\tA dog .")
    assert len(opened("flickr30k", "~/results.token")) == 1


def test_pictures_may_be_elsewhere(annotations, tmp_path):
    pictures(tmp_path / "far", "3.jpg")
    (tmp_path / "far/3.jpg").write_bytes(b"other")
    source = opened("coco", annotations, images=str(tmp_path / "far"), last=0.5)
    assert source.read(np.array([0]), ["image"]) == [{"image": b"other"}]
    with pytest.raises(BadInput, match="no folder of pictures .*none; set images"):
        opened("coco", annotations, images=str(tmp_path / "none"))


def test_a_missing_picture_is_a_broken_example(annotations, tmp_path):
    (tmp_path / "train2017/2.jpg").unlink()
    with pytest.raises(BadExample, match="captions_train2017.json row 1: picture '2.jpg'") as error:
        opened("coco", annotations).read(np.array([1]))
    assert error.value.reason == "picture is missing"


@pytest.mark.parametrize(
    "caption, reason", [(None, "field has the wrong type"), ("\ud83d", "text is no UTF-8")]
)
def test_a_broken_caption_is_a_broken_example(annotations, caption, reason):
    found = json.loads(annotations.read_text())
    found["annotations"][2]["caption"] = caption
    annotations.write_text(json.dumps(found))
    source = opened("coco", annotations)
    assert source.read(np.array([1]), ["caption"]) == [{"caption": "größe "}]
    with pytest.raises(BadExample) as error:
        source.read(np.array([1]), ["captions"])
    assert error.value.reason == reason


@pytest.fixture
def karpathy(tmp_path):
    found = {"dataset": "coco", "images": []}
    for i, split in enumerate(["train", "test", "restval", "test"]):
        folder = "val2014" if split == "test" else "train2014"
        pictures(tmp_path / folder, f"{i}.jpg")
        sentences = [{"raw": f"{i} {j}", "tokens": []} for j in range(5)]
        image = {"filepath": folder, "filename": f"{i}.jpg", "imgid": i, "cocoid": i + 100}
        found["images"].append(image | {"split": split, "sentences": sentences})
    (tmp_path / "dataset_coco.json").write_text(json.dumps(found))
    return tmp_path / "dataset_coco.json"


def test_karpathys_splits_are_read(karpathy):
    assert len(opened("coco", karpathy)) == 4
    first, other = opened("coco", karpathy, split="test").read(np.arange(2))
    assert first["image"] == b"1.jpg" and first["file_name"] == "val2014/1.jpg"
    assert other["captions"] == [f"3 {j}" for j in range(5)] and other["image_id"] == 103
    both = opened("coco", karpathy, split="train+restval").read(np.arange(2), ["caption"])
    assert both == [{"caption": "0 0"}, {"caption": "2 0"}]


def test_a_split_that_is_not_there_is_refused(karpathy, annotations):
    with pytest.raises(BadInput, match="no split 'tests'; did you mean 'test'?"):
        opened("coco", karpathy, split="train+tests")
    with pytest.raises(BadInput, match="has no splits; leave split='test' out"):
        opened("coco", annotations, split="test")


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is no JSON"),
        ("[]", "is no JSON object"),
        ("{}", "is no file of captions as COCO or Karpathy write it (KeyError('images'))"),
        ('{"images": [], "annotations": []}', "has no picture with a caption"),
        ('{"images": [{"id": 1, "file_name": "a"}], "annotations": [{}]}', "KeyError('image_id')"),
        ('{"images": 3, "annotations": []}', "is no file of captions"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BadInput) as error:
        opened("coco", tmp_path / "a.json")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "name, line, head",
    [
        ("results_20130124.token", "{}.jpg#{}\t{}", ""),
        ("results.csv", "{}.jpg| {}| {}", "image_name| comment_number| comment\r\n"),
    ],
)
def test_flickr30k_has_five_captions_a_picture(tmp_path, caplog, name, line, head):
    pictures(tmp_path / "flickr30k-images", "7.jpg", "8.jpg")
    lines = [line.format(i, j, f"A dog, {i} | {j} .") for i in (8, 7) for j in range(5)]
    text = head + "\r\n".join([*lines, "7.jpg| 4   A dog runs ."]) + "\r\n"
    (tmp_path / name).write_text(text, newline="")
    first, other = opened("flickr30k", tmp_path / name).read(np.arange(2))
    assert other == {
        "image": b"7.jpg",
        "file_name": "7.jpg",
        "caption": "A dog, 7 | 0 .",
        "captions": [f"A dog, 7 | {j} ." for j in range(5)],
    }
    assert first["image"] == b"8.jpg" and "1 lines are no captions" in caplog.text


def test_another_file_than_flickr30ks_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("image,caption\n1.jpg,a dog\n")
    with pytest.raises(BadInput, match="a.csv: has no line as Flickr30k's files have"):
        opened("flickr30k", tmp_path / "a.csv")
