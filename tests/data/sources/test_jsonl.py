import json

import numpy as np
import pytest

from data.sources import BadExample, Feature, open_source
from mm.config import BadInput

COUNT = 150
TYPE = "field has the wrong type"


def record(i):
    return {
        "image": f"photos/{i % 4}.png",
        "caption": f"größe {i}",
        "tags": [f"tag {j}" for j in range(i % 3)],
        "rank": i,
        "score": i / 2 if i % 2 else i // 2,
        "extra": {"license": None},
    }


def write(folder, lines, name="pairs.jsonl", end="\n"):
    """Writes the lines (text, or what JSON can hold) and four pictures."""
    (folder / "photos").mkdir(exist_ok=True)
    for i in range(4):
        (folder / "photos" / f"{i}.png").write_bytes(b"picture %d" % i)
    lines = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / name).write_text("\n".join(lines) + end)
    return folder / name


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    lines = [{**record(0), "score": 0.0}, *map(record, range(1, COUNT))]
    return write(tmp_path_factory.mktemp("pairs"), lines)


def open_jsonl(path, **kwargs):
    spec = {"name": "jsonl", "path": str(path)} | kwargs
    return open_source(spec, "config.input.source")


def ranks(source):
    return [r["rank"] for r in source.read(np.arange(len(source)), ["rank"])]


def test_the_first_line_says_what_the_fields_are(pairs):
    assert open_jsonl(pairs).features == {
        "image": Feature("image"),
        "caption": Feature("text"),
        "tags": Feature("text", ragged=True),
        "rank": Feature("int64"),
        "score": Feature("float32"),
    }


def test_lines_are_read_in_the_order_asked_for(pairs):
    first, again, other = open_jsonl(pairs).read(np.array([7, 7, 140]))
    assert first == again and other["caption"] == "größe 140"
    fields = {key: value for key, value in record(7).items() if key != "extra"}
    assert first == fields | {"image": b"picture 3"}


def test_only_the_fields_asked_for_are_read(tmp_path):
    source = open_jsonl(write(tmp_path, [{"image": "photos/none.png", "caption": "a"}]))
    assert source.read(np.array([0]), ["caption"]) == [{"caption": "a"}]


def test_a_picture_may_have_an_absolute_path(tmp_path):
    (tmp_path / "elsewhere.png").write_bytes(b"there")
    path = write(tmp_path, [{"picture": str(tmp_path / "elsewhere.png")}])
    assert open_jsonl(path, image_key="picture").read(np.array([0])) == [{"image": b"there"}]


@pytest.mark.parametrize("end", ["", "\n", "\n\n\n"])
def test_the_last_line_may_end_with_a_newline_or_not(tmp_path, end):
    assert ranks(open_jsonl(write(tmp_path, [record(0), record(1)], end=end))) == [0, 1]


def test_lines_longer_than_a_block_are_found(pairs, monkeypatch):
    monkeypatch.setattr("data.sources.lines._BLOCK_BYTES", 7)
    assert ranks(open_jsonl(pairs)) == list(range(COUNT))


HALF = '{"image": "photos/1.png", "captions": "\\ud83d"}'


@pytest.mark.parametrize(
    "line, reason, message",
    [
        ('{"image": "photos/1.png", ', "line is no JSON", "line 4: is no JSON"),
        ("x", "line is no JSON", "line 4: is no JSON"),
        ("[1]", "line is no JSON", "line 4: is no object"),
        ("[" * 100_000, "line is no JSON", "line 4: is no JSON"),
        ('{"rank": 1' + "0" * 5000 + "}", "line is no JSON", "line 4: is no JSON"),
        ({"image": "photos/1.png", "caption": "b"}, "field is missing", "line 4: has no field "),
        (
            {"image": "photos/1.png", "captions": 3},
            "field has the wrong type",
            "line 4: captions=3: ",
        ),
        (
            {"image": 3, "captions": "b"},
            "field has the wrong type",
            "line 4: image=3: expected a pic",
        ),
        ({"image": None, "captions": "b"}, "field is null", "line 4: image is null"),
        ({"image": "photos/7.png", "captions": "b"}, "picture is missing", "line 4: picture 'pho"),
        (HALF, "text is no UTF-8", "line 4: captions='\\ud83d': surrogates not allowed"),
        (
            b'{"image": "photos/1.png", "captions": "\xff"}',
            "text is no UTF-8",
            "line 4: is no UTF-8",
        ),
    ],
)
def test_a_broken_line_after_the_first_is_a_broken_example(tmp_path, line, reason, message):
    good = {"image": "photos/0.png", "captions": "a"}
    path = write(tmp_path, [good, "", good, line if isinstance(line, str | dict) else ""], end="")
    if isinstance(line, bytes):
        path.write_bytes(path.read_bytes() + line)
    source = open_jsonl(path, caption_key="captions")  # blank lines count, but are no examples
    assert len(source) == 3 and len(source.read(np.array([0, 1]))) == 2
    with pytest.raises(BadExample) as error:
        source.read(np.array([0, 2]))
    assert error.value.reason == reason
    assert f"{path} {message}" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "lines, message",
    [
        (["{"], "line 1: is no JSON"),
        (["[]", record(0)], "line 1: is no object"),
        ([record(0) | {"caption": None}], "line 1: has no text in 'caption' (have ["),
    ],
)
def test_a_first_line_that_tells_nothing_is_refused(tmp_path, lines, message):
    with pytest.raises(BadInput) as error:
        open_jsonl(write(tmp_path, lines))
    assert "config.input.source: " in str(error.value) and message in str(error.value)


def test_numbers_have_to_fit(tmp_path):
    lines = [record(0), record(1) | {"rank": 2**63}, record(2) | {"rank": True}]
    source = open_jsonl(write(tmp_path, lines))
    for i in (1, 2):
        with pytest.raises(BadExample, match="rank=.*: expected a whole number"):
            source.read(np.array([i]), ["rank"])


def test_a_byte_order_mark_and_windows_newlines_are_no_text(tmp_path):
    path = write(tmp_path, [])
    lines = [json.dumps({"image": "photos/1.png", "caption": text}) for text in "ab"]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode() + b"\r\n\r\n\r")
    source = open_jsonl(path)
    assert [r["caption"] for r in source.read(np.arange(len(source)))] == ["a", "b"]


def test_a_list_of_numbers_is_as_long_on_every_line(tmp_path):
    lines = [{**record(i), "teacher": [0.5, i, 2][: 3 - i // 2]} for i in range(3)]
    source = open_jsonl(write(tmp_path, lines))
    assert source.features["teacher"] == Feature("float32", shape=(3,))
    assert source.read(np.array([1]), ["teacher"]) == [{"teacher": [0.5, 1, 2]}]
    with pytest.raises(BadExample, match="line 3: teacher=.*expected 3 numbers"):
        source.read(np.array([2]), ["teacher"])
