import json
import threading

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data import files
from data.latest import Latest
from data.sources import BadExample, Feature, open_source, parquet
from mm.config import BadInput


def write(path, **columns):
    pq.write_table(pa.table(columns), path, row_group_size=4)
    return str(path)


def open_parquet(path, **kwargs):
    return open_source({"name": "parquet", "path": str(path)} | kwargs, "config.input.source")


@pytest.fixture
def pairs(tmp_path):
    captions = [f"größe {i}" for i in range(10)]
    return write(tmp_path / "a.parquet", image=[b"%d" % i for i in range(10)], caption=captions)


@pytest.fixture
def groups_read(monkeypatch):
    """(number, columns) of the row groups that were read."""
    found = []
    real = parquet._RowGroups._read

    def read(self, key):
        table = real(self, key)
        found.append((key[0], tuple(table.column_names)))
        return table

    monkeypatch.setattr(parquet._RowGroups, "_read", read)
    return found


def test_pictures_may_be_bytes_a_struct_or_paths(tmp_path):
    (tmp_path / "c.png").write_bytes(b"c")
    struct = [{"bytes": b"a", "path": "none"}, {"bytes": None, "path": "c.png"}, None, {}]
    path = write(tmp_path / "a.parquet", image=struct, data=[b"d", b"", None, b"e"])
    source = open_parquet(path)
    assert source.read(np.array([1, 0])) == [
        {"image": b"c", "data": b""},
        {"image": b"a", "data": b"d"},
    ]
    assert open_parquet(path, image_key="data").read(np.array([3])) == [{"image": b"e"}]
    for row, reason in ((2, "field is null"), (3, "picture is missing")):
        with pytest.raises(BadExample) as error:
            source.read(np.array([row]), ["image"])
        assert error.value.reason == reason


def test_types_of_arrow_become_features(tmp_path):
    columns = dict(
        caption=pa.array(["a"]).dictionary_encode(),
        large=pa.array(["a"], pa.large_string()),
        texts=pa.array([["a", "b"]]),
        flag=pa.array([True]),
        tiny=pa.array([3], pa.uint8()),
        half=pa.array([np.float16(0.5)]),
        vector=pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)),
        ragged=pa.array([[1, 2]]),
        date=pa.array([0], pa.timestamp("s")),
        nested=pa.array([[[1]]]),
    )
    source = open_parquet(write(tmp_path / "a.parquet", **columns), image_key=None)
    assert source.features == {
        "caption": Feature("text"),
        "large": Feature("text"),
        "texts": Feature("text", ragged=True),
        "flag": Feature("bool"),
        "tiny": Feature("uint8"),
        "half": Feature("float16"),
        "vector": Feature("float32", shape=(2,)),
        "ragged": Feature("int64", ragged=True),
    }
    assert source.read(np.array([0])) == [
        {
            "caption": "a", "large": "a", "texts": ["a", "b"], "flag": True, "tiny": 3,
            "half": 0.5, "vector": [1.0, 2.0], "ragged": [1, 2],
        }
    ]  # fmt: skip


def test_classes_without_a_name_break_their_examples(tmp_path):
    """-1 is a class that Hugging Face does not know, as in a test set."""
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    features["labels"] = {"feature": features["label"], "_type": "List"}
    table = pa.table({"label": [1, -1, 7, None], "labels": [[1, 0], [], [7], None]})
    told = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(told), tmp_path / "a.parquet")
    source = open_parquet(tmp_path / "a.parquet", image_key=None)
    assert source.read(np.array([0])) == [{"label": "dog", "labels": ["dog", "cat"]}]
    reasons = {1: "field is null", 2: "class is not among the names", 3: "field is null"}
    for row, reason in reasons.items():
        with pytest.raises(BadExample) as error:
            source.read(np.array([row]), ["label"])
        assert error.value.reason == reason


def test_shards_are_the_row_groups_of_the_share(pairs):
    assert open_parquet(pairs).shards.tolist() == [4, 4, 2]
    assert open_parquet(pairs, first=0.5).shards.tolist() == [3, 2]
    assert open_parquet(pairs, first=0.5, last=0.6).shards.tolist() == [1]


