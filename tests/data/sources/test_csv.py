import csv
import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.sources import BadExample, Feature, open_source
from mm.config import BadInput


def test_a_quote_that_is_never_closed_is_refused_before_it_hides_rows(tmp_path):
    rows = [f"{i}.png,a cat {i}\n" for i in range(200)]
    rows[10] = '10.png,"a cat of 5 inches\n'
    (tmp_path / "pairs.csv").write_text("image,caption\n" + "".join(rows))
    with pytest.raises(BadInput, match="not closed before the end .* takes in 190 lines from byte"):
        open_source({"name": "csv", "path": str(tmp_path / "pairs.csv")}, "source")


def open_csv(folder, text, name="pairs.csv", **kwargs):
    data = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(data)
    (folder / "a.png").write_bytes(b"a picture")
    return open_source({"name": "csv", "path": str(folder / name)} | kwargs, "config.input.source")


def read(source, keys=None):
    return source.read(np.arange(len(source)), keys)


def test_quotes_hold_separators_newlines_and_quotes(tmp_path):
    text = 'image,caption\r\na.png,"a ""red""\r\nbike, old"\r\na.png, 5" wide "x"\r\n'
    captions = [row["caption"] for row in read(open_csv(tmp_path, text))]
    assert captions == ['a "red"\r\nbike, old', ' 5" wide "x"']


@pytest.mark.parametrize("block", [1, 2, 5])
def test_rows_longer_than_a_block_are_found(tmp_path, monkeypatch, block):
    monkeypatch.setattr("data.sources.lines._BLOCK_BYTES", block)
    source = open_csv(tmp_path, '\n\nimage,caption\n\na.png,"a\n\nb"\n\n\na.png,größe')
    assert [row["caption"] for row in read(source)] == ["a\n\nb", "größe"]


def python_rows(text):
    return [row for row in csv.reader(io.StringIO(text, newline="")) if row]


PIECES = st.lists(st.sampled_from(["a", "é", '"', ",", "\n", "\r\n", '"b"', '"c\nd"']), max_size=30)


@given(pieces=PIECES, block=st.integers(1, 9))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_are_those_of_pythons_reader(tmp_path, monkeypatch, pieces, block):
    text = "image,caption\n" + "".join(pieces)
    monkeypatch.setattr("data.sources.lines._BLOCK_BYTES", block)
    rows = python_rows(text)[1:]
    if not rows:
        return
    closed = python_rows(text + "\nend")[-1] == ["end"]
    source = open_csv(tmp_path, text)
    found = []
    for i in range(len(source)):
        try:
            found.append(source.read(np.array([i]), ["caption"])[0]["caption"])
        except BadExample as error:
            assert error.reason in ("row of another length", "row is no CSV")
            found.append(None)
    want = [row[1] if len(row) == 2 else None for row in rows]
    assert found == (want if closed else [*want[:-1], None])


def test_columns_are_text_unless_they_are_named_as_numbers(tmp_path):
    text = "image,caption,id,score\na.png,12,007,0.5\na.png,x,8, 3 \n"
    assert read(open_csv(tmp_path, text), ["caption", "id"])[0] == {"caption": "12", "id": "007"}
    source = open_csv(tmp_path, text, numbers=("id", "score"))
    assert source.features["id"] == Feature("int64")
    assert source.features["score"] == Feature("float32")
    assert read(source, ["id", "score"]) == [{"id": 7, "score": 0.5}, {"id": 8, "score": 3.0}]


def test_tabs_separate_in_a_tsv_or_where_one_says_so(tmp_path):
    text = "filepath\ttitle\na.png\ta, b\n"
    keys = dict(image_key="filepath", caption_key="title")
    want = [{"image": b"a picture", "caption": "a, b"}]
    assert read(open_csv(tmp_path, text, "pairs.TSV", **keys)) == want
    assert read(open_csv(tmp_path, text, delimiter="\t", **keys)) == want


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    source = open_csv(tmp_path, b"\xef\xbb\xbfimage,caption\na.png,b\n")
    assert set(source.features) == {"image", "caption"}


def test_columns_of_files_may_be_in_another_order(tmp_path):
    open_csv(tmp_path, "caption,image\nb,a.png\n", "2.csv")
    path = str(tmp_path / "?.csv")
    source = open_csv(tmp_path, "image,caption\na.png,a\n", "1.csv", path=path)
    assert [row["caption"] for row in read(source)] == ["a", "b"]
    with pytest.raises(BadInput, match="3.csv: has the columns .*expected the same in all files"):
        open_csv(tmp_path, "image,captions\na.png,a\n", "3.csv", path=path)


def test_a_caption_of_a_megabyte_is_read(tmp_path):
    source = open_csv(tmp_path, f"image,caption\na.png,{'x' * (1 << 20)}\n")
    assert len(read(source)[0]["caption"]) == 1 << 20


@pytest.mark.parametrize(
    "row, reason, message",
    [
        (b"a.png,b", "row of another length", "row 3: has 2 values for 3 columns"),
        (b"a.png,a dog, red,1", "row of another length", "row 3: has 4 values for 3 columns"),
        (b'a.png,"b,1', "row is no CSV", "row 3: is no CSV (a quote is not closed"),
        (b"a.png,b\rc,1", "row is no CSV", "row 3: is no CSV (new-line character"),
        (b"a.png,\xff,1", "text is no UTF-8", "row 3: is no UTF-8"),
        (b"a.png,b,x", "field has the wrong type", "row 3: rank='x': is no int64"),
        (b"a.png,b,1.5", "field has the wrong type", "row 3: rank='1.5': is no int64"),
        (b"a.png,b, ", "field is null", "row 3: rank is null, expected a whole number"),
    ],
)
def test_a_broken_row_is_a_broken_example(tmp_path, row, reason, message):
    source = open_csv(tmp_path, b"image,caption,rank\na.png,a,1\n" + row, numbers=("rank",))
    assert len(source) == 2 and len(source.read(np.array([0]))) == 1
    with pytest.raises(BadExample) as error:
        source.read(np.array([1]))
    assert error.value.reason == reason and message in str(error.value)


@pytest.mark.parametrize(
    "text, kwargs, message",
    [
        ("image,image\na.png,b\n", {}, "its first row is ['image', 'image'], expected the names"),
        (b"image,\xff\na.png,b\n", {}, "its first row is no UTF-8"),
        ("image\na.png\n", {"numbers": ("imag",)}, "has no column 'imag'; did you mean 'image'?"),
        ("image\na.png\n", {"numbers": ("image",)}, "row 2: image='a.png': is no number"),
        ("image\na.png\n", {"delimiter": ""}, "delimiter='': expected one character"),
        ("image\na.png\n", {"delimiter": "||"}, "delimiter='||': expected one character"),
    ],
)
def test_what_cannot_be_opened_is_refused(tmp_path, text, kwargs, message):
    with pytest.raises(BadInput) as error:
        open_csv(tmp_path, text, **kwargs)
    assert message in str(error.value)
