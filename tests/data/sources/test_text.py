import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.sources import BadExample, Feature, open_source
from mm.config import BadInput

TO_FEW = bytes(b"ab\n\n\r "[byte % 6] for byte in range(256))  # bytes -> mostly newlines


def open_text(path, **kwargs):
    return open_source({"name": "text", "path": path} | kwargs, "config.input.source")


def test_each_line_that_is_not_blank_is_an_example(tmp_path):
    (tmp_path / "1.txt").write_bytes("größe\r\n\r\n\na\u2028b\r\n".encode())
    (tmp_path / "2.txt").write_bytes(b" c ")
    source = open_text(f"{tmp_path}/*.txt")
    assert source.features == {"text": Feature("text")} and len(source) == 3
    found = [row["text"] for row in source.read(np.array([2, 0, 1]))]
    assert found == [" c ", "größe", "a\u2028b"]


@given(st.binary(max_size=40).map(lambda b: b.translate(TO_FEW)), st.integers(1, 9))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lines_are_what_is_between_newlines(tmp_path, monkeypatch, data, block):
    monkeypatch.setattr("data.sources.lines._BLOCK_BYTES", block)
    lines = [line.decode() for line in data.split(b"\n")]
    want = [line.rstrip("\r") for line in lines if line not in ("", "\r")]
    (tmp_path / "1.txt").write_bytes(data)
    if not want:
        return
    source = open_text(str(tmp_path / "1.txt"))
    assert [row["text"] for row in source.read(np.arange(len(source)))] == want


def test_shares_are_of_all_lines(tmp_path):
    (tmp_path / "1.txt").write_text("\n".join("abcd"))
    path = str(tmp_path / "1.txt")
    assert [len(open_text(path, last=0.75)), len(open_text(path, first=0.75))] == [3, 1]
    assert open_text(path, first=0.75).read(np.array([0])) == [{"text": "d"}]


def test_a_line_that_is_no_utf_8_is_a_broken_example(tmp_path):
    (tmp_path / "1.txt").write_bytes(b"a\n\n\xff\n")
    with pytest.raises(BadExample, match="1.txt line 3: is no UTF-8") as error:
        open_text(str(tmp_path / "1.txt")).read(np.array([1]))
    assert error.value.reason == "text is no UTF-8"


def test_files_without_a_text_are_refused(tmp_path):
    (tmp_path / "1.txt").write_bytes(b"\n\r\n")
    with pytest.raises(BadInput, match="1.txt: is empty; expected one text a line"):
        open_text(str(tmp_path / "1.txt"))
