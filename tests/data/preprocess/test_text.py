import collections
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.preprocess import markup
from data.preprocess.draws import Draws, example_keys
from data.preprocess.parse import parse
from data.sources import BadExample
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


def texts(string, epoch=0, **columns):
    """What ops that write no numbers make of the columns."""
    (count,) = {len(column) for column in columns.values()}
    keys = example_keys(0, np.arange(count), np.full(count, epoch))
    for i, op in enumerate(parse(string, where="x").ops):
        columns = op.apply(columns, Draws(keys, f"op {i}"))
    return columns["text"]


def test_each_of_several_captions_is_chosen_as_often():
    found = texts("choose('captions')", captions=[["a", "b", "c", "d"]] * 4000)
    counts = collections.Counter(found)
    assert counts.keys() == set("abcd") and all(abs(n - 1000) < 110 for n in counts.values())


def test_choose_draws_by_example_and_epoch_and_not_by_neighbours():
    rows = [[f"{i} {j}" for j in range(1 + i % 7)] for i in range(200)]
    first, second = texts("choose('c')", c=rows), texts("choose('c')", epoch=1, c=rows)
    assert first == texts("choose('c')", c=rows) != second
    assert first[:50] == texts("choose('c')", c=rows[:50])
    assert all(text in row for text, row in zip(first, rows, strict=True))


@pytest.mark.parametrize("text", ["", "  ", "\t\n\u3000"])
@pytest.mark.parametrize(
    "string", ["caption('c')", "choose('list')", "choose('none')", "caption('c', 'none')"]
)
def test_a_blank_caption_is_a_bad_example_unless_it_may_be(string, text):
    columns = dict(c=["red", text], list=[["red"], [text]], none=[["red"], []])
    with pytest.raises(BadExample, match="the text is blank") as error:
        texts(string, **columns)
    assert error.value.reason == "text is empty"
    allowed = texts(string.replace(")", ", empty=True)"), **columns)
    assert "red" in allowed[0] and allowed[1].strip() == ""


@pytest.mark.parametrize("string", ["caption('c'{})", "choose('list'{})"])
def test_a_caption_that_is_too_long_is_a_bad_example(string):
    columns = dict(c=["x" * 2**20], list=[["x" * 2**20]])
    assert len(texts(string.format(""), **columns)[0]) == 2**20
    with pytest.raises(BadExample, match="1,048,576 characters, expected at most 9") as error:
        texts(string.format(", max_characters=9"), **columns)
    assert error.value.reason == "text is too long"
    columns = dict(c=["x" * (2**20 + 1)], list=[["x" * (2**20 + 1)]])
    with pytest.raises(BadExample, match="at most 1,048,576"):
        texts(string.format(""), **columns)


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\ud83d\ude00"])
def test_a_caption_that_is_no_unicode_is_a_bad_example(text):
    with pytest.raises(BadExample, match="half a surrogate pair") as error:
        texts("caption('c')", c=["fine", text])
    assert error.value.reason == "text is no Unicode"


def test_lists_and_single_texts_are_not_taken_for_each_other():
    with pytest.raises(BadInput, match="found list, expected a text; choose takes lists"):
        texts("caption('c')", c=[["a", "b"]])
    with pytest.raises(BadInput, match="'c' is one text, .* use caption"):
        texts("choose('c')", c=["ab"])


@pytest.mark.parametrize(
    "how, text, expected",
    [
        ("lowercase=True", "RED Größe ΟΔΟΣ", "red größe οδος"),
        ("nfkc=True", "ﬁne ｗｉｄｅ ①", "fine wide 1"),
        ("whitespace=True", " a\t b\n\u3000c ", "a b c"),
        ("unescape=True", "AT&amp;T &eacute; &#x41;", "AT&T é A"),
        ("punctuation=False", "a_b, it's (red)! “x”", "a b its red “x”"),
        ("strip_html=True", "<p>A <b>bo</b>ld <a href='x>y'>li</a>nk</p>", " A bold link "),
        ("strip_html=True", "a<br/>b<!-- c -->d<script>if (a<b) e</script>f", "a bd  f"),
        ("strip_html=True", "1 < 2 <3 AT&T &amp; &lt;b&gt;", "1 < 2 <3 AT&T & <b>"),
        ("strip_html=True, whitespace=True", "<![CDATA[x]]>a<![if y]>b<!DOCTYPE c>", "ab"),
        ("strip_html=True, lowercase=True, whitespace=True", "<B>RED</B> <i>Car</i>", "red car"),
    ],
)
def test_normalize_text_does_what_it_is_told(how, text, expected):
    assert texts(f"caption('c')|normalize_text({how})", c=[text]) == [expected]


