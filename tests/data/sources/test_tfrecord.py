"""TFRecords that TensorFlow wrote, whole and broken."""

import gzip
import uuid

import fsspec
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import files, index
from data.latest import Latest
from data.sources import BadExample, Feature, open_source, tfrecord
from mm.config import BadInput
from tests.data.test_files import Flaky

FEATURES = {
    "image": "image",
    "caption": "text",
    "width": "int64",
    "similarity": "float32",
    "embedding": ("float32", 3),
    "grid": ("uint8", (2, 2)),
    "tags": ("text", None),
    "ranks": ("int64", None),
}


def feature(values):
    """A tf.train.Feature of a list."""
    if not values:
        return tf.train.Feature()
    if isinstance(values[0], bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    if isinstance(values[0], float):
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def serialized(fields):
    named = {key: feature(values) for key, values in fields.items() if values is not None}
    return tf.train.Example(features=tf.train.Features(feature=named)).SerializeToString()


def example(i, **changes):
    fields = {
        "image": [b"picture %d" % i],
        "caption": [f"größe {i}".encode()],
        "width": [i],
        "similarity": [i / 4],
        "embedding": [0.5, i / 2, -1.0],
        "grid": [1, 2, 3, i],
        "tags": [b"tag"] * i,
        "ranks": None if i == 0 else [i] * i,
        "other": [b"ignored"],
    }
    return serialized(fields | changes)


def write(path, records):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path


def open_records(path, features=FEATURES, **kwargs):
    spec = {"name": "tfrecord", "path": str(path), "features": features} | kwargs
    return open_source(spec, "config.input.source")


@pytest.fixture
def shards(tmp_path):
    write(tmp_path / "a.tfrecord-00000-of-00003", map(example, range(3)))
    write(tmp_path / "a.tfrecord-00001-of-00003", [])
    write(tmp_path / "a.tfrecord-00002-of-00003", map(example, range(3, 5)))
    return f"{tmp_path}/a.tfrecord-{{00000..00002}}-of-00003"


def captions(source):
    return [record["caption"] for record in source.read(np.arange(len(source)), ["caption"])]


def test_features_in_any_order(shards):
    source = open_records(shards)
    assert source.features == {
        "image": Feature("image"),
        "caption": Feature("text"),
        "width": Feature("int64"),
        "similarity": Feature("float32"),
        "embedding": Feature("float32", shape=(3,)),
        "grid": Feature("uint8", shape=(2, 2)),
        "tags": Feature("text", ragged=True),
        "ranks": Feature("int64", ragged=True),
    }
    assert len(source) == 5 and source.shards.tolist() == [3, 2]
    for i, record in zip((4, 0, 2, 4), source.read(np.array([4, 0, 2, 4])), strict=True):
        arrays = {key: record.pop(key) for key in ("embedding", "grid", "ranks")}
        assert record == {
            "image": b"picture %d" % i,
            "caption": f"größe {i}",
            "width": i,
            "similarity": i / 4,
            "tags": ["tag"] * i,
        }
        assert arrays["embedding"].dtype == np.float32 and arrays["grid"].dtype == np.uint8
        assert arrays["embedding"].tolist() == [0.5, i / 2, -1]
        assert arrays["grid"].tolist() == [[1, 2], [3, i]] and arrays["ranks"].tolist() == [i] * i


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    records=st.lists(st.lists(st.binary(max_size=300), max_size=4), min_size=1, max_size=12),
    cuts=st.sets(st.integers(0, 12)),
    data=st.data(),
)
def test_what_is_read_is_what_was_written(tmp_path, records, cuts, data):
    folder = tmp_path / uuid.uuid4().hex
    folder.mkdir()
    bounds = [0, *sorted(cut for cut in cuts if cut < len(records)), len(records)]
    for number, (begin, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        write(folder / f"{number:02d}.tfrecord", [serialized({"x": r}) for r in records[begin:end]])
    source = open_records(f"{folder}/*.tfrecord", {"x": ("bytes", None)})
    ids = data.draw(st.lists(st.integers(0, len(records) - 1), max_size=20))
    assert source.read(np.array(ids, np.int64)) == [{"x": records[i]} for i in ids]
    assert source.shards.sum() == len(source) == len(records)


@pytest.mark.parametrize("cut, left", [(1, 1), (5, 1), (100, 1), (140, 1), (160, 1)])
def test_a_file_that_was_cut_off_gives_the_records_before(tmp_path, caplog, cut, left):
    write(tmp_path / "0.tfrecord", [example(0)])
    first = (tmp_path / "0.tfrecord").stat().st_size
    content = write(tmp_path / "0.tfrecord", map(example, range(3))).read_bytes()
    (tmp_path / "0.tfrecord").write_bytes(content[: first + cut])
    for _ in range(2):  # without and with an index
        caplog.clear()
        assert captions(open_records(tmp_path / "0.tfrecord")) == ["größe 0"]
        assert (
            f"{tmp_path}/0.tfrecord: is cut off or damaged at byte {first:,} of {first + cut:,}: "
            "its 1 records before that are read"
        ) in caplog.text


def test_a_damaged_length_ends_a_file_with_a_warning(tmp_path, caplog):
    content = bytearray(write(tmp_path / "0.tfrecord", [b"x" * 16] * 10).read_bytes())
    content[5 * 32] ^= 32  # points to where another record begins
    (tmp_path / "0.tfrecord").write_bytes(content)
    found = tfrecord._build(f"{tmp_path}/0.tfrecord")
    assert found["count"] == 5 and found["begin"].tolist() == [*range(0, 192, 32)]
    tfrecord.indexes().count([f"{tmp_path}/0.tfrecord"])
    assert "0.tfrecord: is cut off or damaged at byte 160 of 320" in caplog.text


@pytest.mark.parametrize("place", [0, 11, 12, 40, -1])
def test_a_damaged_record_is_named_and_its_neighbours_are_not(tmp_path, place):
    sizes = [write(tmp_path / "0", map(example, range(n))).stat().st_size for n in (1, 2, 3)]
    source = open_records(write(tmp_path / "0.tfrecord", map(example, range(3))))
    content = bytearray((tmp_path / "0.tfrecord").read_bytes())
    content[sizes[0] + place if place >= 0 else sizes[1] - 1] ^= 1
    (tmp_path / "0.tfrecord").write_bytes(content)
    for i in (0, 2):
        assert source.read(np.array([i]), ["caption"]) == [{"caption": f"größe {i}"}]
    if place == 11:  # the checksum of a length that is known from the index
        assert source.read(np.array([1]), ["caption"]) == [{"caption": "größe 1"}]
        return
    with pytest.raises(BadExample, match="0.tfrecord record 1: does not match its checksum") as e:
        source.read(np.arange(3))
    assert e.value.reason == "record is damaged"


def test_a_damaged_first_record_does_not_hide_the_others(tmp_path):
    content = bytearray(write(tmp_path / "0.tfrecord", map(example, range(2))).read_bytes())
    content[20] ^= 1
    (tmp_path / "0.tfrecord").write_bytes(content)
    source = open_records(tmp_path / "0.tfrecord")
    assert source.read(np.array([1]), ["width"]) == [{"width": 1}]


@pytest.mark.parametrize(
    "record, key, reason, message",
    [
        (example(1, caption=None), "caption", "field is missing", "has no field 'caption'"),
        (example(1, caption=[b"caf\xe9"]), "caption", "text is no UTF-8", "caption: is no UTF-8"),
        (example(1, caption=[]), "caption", "field has the wrong shape", r"shape \[0\], expected"),
        (example(1, width=[1, 2]), "width", "field has the wrong shape", r"shape \[2\]"),
        (
            example(1, width=[1.0]),
            "width",
            "field has the wrong type",
            "is float_list, expected int64_list",
        ),
        (example(1, embedding=[1.0]), "embedding", "field has the wrong shape", r"expected \[3\]"),
        (example(1, grid=[1, 2, 3, 256]), "grid", "field has the wrong type", "expected uint8"),
        (b"\xff" * 9, "width", "record is no tf.train.Example", "is no tf.train.Example"),
        (b"", "width", "field is missing", "has no field 'width'"),
    ],
)
def test_a_broken_example_is_named_with_its_fault(tmp_path, record, key, reason, message):
    path = write(tmp_path / "0.tfrecord", [example(0), record])
    with pytest.raises(BadExample, match=message) as error:
        open_records(path).read(np.array([0, 1]), [key])
    assert error.value.reason == reason and f"{path} record 1" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "features, message",
    [
        ({"captoin": "text"}, "has no field 'captoin'; did you mean 'caption'"),
        ({"caption": "int64"}, "caption: is bytes_list, expected int64_list for int64"),
        ({"embedding": ("float32", 4)}, r"has shape \[3\], expected \[4\]"),
        ({"caption": "txt"}, "caption='txt': expected one of .*did you mean 'text'"),
        ({"embedding": ("float32", "3")}, "expected sizes of at least 1, or None"),
    ],
)
def test_features_that_are_not_there_are_refused_when_opened(shards, features, message):
    with pytest.raises(BadInput, match=message) as error:
        open_records(shards, features)
    assert not isinstance(error.value, BadExample) and "\n" not in str(error.value)
    assert str(error.value).startswith("config.input.source: ")


