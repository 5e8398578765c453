"""Tar shards: what the library reads from them, and what becomes of broken ones."""

import io
import json
import logging
import tarfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import files
from data.latest import Latest
from data.sources import BadExample, Feature, open_source, webdataset
from mm.config import BadInput
from tests.data.test_files import Flaky

GOLDEN = Path(__file__).parents[2] / "golden" / "webdataset"


def write(path, members, format=tarfile.PAX_FORMAT):
    """Members are (name, bytes), or TarInfos of what is no file. Returns the path."""
    with tarfile.open(path, "w", format=format) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            head = tarfile.TarInfo(member[0])
            head.size = len(member[1])
            tar.addfile(head, io.BytesIO(member[1]))
    return path


def example(i, **changes):
    """The members of example i as img2dataset writes them; None leaves one out."""
    fields = {
        "jpg": b"picture %d" % i,
        "txt": f"größe {i}".encode(),
        "json": json.dumps({"width": i, "tags": ["a"] * i, "embedding": [0.5, i]}).encode(),
    } | changes
    return [(f"{i:09d}.{end}", value) for end, value in fields.items() if value is not None]


def examples(count):
    return [member for i in range(count) for member in example(i)]


def open_shards(path, **kwargs):
    spec = {"name": "webdataset", "path": str(path)} | kwargs
    return open_source(spec, "config.input.source")


def every(source, keys=None):
    return source.read(np.arange(len(source)), keys)


def names(source):
    return [record["__key__"] for record in every(source, ["__key__"])]


def test_examples_are_those_that_the_library_reads():
    ends = ("jpg", "png", "seg.png", "txt", "json")
    want = json.loads((GOLDEN / "read.json").read_text())
    found = []
    for shard in sorted(GOLDEN.glob("*.tar")):
        index = webdataset._build(str(shard))
        for row in range(int(index["count"])):
            name, members = webdataset._members_of(index, row)
            content = {e: shard.read_bytes()[a : a + n].hex() for e, (a, n) in members.items()}
            found.append({"__key__": name} | content)
    assert found == want and {end for record in want for end in record} == {"__key__", *ends}


def test_fields_are_those_that_the_library_reads():
    source = open_shards(f"{GOLDEN}/*.tar")
    for record, want in zip(
        every(source), json.loads((GOLDEN / "read.json").read_text()), strict=True
    ):
        picture = want.get("jpg", want.get("png"))
        assert record == {
            "__key__": want["__key__"],
            "image": bytes.fromhex(picture),
            "caption": bytes.fromhex(want["txt"]).decode(),
        }


def test_fields_and_shards_in_any_order(tmp_path):
    write(tmp_path / "0.tar", examples(3))
    write(tmp_path / "1.tar", [])
    write(tmp_path / "2.tar", example(3) + example(4))
    source = open_shards(
        f"{tmp_path}/{{0..2}}.tar",
        json_features={"width": "int64", "tags": ("text", None), "embedding": ("float32", 2)},
    )
    assert source.features == {
        "image": Feature("image"),
        "caption": Feature("text"),
        "width": Feature("int64"),
        "tags": Feature("text", ragged=True),
        "embedding": Feature("float32", shape=(2,)),
        "__key__": Feature("text"),
    }
    assert len(source) == 5 and source.shards.tolist() == [3, 2]
    for i, record in zip((4, 0, 2, 4), source.read(np.array([4, 0, 2, 4])), strict=True):
        embedding = record.pop("embedding")
        assert embedding.dtype == np.float32 and embedding.tolist() == [0.5, i]
        assert record == {
            "image": b"picture %d" % i,
            "caption": f"größe {i}",
            "width": i,
            "tags": ["a"] * i,
            "__key__": f"{i:09d}",
        }


