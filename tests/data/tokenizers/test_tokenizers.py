import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, processors

from data.tokenizers import Tokenizer, find, load, train
from mm.config import BadInput

CORPUS = [
    "red car",
    "blue car",
    "smiling face with heart-eyes",
    "größe, éclair",
    "車 (vehicle)",
] * 3


@pytest.fixture(scope="module", params=["bpe", "wordpiece"])
def text(request):
    return train.train(CORPUS, 120, request.param)


words = st.text(st.sampled_from("redcarblue \t-,.!?éÉßẞ½ﬁ車İ\u0301[PADEOS] "), max_size=30)


@given(st.lists(words, max_size=5))
@settings(max_examples=200, deadline=None)
def test_word_by_word_gives_what_the_library_gives(texts):
    for model in ("bpe", "wordpiece"):
        tokenizer = _trained(model)
        assert tokenizer._words is not None
        ids, mask = tokenizer.encode(texts)
        for row, written in enumerate(texts):
            expected = tokenizer._tokenizer.encode(written).ids
            if len(expected) <= tokenizer.length:
                assert ids[row][mask[row]].tolist() == expected


@given(st.lists(words, max_size=5))
@settings(max_examples=100, deadline=None)
def test_words_are_those_of_the_library_and_number_every_token(texts):
    for model in ("bpe", "wordpiece"):
        tokenizer = _trained(model)
        found = tokenizer.words(texts)
        ids, mask = tokenizer.encode(texts)
        marks = ~mask | (ids == tokenizer._after[0])
        np.testing.assert_array_equal(found == -1, marks)
        for row, written in enumerate(texts):
            expected = tokenizer._tokenizer.encode(written, add_special_tokens=False).word_ids
            room = tokenizer.length - 1
            assert found[row][~marks[row]].tolist() == expected[:room]


_cache = {}


def _trained(model):
    if model not in _cache:
        _cache[model] = Tokenizer(train.train(CORPUS, 120, model), 40)
    return _cache[model]


def test_ids_are_padded_cut_and_ended(text):
    tokenizer = Tokenizer(text, 4)
    ids, mask = tokenizer.encode(["car", "smiling face with heart-eyes", ""])
    end = Library.from_str(text).token_to_id("[EOS]")
    assert ids.dtype == np.int32 and ids.shape == (3, 4)
    assert mask[1].all() and ids[1, -1] == end
    assert ids[2].tolist() == [end, 0, 0, 0] and mask[2].tolist() == [True, False, False, False]
    assert np.all((ids == 0) == ~mask)


def test_case_and_compatibility_forms_do_not_matter(text):
    ids, _ = Tokenizer(text, 8).encode(["RED Car", "red car", "ｒｅｄ car"])
    np.testing.assert_array_equal(ids[0], ids[1])
    np.testing.assert_array_equal(ids[0], ids[2])


def test_special_tokens_written_in_a_text_are_text(text):
    ids, mask = Tokenizer(text, 12).encode(["[PAD] [EOS]"])
    assert np.count_nonzero(ids[0][mask[0]] == 0) == 0
    assert np.count_nonzero(ids[0] == 2) == 1


def test_the_manifest_tells_one_tokenizer_from_another(text):
    one, other = Tokenizer(text, 8).manifest(), Tokenizer(train.train(["xyz"], 50), 8).manifest()
    assert one["lowercase"] is True and one["pad_id"] == 0 and one["ids_after"] == [2]
    assert one["sha256"] != other["sha256"]
    assert one["vocab_size"] == Library.from_str(text).get_vocab_size()


