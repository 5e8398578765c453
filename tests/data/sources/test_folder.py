import uuid

import fsspec
import numpy as np
import pytest

from data.sources import BadExample, Feature, open_source
from mm.config import BadInput


def write(folder, contents):
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(folder)


def open_folder(path, **kwargs):
    return open_source({"name": "folder", "path": path} | kwargs, "config.input.source")


def test_the_first_subfolder_is_the_label(tmp_path):
    contents = {"n02/b.JPEG": b"2", "n01/x/a.png": b"1", "n03/c.webp": b"3"}
    path = write(tmp_path, contents | {"n01/._a.jpg": b"", "n01/list.csv": b""})
    source = open_folder(path)
    assert source.read(np.arange(3)) == [
        {"image": b"1", "label": "n01", "file_name": "n01/x/a.png"},
        {"image": b"2", "label": "n02", "file_name": "n02/b.JPEG"},
        {"image": b"3", "label": "n03", "file_name": "n03/c.webp"},
    ]
    assert source.features["label"] == Feature("text")
    assert len(open_folder(path, first=0.5)) == 1


def test_pictures_without_a_subfolder_have_no_label(tmp_path):
    source = open_folder(write(tmp_path, {"b.png": b"2", "n01/a.png": b"1"}))
    assert [row["image"] for row in source.read(np.arange(2))] == [b"2", b"1"]
    assert set(source.features) == {"image", "file_name"}


def test_a_text_beside_a_picture_is_its_caption(tmp_path):
    contents = {"a.jpg": b"1", "b.jpg": b"2", "c.jpg": b"3"}
    texts = {"a.txt": "größe\n".encode(), "c.txt": b"\xff"}
    source = open_folder(write(tmp_path, contents | texts))
    assert source.features["caption"] == Feature("text")
    assert source.read(np.array([0]), ["caption"]) == [{"caption": "größe"}]
    assert source.read(np.array([1]), ["image"]) == [{"image": b"2"}]
    for i, reason in ((1, "field is missing"), (2, "text is no UTF-8")):
        with pytest.raises(BadExample, match=f"{'abc'[i]}.txt") as error:
            source.read(np.array([i]))
        assert error.value.reason == reason


def test_a_picture_that_is_gone_is_a_broken_example(tmp_path):
    source = open_folder(write(tmp_path, {"a.jpg": b"1"}))
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(BadExample, match="a.jpg: picture 'a.jpg' is missing"):
        source.read(np.array([0]))


def test_a_folder_may_be_far_away():
    path = f"memory://{uuid.uuid4().hex}"
    for name, data in {"x/a.png": b"1", "x/a.txt": b"a", "y/b.png": b"2", "y/b.txt": b"b"}.items():
        fsspec.filesystem("memory").pipe_file(f"{path}/{name}", data)
    found = open_folder(path).read(np.arange(2), ["image", "caption", "label"])
    assert found == [
        {"image": b"1", "caption": "a", "label": "x"},
        {"image": b"2", "caption": "b", "label": "y"},
    ]


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(BadInput, match="has no picture among 1 files .*.jpg"):
        open_folder(write(tmp_path, {"a.txt": b""}))
    with pytest.raises(BadInput, match="none: cannot be read"):
        open_folder(str(tmp_path / "none"))
