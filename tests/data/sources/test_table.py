"""What holds for tables of every format."""

import csv
import io
import json
import string
import uuid
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import files
from data.sources import BadExample, Feature, open_source
from mm.config import BadInput

FORMATS = ("jsonl", "csv", "tsv", "parquet", "hf")
DELIMITERS = {"csv": ",", "tsv": "\t"}


def write(folder, kind, rows):
    """The spec of a source of `rows`, dicts of the same keys, as a table in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "hf":
        return {"name": "hf", "path": str(write_hf(folder, rows))}
    path = folder / f"pairs.{kind}"
    numbers = [key for key, value in rows[0].items() if isinstance(value, int | float)]
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(
                file, rows[0], dialect="excel" if kind == "csv" else "excel-tab"
            )
            writer.writeheader()
            writer.writerows(rows)
        return {"name": "csv", "path": str(path), "numbers": numbers}
    return {"name": kind, "path": str(path)}


def write_hf(folder, rows):
    """The layout of save_to_disk, that test_hf.py holds against files of the library itself."""
    table = pa.Table.from_pylist(rows)
    names = []
    for number, part in enumerate((table[: len(rows) // 2], table[len(rows) // 2 :])):
        names.append({"filename": f"data-{number:05d}-of-00002.arrow"})
        with pa.ipc.new_stream(folder / names[-1]["filename"], table.schema) as stream:
            stream.write_table(part, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": names}))
    return folder


def opened(spec, **kwargs):
    return open_source(spec | kwargs, "config.input.source")


def record(i):
    return {"image": f"{i % 2}.png", "caption": f"größe {i}", "rank": i, "score": i / 2}


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    """Format -> spec of a table of 10 rows."""
    folder = tmp_path_factory.mktemp("tables")
    found = {}
    for kind in FORMATS:
        found[kind] = write(folder / kind, kind, [record(i) for i in range(10)])
        for i in range(2):
            (folder / kind / f"{i}.png").write_bytes(b"picture %d" % i)
    return found


texts = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=20)
lines = st.text(string.ascii_letters + '", \t|\n\r', max_size=20)
table_rows = st.lists(
    st.fixed_dictionaries(
        {
            "caption": texts | lines,
            "other": lines,
            "rank": st.integers(-(2**63), 2**63 - 1),
            "score": st.floats(-1e9, 1e9, allow_nan=False),
        }
    ),
    min_size=1,
    max_size=12,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=table_rows, data=st.data())
def test_every_format_gives_the_same_records_in_any_order(tmp_path, rows, data):
    ids = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=20))
    keys = data.draw(st.lists(st.sampled_from(sorted(rows[0])), unique=True))
    folder = tmp_path / uuid.uuid4().hex
    want = [{key: rows[i][key] for key in keys} for i in ids]
    for kind in FORMATS:
        source = opened(write(folder / kind, kind, rows), image_key=None)
        assert len(source) == len(rows)
        assert source.read(np.array(ids, np.int64), keys) == want, kind


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_is_read_beside_its_table(specs, kind):
    source = opened(specs[kind])
    want = [record(i) | {"image": b"picture %d" % (i % 2)} for i in (3, 0, 3)]
    assert source.read(np.array([3, 0, 3])) == want
    assert source.features["image"] == Feature("image")


@pytest.mark.parametrize("kind", FORMATS)
def test_two_shares_make_the_whole(specs, kind):
    parts = [opened(specs[kind], last=0.35), opened(specs[kind], first=0.35)]
    found = [r["rank"] for part in parts for r in part.read(np.arange(len(part)), ["rank"])]
    assert found == list(range(10)) and len(parts[0]) == 4
    with pytest.raises(BadInput, match="none of the 10 examples is between first=0.96"):
        opened(specs[kind], first=0.96)


@pytest.mark.parametrize("kind", FORMATS)
def test_columns_of_any_name_become_image_and_caption(specs, tmp_path, kind):
    rows = [{"URL": "a.png", "TEXT": "a dog", "caption": "alt", "rank": 1}]
    spec = write(tmp_path, kind, rows)
    (tmp_path / "a.png").write_bytes(b"a picture")
    source = opened(spec, image_key="URL", caption_key="TEXT")
    assert source.read(np.array([0])) == [{"image": b"a picture", "caption": "a dog", "rank": 1}]
    assert set(source.features) == {"image", "caption", "rank"}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"image_key": "imag"}, "in 'imag'; did you mean 'image'?"),
        ({"image_key": "rank"}, "has no picture's path in 'rank' (have ['caption', "),
        ({"caption_key": "captoin"}, "in 'captoin'; did you mean 'caption'?"),
        ({"caption_key": "rank"}, "has no text in 'rank'"),
        ({"first": 0.5, "last": 0.5}, "expected 0 <= first < last <= 1"),
        ({"last": 1.5}, "expected 0 <= first < last <= 1"),
    ],
)
def test_a_column_or_share_that_is_not_there_is_refused(specs, kind, kwargs, message):
    with pytest.raises(BadInput) as error:
        opened(specs[kind], **kwargs)
    assert str(error.value).startswith("config.input.source: ") and message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_table_without_captions_has_no_such_field(tmp_path, kind):
    source = opened(write(tmp_path, kind, [{"image": "a.png", "rank": 1}]))
    assert set(source.features) == {"image", "rank"}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["none.png", "0.png/a.png", "", ".", "a\0b", "x" * 300])
def test_a_missing_picture_breaks_its_example_only(tmp_path, kind, name):
    source = opened(write(tmp_path, kind, [record(0), record(1) | {"image": name}]))
    (tmp_path / "0.png").write_bytes(b"there")
    assert source.read(np.array([0]), ["image"]) == [{"image": b"there"}]
    with pytest.raises(BadExample) as error:
        source.read(np.array([0, 1]))
    assert error.value.reason == "picture is missing" and "\n" not in str(error.value)
    assert source.read(np.array([1]), ["rank"]) == [{"rank": 1}]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "hf"])
def test_null_where_a_text_is_expected_breaks_its_example(tmp_path, kind):
    source = opened(write(tmp_path, kind, [record(0), record(1) | {"caption": None}]))
    with pytest.raises(BadExample, match="caption is null, expected a text") as error:
        source.read(np.array([1]), ["caption"])
    assert error.value.reason == "field is null"


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_tables_and_pictures_may_be_far_away(specs, kind):
    far = f"memory://{uuid.uuid4().hex}"
    near = specs[kind]["path"]
    for name in (near, f"{files.parent(near)}/0.png", f"{files.parent(near)}/1.png"):
        fsspec.filesystem("memory").pipe_file(f"{far}/{name.rsplit('/')[-1]}", files.read(name))
    source = opened(specs[kind], path=f"{far}/*.{kind}")
    ids = np.array([7, 0])
    assert source.read(ids) == opened(specs[kind]).read(ids)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_several_files_are_one_table(tmp_path, kind):
    for part in range(3):
        spec = write(tmp_path / f"{part}", kind, [record(part * 4 + i) for i in range(4)])
        (tmp_path / f"{part}/0.png").write_bytes(b"of part %d" % part)
    source = opened(spec, path=[f"{tmp_path}/{{0..1}}/pairs.{kind}", f"{tmp_path}/2/*.{kind}"])
    assert [r["rank"] for r in source.read(np.arange(12), ["rank"])] == list(range(12))
    assert source.read(np.array([10]), ["image"]) == [{"image": b"of part 2"}]


@pytest.mark.parametrize("kind", FORMATS)
def test_threads_may_read_at_once(specs, kind):
    source = opened(specs[kind])
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda i: source.read(np.array([i % 10]))[0]["rank"], range(200))
    assert list(found) == [i % 10 for i in range(200)]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "text"])
def test_a_file_that_is_not_there_is_refused(tmp_path, kind):
    (tmp_path / "pairs.txt").touch()
    with pytest.raises(BadInput, match="pair.txt: cannot be read .*; did you mean 'pairs.txt'"):
        opened({"name": kind, "path": str(tmp_path / "pair.txt")})
    with pytest.raises(BadInput, match=r"\*.none: matches no file"):
        opened({"name": kind, "path": str(tmp_path / "*.none")})


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "hf"])
def test_an_empty_table_is_refused(tmp_path, kind):
    if kind in ("parquet", "hf"):
        spec = write(tmp_path, kind, [record(0)])
        empty = pa.table({"image": pa.array([], pa.string())})
        pq.write_table(empty, tmp_path / "pairs.parquet")
        for path in tmp_path.glob("*.arrow"):
            pa.ipc.new_stream(path, empty.schema).close()
    else:
        (tmp_path / f"pairs.{kind}").write_text("\n" if kind == "jsonl" else "image,caption\n")
        spec = {"name": kind, "path": str(tmp_path / f"pairs.{kind}")}
    with pytest.raises(BadInput, match="is empty; expected"):
        opened(spec)


def test_a_picture_that_may_not_be_read_is_no_broken_example(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    source = opened(write(tmp_path, "jsonl", [record(0)]))
    real = files._read_local
    monkeypatch.setattr(
        files, "_read_local", lambda path, *at: refuse(path) if "png" in path else real(path, *at)
    )
    with pytest.raises(BadInput, match="0.png: cannot be read .Permission denied") as error:
        source.read(np.array([0]))
    assert not isinstance(error.value, BadExample)


def test_a_csv_row_is_what_pythons_reader_says(tmp_path):
    rows = [{"a": 'x"y', "b": '"', "c": "1\r\n2\n"}, {"a": "", "b": ",", "c": ""}]
    spec = write(tmp_path, "csv", rows)
    with open(spec["path"], newline="") as file:
        want = list(csv.DictReader(io.StringIO(file.read(), newline="")))
    assert opened(spec, image_key=None).read(np.arange(2)) == want == rows
