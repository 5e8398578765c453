import numpy as np
import pytest

from data.preprocess.parse import parse
from mm.config import BadInput

WHERE = "config.input.preprocess"


def test_ops_are_read_from_left_to_right():
    ops = parse(
        "decode|random_resized_crop(48, scale=(0.5, 1))|flip|value_range(-1, 1)", where=WHERE
    )
    assert ops.names == (
        "decode",
        "random_resized_crop(48, scale=(0.5, 1))",
        "flip",
        "value_range(-1, 1)",
    )


def test_reads_are_the_fields_of_all_ops():
    ops = parse("caption('label', tags='tags')|group('concept')|decode('picture')", where=WHERE)
    assert ops.reads == ("concept", "label", "picture", "tags")


@pytest.mark.parametrize(
    "string, message",
    [
        ("decode|flipp", "no op 'flipp'; did you mean 'flip'"),
        ("decode|resize(sise=4)", r"resize\(sise=4\): unknown key 'sise'; did you mean 'size'"),
        ("decode|resize('a')", r"resize\('a'\).size='a': expected int or tuple, got str"),
        ("decode|pad(0.1, 5, 6)", r"takes at most 2 arguments \(\['share', 'value'\]\)"),
        ("decode|resize(4, size=5)", "'size' is given twice"),
        ("decode|resize", "resize: missing 'size'"),
        ("decode|resize(n)", "size=n is no literal"),
        ("decode|resize(__import__('os'))", "is no literal"),
        ("decode|resize(0)", r"resize\(0\): size=0: expected at least 1"),
        ("decode||flip", "cannot read 'decode||flip' near character 8"),
        ("decode|'flip'", "\"'flip'\" is no op"),
        ("os.remove('x')", "is no op"),
        ("", "cannot read"),
        ("decode|flip(p=2.0)", "p=2.0: expected 0 .. 1"),
        ("decode|random_resized_crop(8, scale=(1, 0.5))", "scale="),
        ("decode|value_range(1, -1)", "expected low < high"),
        ("tokenize('nix.json', 4)", "tokenizer 'nix.json': cannot be read"),
        ("tokenize('none', 4)", "train one with .*--dataset=none --data_dir=.data"),
        ("resize({[1]: 2})", "is no literal"),
    ],
)
def test_mistakes_name_the_op_and_the_argument(string, message):
    with pytest.raises(BadInput, match=message.replace("||", r"\|\|")) as error:
        parse(string, where=WHERE)
    assert str(error.value).startswith(WHERE)


@pytest.mark.parametrize(
    "string, message",
    [
        ("resize(4)", r"resize\(4\): belongs after decode"),
        ("decode|flip|resize(4)", "flip: belongs after resize"),
        ("decode|resize(4)|resize(4)", "belongs after decode, and only once"),
        ("decode|pad(0.1)", "'image' is not yet numbers; put resize or random_resized_crop after"),
        ("caption('label')", "'text' is not yet numbers; put tokenize last"),
    ],
)
def test_an_order_that_cannot_work_is_refused(string, message):
    columns = {"image": [np.zeros((8, 8, 3), np.uint8)], "label": ["x"]}
    with pytest.raises(BadInput, match=message):
        parse(string, where=WHERE).apply(columns, np.zeros(1, np.uint64))


def test_an_op_that_reads_what_another_has_written_over_is_refused_by_name():
    columns = {"group": ["animals"], "label": ["cat"]}
    keys = np.zeros(1, np.uint64)
    right = parse("label('group', classes=['animals'])|group('group')", where=WHERE)
    assert right.apply(columns, keys).keys() == {"group", "label"}
    wrong = parse("group('group')|label('group', classes=['animals'])", where=WHERE)
    message = r"label\('group', .*\): reads the field 'group', which group\('group'\) has written"
    with pytest.raises(BadInput, match=message):
        wrong.apply(columns, keys)