def test_normalize_text_of_nothing_is_a_mistake():
    with pytest.raises(BadInput, match="changes nothing; set one"):
        parse("normalize_text", where="x")


def test_a_text_that_nothing_is_left_of_is_a_bad_example():
    with pytest.raises(BadExample) as error:
        texts("caption('c')|normalize_text(strip_html=True)", c=["<img src='x'>"])
    assert error.value.reason == "text is empty"
    assert texts("caption('c')|normalize_text(strip_html=True, empty=True)", c=["<img>"]) == [" "]


pieces = st.sampled_from(
    "< <! <![ ]]> --> <!-- </ > a = ' \" & &# ; ? / [ <script> </script".split(" ")
)


@given(st.lists(pieces, max_size=12).map("".join))
@settings(max_examples=300, deadline=None)
def test_no_markup_raises(text):
    assert isinstance(markup.strip(text), str)


@given(st.text())
def test_a_text_without_markup_stays_as_it_is(text):
    plain = text.replace("<", "").replace("&", "")
    assert markup.strip(plain) == plain


def test_markup_that_would_take_hours_is_a_bad_example():
    begin = time.process_time()
    with pytest.raises(BadExample, match="tags in 999,999 characters") as error:
        markup.strip("<a " * 333_333)
    assert error.value.reason == "text is all markup" and time.process_time() - begin < 1
    assert markup.strip("<b>x</b> " * 1000) == "x " * 1000


def test_a_template_is_put_around_the_text_and_drawn_of_several():
    string = "caption('c')|template('a photo of a {}.')"
    assert texts(string, c=["{} {0}"]) == ["a photo of a {} {0}."]
    string = "caption('c')|template(('a {}', 'one {}', '{}'))"
    counts = collections.Counter(texts(string, c=["cat"] * 3000))
    assert counts.keys() == {"a cat", "one cat", "cat"}
    assert all(abs(count - 1000) < 120 for count in counts.values())
    assert texts(string, c=["cat"] * 50) != texts(string, epoch=1, c=["cat"] * 50)


@pytest.mark.parametrize("templates", ["'a photo'", "('a {}', '{} {}')", "()"])
def test_a_template_without_one_place_is_refused(templates):
    with pytest.raises(BadInput, match="expected {} once in each"):
        parse(f"template({templates})", where="x")


@pytest.mark.parametrize("op", ["template('{}')", "normalize_text(nfkc=True)", "tokenize('{}', 5)"])
def test_an_op_on_text_before_there_is_one_is_refused(op, tokenizer):
    ops = parse(op.replace("'{}', 5", f"{str(tokenizer)!r}, 5"), where="x")
    with pytest.raises(BadInput, match="belongs after the op that writes the text"):
        ops.apply({"c": ["a"]}, np.zeros(1, np.uint64))


def test_tokenize_passes_on_what_is_said_of_marks_and_padding(tokenizer):
    def ids(more=""):
        ops = parse(f"caption('c')|tokenize({str(tokenizer)!r}, 3{more})", where="x")
        found = ops.apply({"c": ["red circle and square", "RED"]}, np.zeros(2, np.uint64))
        return found["text"].tolist(), ops.tokenizer

    (cut, short), _ = ids()
    assert cut[-1] == 2 and short[1:] == [2, 0]
    assert ids(", eos='cut'")[0][0][:2] == cut[:2] and ids(", eos='cut'")[0][0][2] != 2
    assert ids(", eos='none', pad_id=5")[0][1][1:] == [5, 5]
    assert ids(", lowercase=True")[1].manifest()["lowercase"]
    assert ids()[1].cut.texts_cut == 1
    for wrong in (", eos='some'", ", bos=True", ", pad_id=-1", ", clean='soap'"):
        with pytest.raises(BadInput, match=wrong[2:].split("=")[0]):
            ids(wrong)


def test_tokenize_writes_ids_and_mask(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(train.train(["red car", "blue car"], 100))
    ops = parse(f"caption('label', empty=True)|tokenize('{path}', 5)", where="x")
    batch = ops.apply({"label": ["Red CAR", ""]}, np.zeros(2, np.uint64))
    assert batch["text"].shape == (2, 5) and batch["text"].dtype == np.int32
    assert batch["text_mask"].tolist() == [[True] * 3 + [False] * 2, [True] + [False] * 4]
    assert ops.tokenizer.manifest()["length"] == 5


def test_tokenize_writes_words_when_asked(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(train.train(["red car", "blue car"], 100))

    def batch(more):
        ops = parse(f"caption('label', empty=True)|tokenize('{path}', 5{more})", where="x")
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
    one = parse("numbers('age', 1)", where="x").ops[0].apply({"age": [7, 8.5]}, None)["age"]
    assert one.tolist() == [[7], [8.5]]
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