def test_what_is_no_tfrecord_is_refused(tmp_path):
    write(tmp_path / "whole", [example(0)])
    (tmp_path / "gz.tfrecord").write_bytes(gzip.compress((tmp_path / "whole").read_bytes()))
    (tmp_path / "text.tfrecord").write_bytes(b"no record at all")
    (tmp_path / "short.tfrecord").write_bytes(b"no")
    write(tmp_path / "empty.tfrecord", [])
    for name, message in (
        ("gz", "is compressed, so it cannot be read at random; write it again without"),
        ("text", "is no TFRecord"),
        ("short", "is no TFRecord"),
        ("empty", "no example is in these 1 shards"),
        ("none", "cannot be read"),
    ):
        with pytest.raises(BadInput, match=f"/{name}.tfrecord: {message}"):
            open_records(tmp_path / f"{name}.tfrecord")


def test_files_far_away_are_read_though_the_way_fails(shards, monkeypatch):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(files, "_FIRST_PAUSE_SECONDS", 0.0)
    folder = f"flaky://{uuid.uuid4().hex}"
    for i, shard in enumerate(files.expand(shards)):
        fsspec.filesystem("flaky").pipe_file(f"{folder}/{i}.tfrecord", files.read(shard))
    Flaky.failures = 2
    source = open_records(f"{folder}/*.tfrecord")
    assert Flaky.failures == 0
    monkeypatch.setattr(files, "_blocks", Latest(files._fetch_block, 1 << 20))
    Flaky.failures = 2
    assert captions(source) == [f"größe {i}" for i in range(5)]
    assert Flaky.failures == 0


def test_indexes_can_be_made_ahead(shards, capsys, monkeypatch):
    assert index.main([shards]) == 0
    assert capsys.readouterr().out.startswith("3 shards, 5 examples, indexed in ")
    monkeypatch.setattr(tfrecord, "_build", None)
    assert len(open_records(shards)) == 5