def test_other_members_can_be_the_picture_and_the_caption(tmp_path):
    write(tmp_path / "0.tar", [("a.left.png", b"left"), ("a.jpg", b"jpg"), ("a.alt", b"text")])
    source = open_shards(tmp_path / "0.tar", image_key="left.png", caption_key="alt")
    assert every(source) == [{"image": b"left", "caption": "text", "__key__": "a"}]


def test_a_share_of_the_examples_can_be_taken(tmp_path):
    path = write(tmp_path / "0.tar", examples(10))
    first, rest = open_shards(path, last=0.7), open_shards(path, first=0.7)
    assert len(first) == 7 and every(first) + every(rest) == every(open_shards(path))


def test_shards_without_texts_have_no_captions(tmp_path):
    source = open_shards(write(tmp_path / "0.tar", [("a.webp", b"picture")]))
    assert every(source) == [{"image": b"picture", "__key__": "a"}]


def test_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
    source = open_shards(write(tmp_path / "0.tar", examples(2)))
    read = []
    monkeypatch.setattr(files, "read", lambda path, start, stop: read.append(stop - start) or b"x")
    with pytest.raises(BadInput, match="is shorter than it was when it was opened"):
        source.read(np.array([1]), ["image"])
    assert read == [len(b"picture 1")]


NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="./\\"), min_size=1
)
RECORDS = st.dictionaries(
    NAMES.filter(lambda name: not name.startswith("__")),
    st.fixed_dictionaries(
        {"jpg": st.binary(max_size=1500)},
        optional={"txt": st.text(max_size=50).map(lambda text: text.encode("utf-8", "ignore"))},
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=RECORDS,
    cuts=st.sets(st.integers(0, 12)),
    format=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    data=st.data(),
)
def test_what_is_read_is_what_was_written(tmp_path, records, cuts, format, data):
    folder = tmp_path / uuid.uuid4().hex
    folder.mkdir()
    items = list(records.items())
    bounds = [0, *sorted(cut for cut in cuts if cut < len(items)), len(items)]
    for number, (begin, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        members = [
            (f"{n}.{e}", value) for n, fields in items[begin:end] for e, value in fields.items()
        ]
        write(folder / f"{number:02d}.tar", members, format)
    source = open_shards(f"{folder}/*.tar")
    ids = data.draw(st.lists(st.integers(0, len(items) - 1), max_size=20))
    found = source.read(np.array(ids, np.int64), ["image", "__key__"])
    assert found == [{"image": items[i][1]["jpg"], "__key__": items[i][0]} for i in ids]
    assert source.shards.sum() == len(source) == len(items)
    for i in (i for i in ids if "txt" in items[i][1] and "caption" in source.features):
        assert source.read(np.array([i]), ["caption"])[0]["caption"].encode() == items[i][1]["txt"]


def test_threads_may_read_at_once(tmp_path):
    source = open_shards(write(tmp_path / "0.tar", examples(50)))
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda i: source.read(np.array([i]), ["image"])[0]["image"], range(50))
    assert list(found) == [b"picture %d" % i for i in range(50)]


@pytest.mark.parametrize(
    "cut, left",
    [
        (512, 0),  # behind the head of 0.jpg
        (515, 0),  # in 0.jpg
        (1500, 0),  # in the head of 0.txt
        (2600, 0),  # in 0.json
        (3072, 0),  # between 0 and 1: who knows how many members 0 had
        (4000, 1),  # behind the content of 1.jpg
        (5300, 1),  # in the head of 1.json
        (6000, 2),  # behind the content of 1.json
        (6144, 2),  # between 1 and 2
        (6400, 2),  # in the head of 2.jpg
        (15360, 5),  # before the end mark
        (15600, 5),  # in the end mark
    ],
)
def test_a_shard_that_was_cut_off_gives_the_examples_before(tmp_path, caplog, cut, left):
    whole = write(tmp_path / "whole.tar", examples(5)).read_bytes()  # 6 blocks an example
    (tmp_path / "0.tar").write_bytes(whole[:cut])
    write(tmp_path / "1.tar", example(9))
    source = open_shards(f"{tmp_path}/?.tar")
    assert names(source) == [f"{i:09d}" for i in (*range(left), 9)]
    assert every(source, ["image"])[-1] == {"image": b"picture 9"}
    assert f"{tmp_path}/0.tar: is cut off or damaged at byte" in caplog.text
    assert f"its {left} examples before that are read" in caplog.text
    caplog.clear()
    open_shards(f"{tmp_path}/?.tar")  # with an index that is there
    assert "0.tar: is cut off" in caplog.text


def test_a_damaged_head_ends_a_shard_with_a_warning(tmp_path, caplog):
    path = write(tmp_path / "0.tar", examples(4))
    content = bytearray(path.read_bytes())
    content[2 * 3072 + 1024] ^= 1  # in the name of 000000002.txt
    path.write_bytes(content)
    assert names(open_shards(path)) == ["000000000", "000000001"]
    assert "0.tar: is cut off or damaged at byte 7,168 of" in caplog.text


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_noise_ends_a_shard_and_never_the_program(tmp_path, format):
    members = [
        ("a.jpg", b""),
        ("b.jpg", b""),
        *((f"{'long' * 60}{i}.jpg", b"x" * 600) for i in range(4)),
    ]
    whole = write(tmp_path / "0.tar", members, format).read_bytes()
    for seed in range(100):
        rng, content = np.random.default_rng(seed), bytearray(whole)
        for place in rng.integers(1024, len(whole), 1 + seed % 10):
            content[place] = rng.integers(256)
        (tmp_path / "0.tar").write_bytes(content)
        index = webdataset._build(str(tmp_path / "0.tar"))
        assert len(index["first"]) == len(index["key"]) == index["count"] + 1 >= 3


@pytest.mark.parametrize("size", [-512, -1 << 40])
def test_a_negative_size_ends_a_shard(tmp_path, size):
    head = tarfile.TarInfo("a.jpg")
    head.pax_headers = {"size": str(size)}
    path = write(tmp_path / "0.tar", [*examples(2), head, *example(2)])
    assert names(open_shards(path)) == ["000000000", "000000001"]


def test_a_second_archive_behind_the_first_is_told_of(tmp_path, caplog):
    write(tmp_path / "a.tar", examples(2))
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(content + content)
    assert len(open_shards(tmp_path / "0.tar")) == 2
    assert "0.tar: 1 archive after the end of the first, which is left out" in caplog.text


def test_names_that_leave_the_shard_are_left_out_and_counted(tmp_path, caplog):
    odd = [(name, b"evil") for name in ("../a.jpg", "b/../../c.jpg", "/tmp/d.jpg")]
    source = open_shards(write(tmp_path / "0.tar", odd + example(1)))
    assert names(source) == ["000000001"]
    assert "0.tar: 3 members left out that are named outside of the shard" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["0.tar"]


def test_what_is_no_file_is_left_out_and_counted(tmp_path, caplog):
    folder, link = tarfile.TarInfo("photos"), tarfile.TarInfo("photos/a.png")
    folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "/etc/passwd"
    members = [folder, link, ("photos/a.jpg", b"a"), ("photos/._a.jpg", b"finder"), ("README", b"")]
    source = open_shards(write(tmp_path / "0.tar", [*members, ("__info__/a.json", b"{}")]))
    assert every(source) == [{"image": b"a", "__key__": "photos/a"}]
    assert "1 members left out that are links or devices" in caplog.text
    assert "2 members left out that are not named like 0001.jpg" in caplog.text


def test_sparse_members_are_left_out_and_counted(tmp_path, caplog):
    path = write(tmp_path / "0.tar", [("a.png", b"a"), ("a.jpg", b"b")], tarfile.GNU_FORMAT)
    content = bytearray(path.read_bytes())
    content[156:157] = tarfile.GNUTYPE_SPARSE
    content[148:156] = b"%06o\0 " % (sum(content[:148]) + 8 * 32 + sum(content[156:512]))
    path.write_bytes(content)
    assert every(open_shards(path), ["image"]) == [{"image": b"b"}]
    assert "1 members left out that are sparse" in caplog.text


def test_of_two_members_of_one_name_the_first_is_taken(tmp_path, caplog):
    members = [("a.jpg", b"first"), ("a.jpg", b"second"), ("a.JPG", b"third"), ("b.jpg", b"b")]
    source = open_shards(write(tmp_path / "0.tar", members))
    assert every(source, ["image"]) == [{"image": b"first"}, {"image": b"b"}]
    assert "0.tar: 2 members left out whose name comes twice" in caplog.text


def test_members_that_are_parted_are_examples_by_themselves(tmp_path, caplog):
    members = [("a.jpg", b"a"), ("b.jpg", b"b"), ("a.txt", b"caption")]
    source = open_shards(write(tmp_path / "0.tar", members))
    assert names(source) == ["a", "b", "a"]
    assert "1 examples named like one before, from which others part them" in caplog.text


@pytest.mark.parametrize(
    "changes, key, reason, message",
    [
        ({"jpg": None}, "image", "field is missing", r"has no field 'image' \(have"),
        ({"txt": None}, "caption", "field is missing", "has no field 'caption'"),
        ({"txt": b"caf\xe9"}, "caption", "text is no UTF-8", "is no UTF-8"),
        ({"json": None}, "width", "field is missing", "has no field 'json'"),
        ({"json": b"{}"}, "width", "field is missing", "has no field 'width'"),
        ({"json": b'{"width": null}'}, "width", "field is missing", "has no field 'width'"),
        ({"json": b'{"width": 1'}, "width", "JSON cannot be read", "its JSON is none"),
        ({"json": b"[" * 100_000}, "width", "JSON cannot be read", "its JSON is none"),
        ({"json": b"[]"}, "width", "JSON cannot be read", "its JSON is no object"),
        ({"json": b'{"width": "7"}'}, "width", "field has the wrong type", "expected int64"),
        ({"json": b'{"width": 1.5}'}, "width", "field has the wrong type", "expected int64"),
        ({"json": b'{"width": [1]}'}, "width", "field has the wrong shape", "expected"),
        ({"json": b'{"width": 1e99}'}, "width", "field has the wrong type", "expected int64"),
        ({"json": b'{"tags": "a"}'}, "tags", "field has the wrong type", "expected text"),
        ({"json": b'{"tags": [1]}'}, "tags", "field has the wrong type", "expected text"),
        ({"json": b'{"embedding": [1, []]}'}, "embedding", "field has the wrong type", "float32"),
        ({"json": b'{"embedding": [1]}'}, "embedding", "field has the wrong shape", "expected"),
    ],
)
def test_a_broken_example_is_named_with_its_fault(tmp_path, changes, key, reason, message):
    path = write(tmp_path / "0.tar", example(0) + example(1, **changes))
    source = open_shards(
        path,
        json_features={"width": "int64", "tags": ("text", None), "embedding": ("float32", 2)},
    )
    assert len(source.read(np.array([0]))) == 1
    with pytest.raises(BadExample, match=message) as error:
        source.read(np.array([0, 1]), [key])
    assert error.value.reason == reason and f"{path} '000000001'" in str(error.value)
    assert "\n" not in str(error.value)


def test_empty_members_are_read_as_such(tmp_path):
    source = open_shards(write(tmp_path / "0.tar", example(0, jpg=b"", txt=b"")))
    assert every(source, ["image", "caption"]) == [{"image": b"", "caption": ""}]


@pytest.mark.parametrize("content", [b"", b"a.jpg" + bytes(95)])
def test_an_empty_shard_loses_its_own_examples_only(tmp_path, caplog, content):
    write(tmp_path / "0.tar", example(0, jpg=b"a", txt=b"b"))
    (tmp_path / "1.tar").write_bytes(content)
    assert len(open_shards(tmp_path / "{0,1}.tar")) == 1
    assert f"cut off or damaged at byte {len(content)} of {len(content)}" in caplog.text


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "no example is in these 1 shards"),
        (b"a.jpg" + bytes(95), "no example is in these 1 shards"),
        (b"no tar" * 200, r"is no tar \("),
        (b"\x1f\x8b\x08" + bytes(600), "is compressed, .* at random; `gunzip` it"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "`unzstd` it"),
        (bytes(1024), "no example is in these 1 shards"),
    ],
)
def test_what_is_no_shard_is_refused(tmp_path, content, message):
    (tmp_path / "0.tar").write_bytes(content)
    with pytest.raises(BadInput, match=message) as error:
        open_shards(tmp_path / "0.tar")
    assert f"{tmp_path}/0.tar: " in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"image_key": "left.png"}, r"0\.tar: has no members \.left\.png \(have"),
        ({"caption_key": "txt2"}, "has no members .txt2; did you mean 'txt'"),
        ({"json_features": {"widht": "int64"}}, "has no 'widht'; did you mean 'width'"),
        ({"json_features": {"width": "int46"}}, "width='int46': expected one of .*mean 'int64'"),
        ({"json_features": {"width": ("int64", 0)}}, "expected sizes of at least 1"),
        ({"json_features": {"width": ("text", 3)}}, "only numbers have a shape"),
        ({"json_features": {"width": "image"}}, "JSON has texts and numbers"),
        ({"path": "none.tar"}, r"none\.tar: cannot be read"),
        ({"path": "none/*.tar"}, r"none/\*\.tar: matches no file"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(tmp_path, kwargs, message):
    path = write(tmp_path / "0.tar", examples(2))
    with pytest.raises(BadInput, match=message) as error:
        open_shards(**{"path": path} | kwargs)
    assert str(error.value).startswith("config.input.source: ") and "\n" not in str(error.value)


def test_a_shard_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    write(tmp_path / "0.tar", examples(2))

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "_read_local", refuse)
    with pytest.raises(BadInput, match=r"0\.tar: cannot be read \(Permission denied\)"):
        open_shards(tmp_path / "0.tar")


