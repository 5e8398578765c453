import collections

import numpy as np
import pytest

from data.preprocess.draws import Draws, example_keys
from data.preprocess.parse import parse
from data.tokenizers import train
from mm.config import BadInput


def captions(string, labels, tags=None, epoch=0):
    op = parse(string, where="config.input.preprocess").ops[0]
    keys = example_keys(0, np.arange(len(labels)), np.full(len(labels), epoch))
    columns = {"label": labels} | ({} if tags is None else {"tags": tags})
    return op.apply(columns, Draws(keys, "caption"))["text"]


def test_the_label_alone_is_never_random():
    assert captions("caption('label')", ["red car", "Größe"]) == ["red car", "Größe"]


def test_tags_follow_the_label_in_every_number_and_order():
    found = captions("caption('label', 'tags')", ["l"] * 3000, [["a", "b"]] * 3000)
    counts = collections.Counter(found)
    expected = {"l": 1000, "l, a": 500, "l, b": 500, "l, a, b": 500, "l, b, a": 500}
    assert counts.keys() == expected.keys()
    for caption, count in expected.items():
        assert abs(counts[caption] - count) < 120, caption


def test_max_tags_limits_how_many():
    found = captions("caption('label', 'tags', max_tags=2)", ["l"] * 300, [list("abcdef")] * 300)
    assert {caption.count(",") for caption in found} == {0, 1, 2}


def test_without_tags_the_label_stays_even_if_it_may_go():
    found = captions("caption('label', 'tags', p_label=0.0)", ["l"] * 200, [["a"], []] * 100)
    assert set(found[0::2]) == {"l", "a"} and set(found[1::2]) == {"l"}


def test_each_epoch_has_another_caption():
    labels, tags = ["l"] * 50, [list("abcdefgh")] * 50
    first = captions("caption('label', 'tags')", labels, tags, epoch=0)
    assert first == captions("caption('label', 'tags')", labels, tags, epoch=0)
    assert (
        sum(
            a == b
            for a, b in zip(
                first, captions("caption('label', 'tags')", labels, tags, 1), strict=True
            )
        )
        < 20
    )


def test_a_caption_does_not_depend_on_its_neighbours():
    op = parse("caption('label', 'tags')", where="x").ops[0]
    labels, tags = [f"l{i}" for i in range(30)], [list("abcdefgh")[: i % 9] for i in range(30)]
    keys = example_keys(0, np.arange(30), np.zeros(30, int))
    whole = op.apply({"label": labels, "tags": tags}, Draws(keys, "c"))["text"]
    for i in range(30):
        alone = op.apply(
            {"label": labels[i : i + 1], "tags": tags[i : i + 1]}, Draws(keys[i : i + 1], "c")
        )["text"]
        assert alone == whole[i : i + 1]


def test_tokenize_writes_ids_and_mask(tmp_path):
    path = tmp_path / "tokenizer.json"
    train.write(str(path), train.train(["red car", "blue car"], 100))
    ops = parse(f"caption('label')|tokenize('{path}', 5)", where="x")
    batch = ops.apply({"label": ["Red CAR", ""]}, np.zeros(2, np.uint64))
    assert batch["text"].shape == (2, 5) and batch["text"].dtype == np.int32
    assert batch["text_mask"].tolist() == [[True] * 3 + [False] * 2, [True] + [False] * 4]
    assert ops.tokenizer.manifest()["length"] == 5


def test_tokenize_writes_words_when_asked(tmp_path):
    path = tmp_path / "tokenizer.json"
    train.write(str(path), train.train(["red car", "blue car"], 100))

    def batch(more):
        ops = parse(f"caption('label')|tokenize('{path}', 5{more})", where="x")
        return ops.apply({"label": ["red car", ""]}, np.zeros(2, np.uint64))

    words = batch(", words=True")["text_words"]
    assert words.dtype == np.int32
    assert words.tolist() == [[0, 1, -1, -1, -1], [-1] * 5]
    assert "text_words" not in batch("")


def test_a_group_is_the_same_number_for_the_same_text():
    ops = parse("group('concept')", where="x")
    found = ops.apply({"concept": ["cat", "dog", "cat"]}, np.zeros(3, np.uint64))["group"]
    assert found.dtype == np.int32 and found[0] == found[2] != found[1]
    assert found.tolist() == [found[0], found[1], found[0]] and np.all(found >= 0)


@pytest.mark.parametrize("string", ["caption('label', p_label=1.5)", "caption('l', max_tags=-1)"])
def test_impossible_arguments_are_refused(string):
    with pytest.raises(BadInput, match="expected"):
        parse(string, where="x")


def test_numbers_of_a_field_become_an_array():
    op = parse("numbers('teacher', 2, 'teacher_image')", where="x").ops[0]
    found = op.apply({"teacher": [[1, 2.5], [3, 4]]}, None)["teacher_image"]
    assert found.dtype == np.float32 and found.tolist() == [[1, 2.5], [3, 4]]
    with pytest.raises(BadInput, match=r"'teacher' has the shape \(3,\), expected \(2,\)"):
        op.apply({"teacher": [[1, 2], [1, 2, 3]]}, None)


def test_a_text_is_kept_beside_the_next_one(tokenizer):
    length = f"tokenize({str(tokenizer)!r}, 4)"
    ops = parse(f"caption('label')|{length}|keep_text('first')|caption('tags')|{length}", where="x")
    columns = {"label": ["red circle"], "tags": ["blue"]}
    found = ops.apply(columns, example_keys(0, np.zeros(1, int), np.zeros(1, int)))
    assert found["text_first_mask"].sum() > found["text_mask"].sum()
    assert not np.array_equal(found["text_first"], found["text"])
    with pytest.raises(BadInput, match="belongs after tokenize"):
        ops = parse("caption('label')|keep_text('first')", where="x")
        ops.apply(columns, example_keys(0, np.zeros(1, int), np.zeros(1, int)))


def test_entities_are_numbers_of_texts_and_minus_one_where_there_are_no_more():
    ops = parse("entities('tags', count=1000, max=3)", where="x")
    assert ops.reads == ("tags",)
    tags = [["cat", "dog"], [], ["dog", "cat", "fish", "bird"]]
    found = ops.apply({"tags": tags}, np.zeros(3, np.uint64))["entities"]
    assert found.dtype == np.int32 and found.shape == (3, 3)
    assert found[0].tolist() == [found[2, 1], found[2, 0], -1] and (found[1] == -1).all()
    assert found.max() < 1000 and len(set(found[2].tolist())) == 3
    with pytest.raises(BadInput, match="count=0"):
        parse("entities('tags', count=0, max=3)", where="x")