def test_a_tokenizer_that_joins_words_is_not_cached_by_word():
    foreign = Library(models.BPE(vocab={"[PAD]": 0, "a": 1, "Ġ": 2, "b": 3, "[EOS]": 4}, merges=[]))
    foreign.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    foreign.post_processor = processors.TemplateProcessing(
        single="[EOS] $A [EOS]", special_tokens=[("[EOS]", 4)]
    )
    tokenizer = Tokenizer(foreign.to_str(), 6)
    assert tokenizer._words is None
    ids, _ = tokenizer.encode(["a b", "b"])
    assert ids.tolist() == [[4, 1, 2, 3, 4, 0], [4, 3, 4, 0, 0, 0]]
    words = tokenizer.words(["a b", "b"])
    assert words.tolist() == [[-1, 0, 1, 1, -1, -1], [-1, 0, -1, -1, -1, -1]]


def test_pieces_of_a_word_have_its_number_and_punctuation_is_a_word(text):
    tokenizer = Tokenizer(text, 40)
    words = tokenizer.words(["red carred heart-eyes"])[0]
    pieces = tokenizer.encode(["carred"])[1].sum() - 1
    assert pieces > 1 and (words == 1).sum() == pieces
    assert words.max() == 4 and words[words >= 0].tolist() == sorted(words[words >= 0])


def test_words_of_a_file_that_splits_nothing_are_refused(text):
    spec = json.loads(text) | {"pre_tokenizer": None}
    with pytest.raises(BadInput, match="knows no words"):
        Tokenizer(json.dumps(spec), 8).words(["red"])


@pytest.mark.parametrize("model", ["bpe", "wordpiece"])
def test_training_twice_gives_the_same_file(model):
    """With many ties, all words being as frequent; in any order of the corpus."""
    letters = "abcdefghijklmnopqrstuvwxyzäöü"
    corpus = [
        letters[i] + letters[j] + letters[k] for i in range(9) for j in range(9) for k in range(9)
    ]
    files = {train.train(corpus if i % 2 else corpus[::-1], 300, model) for i in range(4)}
    assert len(files) == 1


def test_a_vocabulary_smaller_than_the_alphabet_is_refused():
    with pytest.raises(BadInput, match="vocab_size=5: the corpus has"):
        train.train(["abcdefghij"], 5)


def test_the_command_writes_beside_the_data_set_and_find_finds_it(tmp_path, capsys):
    output = train.path_beside("emoji", str(tmp_path), 60)
    source = "{'name': 'synthetic', 'num_examples': 30, 'image_size': 8}"
    args = [f"--source={source}", "--vocab_size=60", f"--output={output}"]
    assert train.main(args) == 0
    assert "from 30 examples" in capsys.readouterr().out
    assert find("emoji", str(tmp_path)) == output
    assert os.listdir(tmp_path / "emoji") == ["tokenizer-60.json"]  # nothing half-written is left
    before = open(output).read()
    assert train.main(args) == 0 and open(output).read() == before


def test_several_tokenizers_of_a_data_set_are_not_chosen_between(tmp_path):
    for size in (60, 70):
        train.write(train.path_beside("emoji", str(tmp_path), size), "{}")
    with pytest.raises(BadInput, match="there are several, give the path"):
        find("emoji", str(tmp_path))


def test_a_missing_one_names_the_command(tmp_path):
    with pytest.raises(BadInput, match="python -m data.tokenizers.train --dataset=emoji"):
        find("emoji", str(tmp_path))


@pytest.mark.parametrize("content", ["", "not json", "{}", '{"model": 1}'])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content):
    path = tmp_path / "t.json"
    path.write_text(content)
    with pytest.raises(BadInput, match="is no tokenizer.json"):
        load(str(path), 8)


@pytest.mark.parametrize(
    "args, message",
    [
        ([], "give one of --dataset and --source"),
        (["--source={'name': 'synthetic', 'num_examples': 3}"], "give --output"),
        (["--source=nonsense("], "is no literal mapping"),
        (
            ["--source={'name': 'synthetic', 'num_examples': 3}", "--fields=labl", "--output=/x"],
            "did you mean 'label'",
        ),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(args, message, capsys):
    assert train.main(args) == 2
    assert message in capsys.readouterr().err
