"""Which source reads a path."""

import pytest

from data.sources.guess import guess
from mm.config import BadInput


@pytest.mark.parametrize(
    "path, name",
    [
        ("a/b.jsonl", "jsonl"),
        ("gs://bucket/pairs/*.csv", "csv"),
        ("pairs.TSV", "csv"),
        ("{00..99}.parquet", "parquet"),
        ("captions_train2017.json", "coco"),
        ("results_20130124.token", "flickr30k"),
        ("s3://b/{00000..00099}.tar", "webdataset"),
        ("a-*.tfrecord", "tfrecord"),
        ("captions.txt", "text"),
    ],
)
def test_a_file_is_what_its_ending_says(path, name):
    assert guess(path) == {"name": name, "path": path}


@pytest.mark.parametrize(
    "names, name, pattern",
    [
        (["0.tar", "0.parquet", "0_stats.json"], "webdataset", "/*.tar"),  # img2dataset's
        (["0.parquet", "1.parquet"], "parquet", "/*.parquet"),
        (["a.tsv", "a.png"], "csv", "/*.tsv"),
        (["a.png", "a.json", "a.txt"], "folder", ""),
        (["state.json", "data.arrow"], "hf", ""),
        (["dataset_info.json", "data.arrow"], "hf", ""),
    ],
)
def test_a_folder_is_what_it_holds(tmp_path, names, name, pattern):
    for file in names:
        (tmp_path / file).touch()
    assert guess(f"{tmp_path}/") == {"name": name, "path": f"{tmp_path}{pattern}"}


def test_of_several_saved_parts_the_one_to_train_on_is_read(tmp_path):
    (tmp_path / "dataset_dict.json").touch()
    assert guess(str(tmp_path)) == {"name": "hf", "path": str(tmp_path), "split": "train"}


def test_what_tfds_wrote_is_found_by_its_name_or_its_version(tmp_path):
    (tmp_path / "pairs/1.0.0").mkdir(parents=True)
    assert guess(f"{tmp_path}/pairs/") == {"name": "folder", "path": f"{tmp_path}/pairs"}
    (tmp_path / "pairs/1.0.0/features.json").touch()
    prepared = {"name": "tfds", "dataset": "pairs:1.0.0", "split": "train"}
    prepared["data_dir"] = str(tmp_path)
    assert guess(f"{tmp_path}/pairs") == guess(f"{tmp_path}/pairs/1.0.0") == prepared


def test_what_is_neither_file_nor_folder_is_refused():
    with pytest.raises(BadInput, match="none: is neither a folder .*'.tar'"):
        guess("none")
