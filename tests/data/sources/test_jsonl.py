import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data.sources import Feature, open_source
from mm.config import BadInput

COUNT = 150


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
    assert open_jsonl(path, image_key="picture").read(np.array([0])) == [{"picture": b"there"}]


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99, 1 / 3])
def test_two_shares_make_the_whole(pairs, share):
    first, rest = open_jsonl(pairs, last=share), open_jsonl(pairs, first=share)
    assert len(first) == round(share * COUNT)
    assert ranks(first) + ranks(rest) == list(range(COUNT))


@pytest.mark.parametrize("end", ["", "\n", "\n\n\n"])
def test_the_last_line_may_end_with_a_newline_or_not(tmp_path, end):
    assert ranks(open_jsonl(write(tmp_path, [record(0), record(1)], end=end))) == [0, 1]


def test_lines_longer_than_a_block_are_found(pairs, monkeypatch):
    monkeypatch.setattr("data.sources.jsonl._BLOCK", 7)
    assert ranks(open_jsonl(pairs)) == list(range(COUNT))


def test_threads_may_read_at_once(pairs):
    source = open_jsonl(pairs)
    with ThreadPoolExecutor(8) as pool:
        blocks = pool.map(lambda i: source.read(np.array([i]), ["rank"])[0]["rank"], range(COUNT))
    assert list(blocks) == list(range(COUNT))


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"image": "photos/1.png", ', "line 4: is no JSON"),
        ("x", "line 4: is no JSON"),
        ("[1]", "line 4: is no object"),
        ({"image": "photos/1.png", "caption": "b"}, "line 4: has no field 'captions'"),
        ({"image": "photos/1.png", "captions": 3}, "line 4: captions=3: expected a text"),
        ({"image": "photos/7.png", "captions": "b"}, "line 4: picture 'photos/7.png' cannot be"),
        ({"image": None, "captions": "b"}, "line 4: image=None: expected a path"),
    ],
)
def test_a_bad_line_is_named_by_its_number_when_read(tmp_path, line, message):
    good = {"image": "photos/0.png", "captions": "a"}
    path = write(tmp_path, [good, "", good, line], end="")  # blank lines count, but are no examples
    source = open_jsonl(path)
    assert len(source) == 3 and len(source.read(np.array([0, 1]))) == 2
    with pytest.raises(BadInput) as error:
        source.read(np.array([0, 2]))
    assert f"{path} {message}" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "lines, kwargs, message",
    [
        ([], {}, "pairs.jsonl: is empty"),
        ([record(0)], {"first": 0.99}, "none of its 1 lines is between first=0.99 and last=1.0"),
        ([record(0)], {"first": 0.5, "last": 0.5}, "expected 0 <= first < last <= 1"),
        ([record(0)], {"last": 99}, "expected 0 <= first < last <= 1"),
        ([record(0)], {"image_key": "imag"}, "in 'imag'; did you mean 'image'?"),
        ([record(0)], {"image_key": "rank"}, "line 1: has no picture's path in 'rank'"),
        (["{"], {}, "line 1: is no JSON"),
    ],
)
def test_what_cannot_be_opened_is_refused(tmp_path, lines, kwargs, message):
    with pytest.raises(BadInput) as error:
        open_jsonl(write(tmp_path, lines), **kwargs)
    assert "config.input.source: " in str(error.value) and message in str(error.value)


@pytest.mark.parametrize("name", ["none.jsonl", ""])
def test_a_file_that_is_not_there_is_refused(tmp_path, name):
    with pytest.raises(BadInput, match="cannot be read"):
        open_jsonl(tmp_path / name)


def test_a_list_of_numbers_is_as_long_on_every_line(tmp_path):
    lines = [{**record(i), "teacher": [0.5, i, 2][: 3 - i // 2]} for i in range(3)]
    source = open_jsonl(write(tmp_path, lines))
    assert source.features["teacher"] == Feature("float32", shape=(3,))
    assert source.read(np.array([1]), ["teacher"]) == [{"teacher": [0.5, 1, 2]}]
    with pytest.raises(BadInput, match="line 3: teacher=.*expected 3 numbers"):
        source.read(np.array([2]), ["teacher"])
