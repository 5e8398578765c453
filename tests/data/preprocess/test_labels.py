"""Classes to numbers: names, other names, whole numbers, and what is no class."""

import json

import numpy as np
import pytest

from data.preprocess.draws import example_keys
from data.preprocess.parse import parse
from mm.config import BadInput
from mm.interop.facts import as_it_travels


def made(string, **columns):
    (count,) = {len(column) for column in columns.values()}
    keys = example_keys(0, np.arange(count), np.zeros(count, int))
    return parse(string, where="config.input.preprocess").apply(columns, keys)


def test_a_label_is_the_place_of_its_name():
    found = made("label('kind', ('cat', 'dog', 'cow'))", kind=["cow", "cat", "cow"])["label"]
    np.testing.assert_array_equal(found, [2, 0, 2])
    assert found.dtype == np.int32


@pytest.mark.parametrize("values", [[2, 0], np.array([2, 0], np.uint8), [np.int64(2), 0]])
@pytest.mark.parametrize("classes", ["3", "('cat', 'dog', 'cow')"])
def test_a_whole_number_is_taken_as_it_is(values, classes):
    np.testing.assert_array_equal(made(f"label('kind', {classes})", kind=values)["label"], [2, 0])


@pytest.mark.parametrize("classes", [["cat", "dog"], {"cat": ["kitten", "Katze"], "dog": []}])
def test_classes_are_read_from_a_file(tmp_path, classes):
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    ops = f"label('kind', '{tmp_path}/classes.json')"
    np.testing.assert_array_equal(made(ops, kind=["dog", "cat"])["label"], [1, 0])
    if isinstance(classes, dict):
        np.testing.assert_array_equal(made(ops, kind=["Katze", "kitten"])["label"], [0, 0])
    assert parse(ops, where="x").classes == ("cat", "dog")


def test_labels_mark_each_class_that_is_there():
    found = made("labels('tags', ('red', 'round', 'small'))", tags=[["small", "red"], []])["labels"]
    np.testing.assert_array_equal(found, [[1, 0, 1], [0, 0, 0]])
    assert found.dtype == np.float32


def test_labels_leave_out_what_is_no_class_when_told_to():
    found = made("labels('tags', ('red', 'round'), others=True)", tags=[["huge", "round"]])
    np.testing.assert_array_equal(found["labels"], [[0, 1]])


@pytest.mark.parametrize(
    ("ops", "value", "message"),
    [
        ("label('kind', ('cat', 'dog'))", "dgo", r"'kind': 'dgo' is no class; did you mean 'dog'"),
        ("label('kind', 3)", 3, r"'kind': 3 is no class; expected 0 .. 2, as classes has 3"),
        ("label('kind', 3)", -1, r"'kind': -1 is no class"),
        ("label('kind', 3)", 1.0, r"1.0 is no class; expected a name or a whole number"),
        ("label('kind', 3)", True, r"True is no class"),
        ("labels('kind', ('cat',))", ["cow"], r"'cow' is no class; add it to classes"),
        ("labels('kind', ('cat',), others=True)", [1], r"1 is no class; expected 0 .. 0"),
        ("labels('kind', ('cat',))", "cat", r"'kind' is one value, not a list of them; use label"),
    ],
)
def test_a_value_that_is_no_class_is_named(ops, value, message):
    with pytest.raises(BadInput, match=message):
        made(ops, kind=[value])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("()", "expected names"),
        ("0", "at least 1"),
        ("('cat', 'cat')", "'cat' is there twice"),
        ("{'cat': ['pet'], 'dog': ['pet']}", "'pet' is a name of two classes"),
        ("{'cat': 'pet'}", "expected names"),
        ("(1, 2)", "classes"),
        ("'nowhere.json'", "nowhere.json"),
    ],
)
def test_classes_that_cannot_be_are_refused(classes, message):
    with pytest.raises(BadInput, match=message):
        parse(f"label('kind', {classes})", where="config.input.preprocess")


def test_a_file_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(BadInput, match=r"classes.txt.*: is no JSON"):
        parse(f"label('kind', '{tmp_path}/classes.txt')", where="x")


def test_labels_do_not_travel_with_weights():
    ops = "decode|resize(8)|label('kind', 'classes.json')|labels('tags', 3)"
    assert as_it_travels(ops, "x") == "decode|resize(8)"
