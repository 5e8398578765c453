import io
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from PIL import Image

from data import files
from data.files import ReadError
from data.sources import BadExample, Feature, open_source
from data.sources.tfds import _read, _reader
from mm.config import BadInput

FEATURES = tfds.features.FeaturesDict(
    {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
        "label": tfds.features.Text(),
        "tags": tfds.features.Sequence(tfds.features.Text()),
        "vendor": tfds.features.Text(),
        "rank": np.int64,
        "labels": {"de": tfds.features.Text()},
    }
)


def examples(count):
    for i in range(count):
        yield (
            f"{i:03d}",
            {
                "image": np.full((8, 8, 3), i, np.uint8),
                "label": f"label {i}",
                "tags": [f"tag {j}" for j in range(i % 3)],
                "vendor": ("noto", "emojione")[i % 2],
                "rank": i,
                "labels": {"de": f"größe {i}"},
            },
        )


class Tiny(tfds.core.dataset_builders.AdhocBuilder):
    url_infos = None  # nothing is downloaded; else TFDS imports a package that it does not require


def prepare(folder, file_format="array_record", num_shards=None):
    builder = Tiny(
        name="tiny",
        version="1.0.0",
        features=FEATURES,
        split_datasets={"train": list(examples(20)), "seen": list(examples(7))},
        data_dir=folder,
        file_format=file_format,
    )
    config = tfds.download.DownloadConfig(num_shards=num_shards)
    builder.download_and_prepare(download_config=config)
    return str(folder)


@pytest.fixture(scope="module", params=["array_record", "tfrecord"])
def data_dir(tmp_path_factory, request):
    return prepare(tmp_path_factory.mktemp("tfds"), request.param)


def open_tiny(data_dir, split="train", **kwargs):
    spec = {"name": "tfds", "dataset": "tiny", "split": split, "data_dir": data_dir}
    return open_source(spec | kwargs, "config.input.source")


def ranks(source):
    return [int(r["rank"]) for r in source.read(np.arange(len(source)), ["rank"])]


def test_features_say_what_the_fields_are(data_dir):
    assert open_tiny(data_dir).features == {
        "image": Feature("image"),
        "label": Feature("text"),
        "labels/de": Feature("text"),
        "rank": Feature("int64"),
        "tags": Feature("text", ragged=True),
        "vendor": Feature("text"),
    }


def test_reads_in_the_order_asked_and_only_what_is_asked(data_dir):
    source = open_tiny(data_dir)
    every = ranks(source)
    assert sorted(every) == list(range(20))
    ids = np.array([11, 2, 11])
    records = source.read(ids, ["rank", "tags", "labels/de"])
    for index, record in zip(ids, records, strict=True):
        rank = every[index]
        assert record == {
            "rank": rank,
            "tags": [f"tag {j}" for j in range(rank % 3)],
            "labels/de": f"größe {rank}",
        }


def test_pictures_stay_encoded(data_dir):
    record = open_tiny(data_dir).read(np.array([4]), ["image", "rank"])[0]
    pixels = np.asarray(Image.open(io.BytesIO(record["image"])))
    assert pixels.shape == (8, 8, 3) and np.all(pixels == record["rank"])


def test_cached_pictures_are_decoded_and_the_same(data_dir):
    plain, cached = open_tiny(data_dir), open_tiny(data_dir, cache=True)
    assert cached.features["image"] == Feature("uint8", shape=(8, 8, 3))
    ids = np.array([3, 17, 3])
    for left, right in zip(plain.read(ids), cached.read(ids), strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(left.pop("image"))))
        np.testing.assert_array_equal(pixels, right["image"])
        assert left == {key: value for key, value in right.items() if key != "image"}


@pytest.mark.parametrize(
    "split, size", [("train[:90%]", 18), ("train+seen", 27), ("seen[2:]", 5), ("train[-3:]", 3)]
)
def test_parts_and_sums_of_splits(data_dir, split, size):
    assert len(open_tiny(data_dir, split)) == size


def test_parts_of_a_split_are_disjoint(data_dir):
    first, rest = open_tiny(data_dir, "train[:25%]"), open_tiny(data_dir, "train[25%:]")
    assert sorted(ranks(first) + ranks(rest)) == list(range(20))


def test_exclude_and_only_filter_by_a_text_field(data_dir):
    assert sorted(ranks(open_tiny(data_dir, exclude={"vendor": ("emojione",)}))) == [
        *range(0, 20, 2)
    ]
    assert sorted(ranks(open_tiny(data_dir, only={"vendor": "emojione"}))) == [*range(1, 20, 2)]
    both = open_tiny(data_dir, only={"vendor": "noto"}, exclude={"label": ("label 4", "label 6")})
    assert sorted(ranks(both)) == [0, 2, 8, 10, 12, 14, 16, 18]