def test_shards_far_away_are_read_though_the_way_fails(tmp_path, monkeypatch):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(files, "_FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(files, "_BLOCK_BYTES", 1000)
    path = f"flaky://{uuid.uuid4().hex}/0.tar"
    content = write(tmp_path / "0.tar", examples(5)).read_bytes()
    fsspec.filesystem("flaky").pipe_file(path, content)
    Flaky.failures = 2
    source = open_shards(path)
    assert Flaky.failures == 0
    monkeypatch.setattr(files, "_blocks", Latest(files._fetch_block, 1000))
    Flaky.failures = 2
    assert source.read(np.array([3]), ["image"]) == [{"image": b"picture 3"}]
    assert Flaky.failures == 0


def test_a_shard_of_another_size_than_when_it_was_opened_is_noticed(tmp_path, monkeypatch):
    path = write(tmp_path / "0.tar", examples(5))
    source = open_shards(path)
    write(path, examples(4))
    monkeypatch.setattr("data.index._memory.get", lambda key: None)  # as if others pushed it out
    for file in Path(source._indexes.folder).iterdir():
        file.unlink()
    with pytest.raises(BadInput, match="had 5 examples when it was opened, has 4; start again"):
        source.read(np.array([0]))


def test_ten_thousand_members_are_indexed_in_two_seconds(tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    path = write(tmp_path / "0.tar", [(f"{i}.jpg", b"x" * 1000) for i in range(10_000)])
    begin = time.process_time()
    assert webdataset._build(str(path))["count"] == 10_000
    assert time.process_time() - begin < 2
