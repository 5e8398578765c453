"""What `python -m data.inspect` says about a small set, and the sheet that it draws."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from data.inspect.__main__ import main
from data.inspect.examine import sample
from data.inspect.text import WIDTH, _cut

COUNT = 50
COLOR = (200, 30, 40)


def encoded(width, height, kind):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), COLOR).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Forty PNGs of 30 x 20, nine JPEGs of 60 x 40, one that is broken: number 49."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = []
    for i in range(COUNT):
        data = encoded(30, 20, "PNG") if i < 40 else encoded(60, 40, "JPEG")
        (folder / str(i)).write_bytes(b"no picture" if i == 49 else data)
        caption = "一只红色的猫" * 20 if i == 0 else f"cat {i % 25}"
        lines.append({"image": str(i), "caption": caption, "tags": ["a"] * (i % 3)})
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    return path


@pytest.fixture
def shown(pairs, capsys):
    def show(*flags):
        code = main([str(pairs), *flags])
        return code, capsys.readouterr()

    return show


def row(text, name):
    """The numbers of a row."""
    (line,) = [line for line in text.splitlines() if line.strip().startswith(name)]
    return line.strip().removeprefix(name).split()


def test_pictures_captions_and_what_is_broken_are_counted(shown):
    code, (out, _) = shown()
    assert code == 0
    assert "50 examples; looked at all of them" in out
    assert row(out, "width, pixels") == ["30", "30", "36", "60"]
    assert row(out, "height, pixels") == ["20", "20", "24", "40"]
    assert row(out, "width / height") == ["1.50"] * 4
    assert "formats: png 40, jpg 9" in out
    assert row(out, "characters")[::3] == ["5", "120"]
    assert row(out, "words")[1::2] == ["2", "2"]
    assert "the same as an earlier one: 23 (46.9%)" in out
    assert "2 times 'cat 1'" in out
    assert "broken: 1 of 50" in out and "1 picture cannot be decoded: examples 49" in out


def test_fields_have_types_and_a_value(shown):
    _, (out, _) = shown()
    assert "caption  text" in out and "tags     text, a list  []" in out
    assert f"image    picture       {len(encoded(30, 20, 'PNG'))} bytes" in out


def test_what_is_missing_of_other_fields_does_not_count(tmp_path, capsys):
    (tmp_path / "1.png").write_bytes(encoded(30, 20, "PNG"))
    users = ("x", None, "y")
    lines = [{"image": "1.png", "caption": f"a cat of {user}", "user": user} for user in users]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert main([str(tmp_path / "pairs.jsonl")]) == 0
    assert "captions (caption): 3" in (out := capsys.readouterr().out)
    assert "broken: 0 of 3" in out


def test_a_table_whose_columns_have_other_names_is_read_by_flags(pairs, capsys, tmp_path):
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    lines = [json.dumps({"file": row["image"], "title": row["caption"]}) for row in rows]
    path = pairs.with_name("named.jsonl")
    path.write_text("\n".join(lines))
    assert main([str(path), "--image_key=file"]) == 0
    out = capsys.readouterr().out
    assert "captions (title): 49" in out and "broken: 1 of 50" in out
    assert main([str(path)]) == 2
    assert "set image_key" in capsys.readouterr().err
    assert main([str(path), "--image_key=fiel"]) == 2
    assert "did you mean 'file'?" in capsys.readouterr().err


def test_other_fields_can_be_looked_at(shown):
    _, (out, _) = shown("--caption_key=tags")
    assert "captions (tags): 48" in out and row(out, "of an example")[0::3] == ["0", "2"]


def test_tokens_are_counted_with_a_tokenizer(shown, tokenizer):
    _, (out, _) = shown(f"--tokenizer={tokenizer}")
    assert int(row(out, "tokens")[0]) >= 2


def test_no_line_is_wider_than_a_terminal(shown):
    _, (out, _) = shown()
    assert max(map(len, out.splitlines())) <= WIDTH and "一只" in out
    assert _cut("红" * 60) == "红" * 38 + "..."


@pytest.mark.parametrize("threads", [1, 4])
def test_the_text_is_the_same_from_any_number_of_threads(shown, threads):
    assert shown(f"--num_threads={threads}")[1].out == shown()[1].out


def test_some_examples_are_spread_over_all(shown):
    ids = sample(100_000, 100, seed=0)
    assert len(set(ids.tolist())) == 100 and (np.diff(ids) > 0).all()
    assert np.histogram(ids, 4, (0, 100_000))[0].min() > 10
    assert sample(5, 0, seed=0).tolist() == sample(5, 9, seed=0).tolist() == [0, 1, 2, 3, 4]
    assert "looked at 10 of them" in shown("--num_examples=10")[1].out


def test_the_sheet_shows_pictures_with_captions_under_them(shown, tmp_path):
    code, (out, _) = shown(f"--sheet={tmp_path}/sheet.png")
    assert code == 0 and f"sheet of pictures: {tmp_path}/sheet.png" in out
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
    red = (np.abs(sheet - COLOR).max(-1) < 10).mean()
    dark = (sheet.max(-1) < 100).mean()
    assert 0.2 < red < 0.6 and 0.001 < dark < 0.1  # pictures, and ink


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--num_examples=-1"], "--num_examples=-1: expected at least 0"),
        (["--caption_key=captio"], "--caption_key=captio: no such field; did you mean 'caption'?"),
        (["--sheet=sheet.jpg"], "expected a file that ends in .png"),
        (["--sheet=/nowhere/sheet.png"], "cannot be written (No such file or directory)"),
        (["--tokenizer=none.json"], "tokenizer 'none.json': cannot be read"),
    ],
)
def test_wrong_input_is_said_in_one_line(shown, flags, message):
    code, (_, error) = shown(*flags)
    assert code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "source, message",
    [
        ("pairs.zip", "pairs.zip: is neither a folder with anything in it nor a file that ends"),
        ("none.jsonl", "none.jsonl: cannot be read"),
        ("{'name': 'jsonl'", "is no literal mapping"),
        ("{'name'}", "expected a mapping"),
        ("{'name': 'jsnl'}", "no source 'jsnl'; did you mean 'jsonl'?"),
    ],
)
def test_a_source_that_is_none_is_refused(capsys, source, message):
    assert main([source]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