def test_a_value_that_only_another_split_has_is_no_mistake(data_dir):
    kept = open_tiny(data_dir, "seen", only={"label": ("label 3", "label 15")})
    assert len(kept) == 1


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"dataset": "tinny"}, r"no data set 'tinny' in .*: prepare it with `tfds build tinny"),
        ({"dataset": "emoji"}, r"prepare it with `python -m data.builders.emoji --data_dir=/"),
        ({"dataset": "icons_held_out"}, r"it with `python -m data.builders.icons --data_dir=/"),
        ({"split": "trian"}, r"split 'trian'.*has \['train', 'seen'\]"),
        ({"split": "train[:x]"}, r"split 'train\[:x\]'.*cannot be read"),
        ({"exclude": {"vendr": "noto"}}, r"'vendr'.*did you mean 'vendor'"),
        ({"exclude": {"vendor": ("nota",)}}, r"no example has that; did you mean 'noto'"),
        ({"only": {"tags": "tag 1"}}, r"'tags': is no text field"),
        ({"only": {"vendor": "noto"}, "exclude": {"vendor": "noto"}}, r"no example has|is empty"),
        ({"splt": "train"}, r"unknown key 'splt'; did you mean 'split'"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(data_dir, kwargs, message):
    with pytest.raises(BadInput, match=message) as error:
        open_tiny(data_dir, **kwargs)
    assert str(error.value).startswith("config.input.source: ".rstrip(": "))
    assert "\n" not in str(error.value)


def test_a_missing_shard_is_named(tmp_path):
    prepare(tmp_path)
    shard = next(tmp_path.glob("tiny/1.0.0/*train*"))
    shard.unlink()
    with pytest.raises(BadInput, match=f"{shard.name}: is missing"):
        open_tiny(str(tmp_path))


def test_files_without_random_access_are_refused(tmp_path):
    info = Path(prepare(tmp_path)) / "tiny" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "riegeli"))
    with pytest.raises(BadInput, match="stored as riegeli.*--file_format=array_record"):
        open_tiny(str(tmp_path))


def test_shards_are_counted_in_the_order_of_ids(tmp_path):
    for kind in ("array_record", "tfrecord"):
        data_dir = prepare(tmp_path / kind, kind, num_shards=3)
        source = open_tiny(data_dir, "train[2:19]")
        names = sorted((tmp_path / kind).glob("tiny/1.0.0/tiny-train*"))
        in_files = [ranks_of(name, kind) for name in names]
        assert len(names) == 3 and sum(map(len, in_files)) == 20
        want = [len(in_files[0]) - 2, len(in_files[1]), len(in_files[2]) - 1]
        assert source.shards.tolist() == want and sum(want) == len(source) == 17
        assert ranks(source) == sum(in_files, [])[2:19]
        few = open_tiny(data_dir, only={"label": [f"label {r}" for r in in_files[1][:2]]})
        assert few.shards.tolist() == [2]


def ranks_of(file, kind):
    """In the order of the file, read by TFDS itself."""
    if kind == "tfrecord":
        raws = [raw.numpy() for raw in tf.data.TFRecordDataset(str(file))]
    else:
        raws = ArrayRecordReader(str(file)).read_all()
    fields = [tf.train.Example.FromString(raw).features.feature for raw in raws]
    return [field["rank"].int64_list.value[0] for field in fields]


def test_a_tfrecord_that_was_cut_off_lacks_its_last_records(tmp_path, caplog):
    data_dir = prepare(tmp_path, "tfrecord")
    (shard,) = tmp_path.glob("tiny/1.0.0/tiny-train*")
    every = ranks(open_tiny(data_dir))
    shard.write_bytes(shard.read_bytes()[:-50])
    source = open_tiny(data_dir)
    assert f"{shard}: is cut off or damaged at byte" in caplog.text
    assert [r["rank"] for r in source.read(np.arange(19), ["rank"])] == every[:19]
    with pytest.raises(BadExample, match=f"{shard}: has no record 19, only 19") as error:
        source.read(np.arange(20))
    assert error.value.reason == "record is missing"


def test_opening_imports_no_builder_code(tmp_path):
    data_dir = prepare(tmp_path, "tfrecord")
    code = (
        "import sys, numpy as np; from data.sources import open_source\n"
        f"spec = dict(name='tfds', dataset='tiny', split='train', data_dir={data_dir!r})\n"
        "s = open_source(spec, 'x')\n"
        "assert len(s.read(np.arange(3))) == 3\n"
        "assert not [m for m in sys.modules if m.startswith('data.builders')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Failing:
    """An ArrayRecordReader that raises these errors first."""

    def __init__(self, *errors):
        self.errors = list(errors)

    def read(self, positions):
        if self.errors:
            raise RuntimeError(self.errors.pop(0))
        return [b"%d" % position for position in positions]


def test_a_read_of_array_record_that_fails_is_tried_again(monkeypatch):
    monkeypatch.setattr(files, "_FIRST_PAUSE_SECONDS", 0.0)
    assert _read("a", Failing("read() failed", "reset by peer"), [3, 4]) == [b"3", b"4"]
    with pytest.raises(ReadError, match="a: cannot be read, tried 5 times .read.. failed"):
        _read("a", Failing(*["read() failed"] * 5), [3])


def test_a_damaged_record_is_not_tried_again_and_names_itself():
    reader = Failing(*["Chunk hash mismatch"] * 2)
    with pytest.raises(BadExample, match="a record 3: Chunk hash mismatch"):
        _read("a", reader, [3, 4])
    assert not reader.errors


def test_array_record_far_away_is_read_from_a_copy(tmp_path):
    writer = ArrayRecordWriter(str(tmp_path / "a"), "group_size:1")
    for record in (b"first", b"second"):
        writer.write(record)
    writer.close()
    far = f"memory://{uuid.uuid4().hex}/a"
    files.write(far, (tmp_path / "a").read_bytes())
    assert _read(far, _reader(far), [1, 0]) == [b"second", b"first"]
