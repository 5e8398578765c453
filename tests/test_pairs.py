"""What `path` of a recipe on pairs may be."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.pairs import ARGUMENTS, pairs_source
from data.input import example, open_input
from data.sources import open_source
from mm.config import BadInput, load, plain
from mm.train import train
from tests.tiny import TEXT, TEXTS, get_config

COUNT = 100
ROOT = Path(__file__).resolve().parents[1]
SAVED = ROOT / "tests/golden/datasets/saved"


def source(path, **given):
    return pairs_source(ARGUMENTS | {"path": str(path)} | given)


@pytest.mark.parametrize("path, name", [("pairs.TSV", "csv"), ("s3://b/{0..9}.tar", "webdataset")])
def test_columns_may_have_other_names(path, name):
    keys = {"image_key": "image", "caption_key": "caption"}
    assert source(path) == {"name": name, "path": path} | keys
    keys = {"image_key": "URL", "caption_key": "TEXT"}
    assert source(path, **keys) == {"name": name, "path": path} | keys


@pytest.mark.parametrize("path, name", [("c/captions.json", "coco"), ("r.token", "flickr30k")])
def test_a_file_whose_fields_are_known_has_no_names_of_them(path, name):
    assert source(path) == {"name": name, "path": path}
    with pytest.raises(BadInput, match="caption_key=TEXT: .* has no columns; leave it out"):
        source(path, caption_key="TEXT")


def pair(i):
    spec = {"name": "synthetic", "num_examples": COUNT, "image_size": 20}
    (record,) = open_source(spec, "pairs").read(np.array([i]), ["image", "label"])
    return {"image": record["image"], "caption": record["label"]}


def write(folder, kind):
    """COUNT pairs of made-up pictures, and where they are."""
    (folder / "images").mkdir()
    rows = []
    for i in range(COUNT):
        rows.append(pair(i) | {"image": f"images/{i:02d}.png"})
        (folder / rows[-1]["image"]).write_bytes(pair(i)["image"])
    path = folder / f"pairs.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "csv":
        path.write_text("image,caption\n" + "\n".join(",".join(row.values()) for row in rows))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    elif kind == "json":
        images = [{"id": i, "file_name": row["image"]} for i, row in enumerate(rows)]
        captions = [{"image_id": i, "caption": row["caption"]} for i, row in enumerate(rows)]
        path.write_text(json.dumps({"images": images, "annotations": captions}))
    elif kind == "tar":
        with tarfile.open(path, "w") as tar:
            for i, row in enumerate(rows):
                tar.add(folder / row["image"], f"{i:02d}.png")
                (folder / "caption.txt").write_text(row["caption"])
                tar.add(folder / "caption.txt", f"{i:02d}.txt")
    elif kind == "folder":
        for row in rows:
            (folder / row["image"]).with_suffix(".txt").write_text(row["caption"])
        return folder / "images"
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "json", "folder", "tar"])
def test_pairs_of_any_kind_are_split_and_read_alike(tmp_path, tokenizer, monkeypatch, kind):
    monkeypatch.setenv("MM_INDEX_DIR", str(tmp_path / "index"))
    path = write(tmp_path, kind)
    config = load(f"{ROOT}/configs/pairs.py:path={path},tokenizer={tokenizer},image=32,size=tiny")
    train = open_input(config.input, "config.input")
    held_out = open_input(config.evals.held_out, "config.evals.held_out")
    assert (len(train.source), len(held_out.source)) == (99, 1)
    first = example(train.source, train.preprocess)
    assert first["image"].shape == (1, 32, 32, 3) and first["text"].shape == (1, 64)
    records = train.source.read(np.array([98, 0]), ["image", "caption"])
    assert records == [pair(98), pair(0)]
    assert held_out.source.read(np.array([0]), ["image", "caption"]) == [pair(99)]


def test_a_data_set_dict_trains_on_its_train_split():
    assert source(SAVED) == {
        "name": "hf", "path": str(SAVED), "split": "train",
        "image_key": "image", "caption_key": "caption",
    }  # fmt: skip
    assert len(open_source(source(SAVED), "pairs")) == 7


def test_data_prepare_takes_the_names_of_columns():
    config = load("configs/prepare.py:a/{x,y}.csv,image_key=URL,caption_key=TEXT")
    names = {"image_key": "URL", "caption_key": "TEXT"}
    assert plain(config.source) == {"name": "csv", "path": "a/{x,y}.csv"} | names


def test_a_tiny_variant_says_that_it_reads_the_emoji_alone():
    with pytest.raises(BadInput, match="path=mine: variant=tiny is for the emoji data set"):
        load("configs/mae.py:variant=tiny,path=mine")


def test_pictures_alone_need_no_captions(tmp_path):
    for i in range(COUNT):
        (tmp_path / f"{i}.png").write_bytes(pair(i)["image"])
    config = load(f"configs/mae.py:variant=B/16,image=32,path={tmp_path}")
    for spec in (config.input, config.evals.held_out):
        opened = open_input(plain(spec), "config.input")
        assert example(opened.source, opened.preprocess)["image"].shape == (1, 32, 32, 3)


def test_texts_alone_train_a_text_tower(tmp_path, tokenizer):
    """From a file of lines to masked words told."""
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS * 8))
    config = get_config(f"tokenizer={tokenizer}")
    words = f'caption("text")|tokenize("{tokenizer}", 8, words=True)'
    with config.unlocked():
        config.model = dict(text=TEXT | dict(mask_token=True))
        config.objectives = dict(masked_text=dict(name="masked_text"))
        config.input = dict(
            source=dict(name="text", path=str(tmp_path / "lines.txt")), preprocess=words
        )
        config.evals = dict(losses=dict(name="losses", batch_size=16, **config.input))
        config.checkpoint.keep_best = None
    assert train(config, str(tmp_path / "run")) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert 0 < results["losses/masked_text/loss"] < 5
