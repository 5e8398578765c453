import gzip

import numpy as np
import pytest

from data.builders import handwritten
from data.builders.preparation import main
from data.input import example, open_input
from data.sources import open_source
from data.sources.pictures import decode
from mm.config import BadInput, load, plain

PER_CLASS = 5  # of which the last is a test picture


def table(side: int, white: int) -> bytes:
    """A picture's first value tells which of its class it is, the last its class."""
    rows = []
    for number in range(PER_CLASS):
        for digit in range(10):
            values = np.zeros(side**2, int)
            values[0], values[-1] = number, white * digit // 9
            rows.append(",".join(map(str, [*values, digit])))
    return gzip.compress("\n".join(rows).encode())


def prepare(monkeypatch, command: str, name: str, data_dir, content: bytes) -> int:
    monkeypatch.setattr(handwritten, "download", lambda package: content)
    return main(command, f"data.builders.handwritten:{name}", "", [f"--data_dir={data_dir}"])


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Both data sets, of tiny tables in the form of the real ones."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        assert prepare(patch, "digits", "Digits", folder, table(8, 16)) == 0
        assert prepare(patch, "mnist", "Mnist5k", folder, table(28, 255)) == 0
    return folder


@pytest.mark.parametrize("name, side", [("digits", 8), ("mnist_5k", 28)])
def test_pictures_are_grey_from_black_to_white_and_labels_are_words(data_dir, name, side):
    source = open_source(
        dict(name="tfds", dataset=name, split="train", data_dir=str(data_dir)), "source"
    )
    record = source.read(np.array([19]))[0]  # the second nine
    picture = decode(record["image"])
    assert record["label"] == "nine" and picture.shape == (side, side, 3)
    assert picture[-1, -1].tolist() == [255] * 3 and picture[1, 1].tolist() == [0] * 3
    assert picture[0, 0, 0] == (16 if side == 8 else 1)  # of 16 shades, and of 255


def test_the_last_fifth_of_each_class_is_for_the_test(data_dir):
    given = dict(name="tfds", dataset="mnist_5k", data_dir=str(data_dir))
    for split, numbers in (("train", [0, 1, 2, 3]), ("test", [4])):
        source = open_source(dict(given, split=split), "source")
        found = [
            (x["label"], decode(x["image"])[0, 0, 0]) for x in source.read(np.arange(len(source)))
        ]
        assert found == [(name, number) for number in numbers for name in handwritten.NAMES]


@pytest.mark.parametrize("recipe", ["classify.py:variant", "eval_emoji.py:data"])
@pytest.mark.parametrize("data", ["digits", "mnist"])
def test_recipes_read_what_was_prepared(data_dir, tokenizer, recipe, data):
    evals = plain(load(f"configs/{recipe}={data}"))["evals"]
    for name, spec in evals.items():
        spec["source"]["data_dir"] = str(data_dir)
        spec["preprocess"] = spec["preprocess"].replace('"emoji"', f'"{tokenizer}"')
        opened = open_input(spec, name)
        assert opened.preprocess.only("label").classes == tuple(handwritten.NAMES)
        assert example(opened.source, opened.preprocess)["label"].tolist() == [0]


def test_unknown_data_to_evaluate_are_refused():
    with pytest.raises(BadInput, match="data=digit: have .'emoji', 'digits', 'mnist'"):
        load("configs/eval_emoji.py:data=digit")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"1,2,3", "cannot be read: Not a gzipped file"),
        (gzip.compress(b"1,2,3\n1,x,3"), "cannot be read: could not convert string 'x'"),
        (table(7, 16), "expected 64 grey values of 0 .. 16 a row"),
        (table(8, 17), "expected 64 grey values of 0 .. 16 a row"),
        (gzip.compress(b"1," * 64 + b"10"), "expected a digit at the end of each row"),
    ],
    ids=["no gzip", "no number", "other sides", "too white", "no digit"],
)
def test_another_table_is_refused(content, message):
    with pytest.raises(BadInput, match=message):
        handwritten.read_table(content, 8, 16)


def test_a_table_that_is_refused_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    assert prepare(monkeypatch, "digits", "Digits", tmp_path, table(7, 16)) == 2
    assert capsys.readouterr().err.startswith("error: the table of digits: expected 64 grey values")
    assert not list((tmp_path / "digits").glob("*1.0.0"))


def test_what_was_not_prepared_names_the_command(tmp_path):
    spec = dict(name="tfds", dataset="mnist_5k", split="test", data_dir=str(tmp_path))
    with pytest.raises(BadInput, match=f"python -m data.builders.mnist --data_dir={tmp_path}"):
        open_source(spec, "source")
