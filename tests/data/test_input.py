import pytest

from data.input import check_tokenizer, manifest, open_input
from mm.config import BadInput

SOURCE = dict(name="synthetic", num_examples=4, image_size=16)
IMAGE = "decode|resize(8)|value_range(-1, 1)"


def opened(tokenizer):
    text = f'caption("label")|tokenize("{tokenizer}", 8)'
    return open_input(dict(source=SOURCE, preprocess=f"{IMAGE}|{text}", prefetch=3), "config.input")


def test_opens_the_source_and_keeps_the_other_keys(tokenizer):
    source, preprocess, rest = opened(tokenizer)
    assert len(source) == 4 and rest == {"prefetch": 3}
    assert set(preprocess.reads) == {"image", "label"}


def test_knows_where_pictures_and_captions_come_from(tokenizer):
    preprocess = opened(tokenizer).preprocess
    assert preprocess.without("tokenize").names == preprocess.names[:-1]
    assert [preprocess.field_of(op) for op in ("decode", "caption", "group")] == [
        "image",
        "label",
        None,
    ]


@pytest.mark.parametrize(
    "spec, message",
    [
        (dict(preprocess=IMAGE), "config.input: has no 'source'"),
        (dict(source=SOURCE), "config.input: has no 'preprocess'"),
        (dict(source=SOURCE, preprocess='decode("photo")'), "no field 'photo'"),
        (dict(source=dict(name="tfdss"), preprocess=IMAGE), "did you mean 'tfds'"),
    ],
)
def test_an_incomplete_group_is_refused(spec, message):
    with pytest.raises(BadInput, match=message):
        open_input(spec, "config.input")


def test_the_manifest_holds_ops_tokenizer_and_length(tokenizer):
    found = manifest(*opened(tokenizer)[:2])
    assert found["preprocess"].startswith("decode|resize(8)")
    assert found["tokenizer"]["length"] == 8 and found["num_examples"] == len(opened(tokenizer)[0])
    assert found["tokenizer_json"] == tokenizer.read_text()


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(tokenizer):
    with pytest.raises(BadInput, match="vocab_size=10; set it to at least"):
        check_tokenizer(opened(tokenizer).preprocess, {"text": {"vocab_size": 10}})


def test_weights_of_another_tokenizer_are_refused(tokenizer):
    source, preprocess, _ = opened(tokenizer)
    check_tokenizer(preprocess, {"text": {"vocab_size": 64}}, manifest(source, preprocess))
    with pytest.raises(BadInput, match="was trained with another tokenizer"):
        check_tokenizer(
            preprocess, {"text": {"vocab_size": 64}}, {"tokenizer": {"sha256": "0" * 64}}
        )