def test_a_row_group_is_read_once_and_only_the_columns_asked_for(pairs, groups_read):
    source = open_parquet(pairs)
    source.read(np.array([0, 9, 1, 8, 0]), ["caption"])
    assert groups_read == [(0, ("caption",)), (2, ("caption",))]


def test_the_oldest_row_groups_are_forgotten(tmp_path, groups_read):
    captions = pa.array(["x" * (400 << 10)] * 12)  # 1.6 MB a row group
    path = write(tmp_path / "large.parquet", caption=captions)
    source = open_parquet(path, image_key=None, cache_mib=4)
    for row, want in ((0, [0]), (1, [0]), (5, [0, 1]), (2, [0, 1]), (9, [0, 1, 2]), (0, [0, 1, 2])):
        source.read(np.array([row]), ["caption"])
        assert [number for number, _ in groups_read] == want
    source.read(np.array([5]), ["caption"])
    assert [number for number, _ in groups_read] == [0, 1, 2, 1]


def test_text_that_is_no_utf_8_breaks_its_example(tmp_path):
    captions = pa.array([b"a", b"\xff"]).view(pa.string())
    source = open_parquet(write(tmp_path / "a.parquet", caption=captions), image_key=None)
    assert source.read(np.array([0])) == [{"caption": "a"}]
    with pytest.raises(BadExample, match="a.parquet row 1: caption is no UTF-8") as error:
        source.read(np.array([1]))
    assert error.value.reason == "text is no UTF-8"


def test_a_row_is_named_by_its_place_in_its_file(pairs, tmp_path):
    captions = [f"{i}" for i in range(5)] + [None]
    write(tmp_path / "b.parquet", image=[b""] * 6, caption=captions)
    with pytest.raises(BadExample, match="b.parquet row 5: caption is null"):
        open_parquet(tmp_path / "*.parquet").read(np.array([15]))


def test_what_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no table at all")
    with pytest.raises(BadInput, match="a.parquet: is no Parquet file"):
        open_parquet(tmp_path / "a.parquet")


def test_a_row_group_that_is_broken_is_more_than_a_broken_example(pairs):
    data = bytearray(open(pairs, "rb").read())
    data[4:200] = b"\xff" * 196
    open(pairs, "wb").write(data)
    with pytest.raises(BadInput, match="a.parquet: row group 0 cannot be read") as error:
        open_parquet(pairs).read(np.array([0]))
    assert not isinstance(error.value, BadExample) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"image": [b"a"]}, "b.parquet: has no column 'caption', which "),
        ({"image": [b"a"], "caption": [1]}, "b.parquet: column 'caption' is int64, in "),
    ],
)
def test_files_of_other_columns_are_refused(pairs, tmp_path, columns, message):
    write(tmp_path / "b.parquet", **columns)
    with pytest.raises(BadInput, match=message):
        open_parquet(tmp_path / "*.parquet")


def test_a_read_that_fails_is_tried_again_and_then_told_as_it_is(pairs, monkeypatch):
    fsspec.filesystem("memory").pipe_file("memory://far/a.parquet", files.read(pairs))
    source = open_parquet("memory://far/a.parquet")
    monkeypatch.setattr(files, "_FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(files, "_blocks", Latest(files._fetch_block, 1 << 20))
    failures = [ConnectionResetError("reset by peer")] * 9
    real = MemoryFileSystem.cat_file

    def cat_file(self, *args, **kwargs):
        if failures:
            raise failures.pop()
        return real(self, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    with pytest.raises(files.ReadError, match="far/a.parquet: cannot be read, tried 5 times"):
        source.read(np.array([3]))
    assert source.read(np.array([3]), ["image"]) == [{"image": b"3"}]


def test_threads_that_want_a_row_group_read_it_once(pairs, groups_read):
    source = open_parquet(pairs)
    threads = [
        threading.Thread(target=source.read, args=(np.array([i]), ["caption"])) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert groups_read == [(0, ("caption",))]
