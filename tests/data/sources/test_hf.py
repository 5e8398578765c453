"""Against what Hugging Face's library wrote: tests/golden/datasets/make.py."""

import io
import json
import shutil
import uuid
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import files
from data.sources import Feature, open_source
from mm.config import BadInput

GOLDEN = Path(__file__).resolve().parents[2] / "golden/datasets"
COLORS = ["red", "green", "blue"]


def open_hf(path, **kwargs):
    return open_source({"name": "hf", "path": str(path)} | kwargs, "config.input.source")


def opened(kind):
    if kind == "parquet":
        return open_source({"name": "parquet", "path": str(GOLDEN / "train.parquet")}, "source")
    return open_hf(GOLDEN / "saved", split="train")


@pytest.mark.parametrize("kind", ["hf", "parquet"])
def test_features_are_those_of_the_library(kind):
    assert opened(kind).features == {
        "image": Feature("image"),
        "caption": Feature("text"),
        "captions": Feature("text", ragged=True),
        "label": Feature("text"),
        "score": Feature("float32"),
        "size": Feature("int64", shape=(2,)),
    }


@pytest.mark.parametrize("kind", ["hf", "parquet"])
def test_rows_are_those_that_were_saved(kind):
    source = opened(kind)
    assert len(source) == 7
    for i, row in zip((6, 0, 4), source.read(np.array([6, 0, 4])), strict=True):
        picture = Image.open(io.BytesIO(row.pop("image")))
        assert np.array_equal(picture, Image.new("RGB", (2, 2), COLORS[i % 3]))
        assert row == {
            "caption": f"größe {i}",
            "captions": [f"{i} {j}" for j in range(i % 3)],
            "label": COLORS[i % 3],
            "score": i / 2,
            "size": [i, i + 1],
        }


def test_one_data_set_is_read_without_a_split():
    source = open_hf(GOLDEN / "saved/test")
    assert [row["caption"] for row in source.read(np.arange(2))] == ["größe 7", "größe 8"]


@pytest.mark.parametrize(
    "path, split, message",
    [
        ("saved", None, "saved: split=None: expected one of ['train', 'test']"),
        ("saved", "tset", "split='tset': expected one of ['train', 'test']; did you mean 'test'?"),
        ("saved/test", "test", "saved/test: is one data set, without splits; leave split="),
        ("none", None, "none: is no data set that `datasets` saved with save_to_disk"),
    ],
)
def test_a_folder_or_split_that_is_not_there_is_refused(path, split, message):
    with pytest.raises(BadInput) as error:
        open_hf(GOLDEN / path, split=split)
    assert message in str(error.value)


def test_what_is_far_away_is_read_as_what_is_here():
    far = f"memory://{uuid.uuid4().hex}/saved"
    for path in filter(Path.is_file, (GOLDEN / "saved").rglob("*")):
        files.write(f"{far}/{path.relative_to(GOLDEN / 'saved')}", path.read_bytes())
    source = open_hf(far, split="train")
    assert source.read(np.arange(7)) == opened("hf").read(np.arange(7))


def test_a_file_that_is_missing_or_cut_is_named(tmp_path):
    path = shutil.copytree(GOLDEN / "saved/train", tmp_path / "train")
    name = json.loads((path / "state.json").read_text())["_data_files"][0]["filename"]
    whole = (path / name).read_bytes()
    (path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=f"{name}: is no stream of Arrow batches") as error:
        open_hf(path)
    assert "\n" not in str(error.value)
    (path / name).unlink()
    with pytest.raises(BadInput, match=f"{name}: cannot be read"):
        open_hf(path)


def test_rows_in_another_order_than_their_files_are_refused(tmp_path):
    """As old versions saved what was shuffled or filtered."""
    path = shutil.copytree(GOLDEN / "saved/train", tmp_path / "train")
    state = json.loads((path / "state.json").read_text())
    state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(BadInput, match="was saved with indices by an old version"):
        open_hf(path)
