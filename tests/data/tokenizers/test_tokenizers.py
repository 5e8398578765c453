import concurrent.futures
import functools
import json
import os
import typing

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, processors

from data import files
from data.tokenizers import Settings, Tokenizer, clean, fetch, find, load, same_ids, train
from data.tokenizers.huggingface import with_settings
from mm.config import BadInput

CORPUS = [
    "red car",
    "blue car",
    "smiling face with heart-eyes",
    "größe, éclair",
    "車 (vehicle)",
] * 3


MODELS = typing.get_args(train.Model)


@pytest.fixture(scope="module", params=["bpe", "wordpiece"])
def text(request):
    return trained(request.param)


@pytest.fixture(scope="module", params=MODELS)
def any_text(request):
    return trained(request.param)


@functools.cache
def trained(model):
    return train.train(CORPUS, 120, model)


@functools.cache
def clip():
    merges = [("c", "a"), ("ca", "r</w>"), ("r", "e"), ("re", "d</w>"), ("'", "s</w>")]
    return fetch.clip(merges)


@functools.cache
def bert():
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcderü'車",
        *(f"##{c}" for c in "abcder"),
    ]
    return fetch.bert(pieces)


@functools.cache
def opened(kind, length, **settings):
    return Tokenizer(KINDS[kind](), length, Settings(**settings))


KINDS = {model: functools.partial(trained, model) for model in MODELS}
KINDS |= {"clip": clip, "bert": bert}


words = st.text(st.sampled_from("redcarblue \t-,.!?éÉßẞ½ﬁ車İ\u0301[PADEOS]' "), max_size=30)
LIBRARY = ("bpe", "wordpiece", "bert", "clip")


@functools.cache
def library(kind):
    """Hugging Face's own class for it, which encodes whole texts."""
    spec = json.loads(KINDS[kind]())
    if spec.pop("settings", {}).get("clean"):
        spec["normalizer"] = None
    found = Library.from_str(json.dumps(spec))
    found.encode_special_tokens = True
    return found


def prepared(kind, text):
    return {"clip": clean.clip, "bert": str.lower}.get(kind, str)(text)


@given(st.lists(words, max_size=5))
@settings(max_examples=200, deadline=None)
def test_word_by_word_gives_what_the_library_gives(texts):
    for kind in LIBRARY:
        tokenizer = opened(kind, 80)
        assert tokenizer._words is not None
        ids, mask = tokenizer.encode(texts)
        for row, written in enumerate(texts):
            expected = library(kind).encode(prepared(kind, written)).ids
            assert ids[row][mask[row]].tolist() == expected or len(expected) > 80


@given(st.lists(words, max_size=5))
@settings(max_examples=100, deadline=None)
def test_words_are_those_of_the_library(texts):
    for kind in LIBRARY:
        found = opened(kind, 40, eos="none", bos=False).words(texts)
        for row, written in enumerate(texts):
            whole = library(kind).encode(prepared(kind, written), add_special_tokens=False)
            assert found[row][found[row] >= 0].tolist() == whole.word_ids[:40]


hostile = st.text(
    st.one_of(
        st.characters(codec=None, exclude_categories=()),
        st.sampled_from("ab \t\n\0\u200d&;<>|\ud800\udc00\u2581\u2585"),
    ),
    max_size=40,
)


@given(st.lists(hostile, max_size=4))
@settings(max_examples=150, deadline=None)
def test_no_text_raises_and_what_comes_out_fits(texts):
    for kind in KINDS:
        for eos in ("keep", "cut", "none"):
            tokenizer = opened(kind, 12, eos=eos)
            ids, mask = tokenizer.encode(texts)
            found = tokenizer.words(texts)
            assert ids.shape == mask.shape == found.shape == (len(texts), 12), kind
            assert np.all((ids >= 0) & (ids < tokenizer.vocab_size))
            assert np.all(mask[:, :-1] >= mask[:, 1:]) and np.all(ids[~mask] == tokenizer.pad_id)
            marks = len(tokenizer._before)
            for row in range(len(texts)):
                numbers = found[row][found[row] >= 0]
                assert marks + len(numbers) <= mask[row].sum() <= marks + len(numbers) + 1
                assert np.all(found[row][marks : marks + len(numbers)] >= 0)
                assert not len(numbers) or numbers[0] == 0
                assert np.all(np.diff(numbers) >= 0) and np.all(found[row][~mask[row]] == -1)


@given(
    hostile.map(
        lambda text: text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    )
)
@settings(max_examples=200, deadline=None)
def test_sentencepiece_gives_what_its_library_gives(text):
    for model in ("sentencepiece_unigram", "sentencepiece_bpe"):
        tokenizer = opened(model, 99)
        expected = tokenizer._model._processor.encode(text, add_eos=True)
        assert tokenizer.encode([text])[0][0][: len(expected)].tolist() == expected


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_of_plain_texts_ftfy_and_unescape_change_nothing_but_ampersands(text):
    plain = text.replace("&", "+")
    whole = clean.html.unescape(clean.html.unescape(clean.ftfy.fix_text(plain)))
    assert clean.clip(plain) == " ".join(whole.split()).lower()


def test_ids_are_padded_cut_and_ended(text):
    tokenizer = Tokenizer(text, 4)
    ids, mask = tokenizer.encode(["car", "smiling face with heart-eyes", ""])
    end = Library.from_str(text).token_to_id("[EOS]")
    assert ids.dtype == np.int32 and ids.shape == (3, 4)
    assert mask[1].all() and ids[1, -1] == end
    assert ids[2].tolist() == [end, 0, 0, 0] and mask[2].tolist() == [True, False, False, False]
    assert np.all((ids == 0) == ~mask)


def test_case_and_compatibility_forms_do_not_matter(any_text):
    ids, _ = Tokenizer(any_text, 8).encode(["RED Car", "red car", "ｒｅｄ car"])
    np.testing.assert_array_equal(ids[0], ids[1])
    np.testing.assert_array_equal(ids[0], ids[2])


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_written_in_a_text_are_text(kind):
    tokenizer = Tokenizer(KINDS[kind](), 90, Settings(pad_id=0))
    marks = [*tokenizer._before, *tokenizer._after]
    ids, mask = tokenizer.encode(["[PAD] [EOS] </s><pad> [CLS] <|endoftext|> <end_of_text>"])
    found = ids[0][mask[0]].tolist()
    assert len(found) < 90 and tokenizer.encode(["[pad]"])[0][0, 0] in [*marks, *found]
    assert 0 not in found or kind == "clip"  # where it is an exclamation mark
    assert all(found.count(mark) == 1 for mark in marks)


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


@pytest.mark.parametrize("kind", ["wordpiece", "sentencepiece_bpe", "clip", "bert"])
def test_what_was_encoded_can_be_read_again(kind):
    texts = ["red car", "", "a red car", "ca ca reb"]
    tokenizer = opened(kind, 12)
    ids, _ = tokenizer.encode(texts)
    assert tokenizer.decode(ids) == texts
    ended = ids.copy()
    ended[0, tokenizer.manifest()["ids_before"] != [] : 4] = tokenizer.manifest()["ids_after"][0]
    assert tokenizer.decode(ended)[0] == ""  # whatever comes after the end mark


def test_tokens_that_do_not_say_where_words_end_cannot_be_read():
    with pytest.raises(BadInput, match="does not say where a word ends.*--model=sentencepiece_bpe"):
        opened("bpe", 12).decode(np.zeros((1, 12), np.int32))


def test_words_of_sentencepiece_stand_between_spaces():
    tokenizer = opened("sentencepiece_unigram", 40)
    words = tokenizer.words(["  red  heart-eyes, carred "])[0]
    pieces = tokenizer._model._processor.encode("red heart-eyes, carred", out_type=str)
    assert words.max() == 2 and (words >= 0).sum() == len(pieces)
    starts = [i for i in range(1, len(pieces)) if words[i] != words[i - 1]]
    assert starts == [i for i, piece in enumerate(pieces) if piece[0] == "▁" and i]


def test_words_of_a_file_that_splits_nothing_are_refused(text):
    spec = json.loads(text) | {"pre_tokenizer": None}
    with pytest.raises(BadInput, match="knows no words"):
        Tokenizer(json.dumps(spec), 8).words(["red"])


@pytest.mark.parametrize("model", MODELS)
def test_training_twice_gives_the_same_file(model):
    """With many ties, all words being as frequent; in any order of the corpus."""
    letters = "abcdefghijklmnopqrstuvwxyzäöü"
    corpus = [
        letters[i] + letters[j] + letters[k] for i in range(9) for j in range(9) for k in range(9)
    ]
    files = {train.train(corpus if i % 2 else corpus[::-1], 300, model) for i in range(4)}
    assert len(files) == 1


@pytest.mark.parametrize(
    "model, message",
    [("bpe", "the corpus has"), ("sentencepiece_bpe", "smaller than required_chars")],
)
def test_a_vocabulary_smaller_than_the_alphabet_is_refused(model, message):
    with pytest.raises(BadInput, match=f"vocab_size=5: .*{message}"):
        train.train(["abcdefghij"], 5, model)


@pytest.mark.parametrize("model", MODELS)
def test_texts_that_are_long_or_hold_odd_characters_are_learned_from(model):
    """Sentencepiece alone would leave out the first two."""
    corpus = ["abab " * 2000, "\u2585 cdcd", "a\ud800 efef", "\0 ghgh"] * 3
    tokenizer = Tokenizer(train.train(corpus, 80, model), 20)
    unknown = train.SPECIAL.index(train.UNK)
    assert unknown in tokenizer.encode(["中"])[0]
    ids, _ = tokenizer.encode(["abab", "cdcd", "efef", "ghgh"])
    assert unknown not in ids


@pytest.mark.parametrize("model", MODELS)
def test_lines_of_text_files_are_a_corpus(model, tmp_path, capsys):
    (tmp_path / "0.txt").write_text("red car\n\nblue car\n")
    (tmp_path / "1.txt").write_text("größe\n  \nred")
    output = str(tmp_path / "t.json")
    args = [f"--source={tmp_path}/{{0..1}}.txt", f"--output={output}", f"--model={model}"]
    assert train.main([*args, "--vocab_size=60"]) == 0
    assert "from 4 texts" in capsys.readouterr().out
    ids, _ = load(output, 8).encode(["red blue"])
    assert 1 not in ids and load(output, 8).vocab_size <= 60
    (tmp_path / "1.txt").write_bytes(b"\xff")
    assert train.main(args) == 2 and "1.txt: is no UTF-8" in capsys.readouterr().err


def test_the_command_writes_beside_the_data_set_and_find_finds_it(tmp_path, capsys):
    output = train.path_beside("emoji", str(tmp_path), 60)
    source = "{'name': 'synthetic', 'num_examples': 30, 'image_size': 8}"
    args = [f"--source={source}", "--vocab_size=60", f"--output={output}"]
    assert train.main(args) == 0
    assert "from 66 texts" in capsys.readouterr().out
    assert find("emoji", str(tmp_path)) == output
    assert os.listdir(tmp_path / "emoji") == ["tokenizer-60.json"]  # nothing half-written is left
    before = open(output).read()
    assert train.main(args) == 0 and open(output).read() == before


def test_several_tokenizers_of_a_data_set_are_not_chosen_between(tmp_path):
    for size in (60, 70):
        files.write(train.path_beside("emoji", str(tmp_path), size), b"{}")
    with pytest.raises(BadInput, match="there are several, give the path"):
        find("emoji", str(tmp_path))


def test_a_missing_one_names_the_command(tmp_path):
    with pytest.raises(BadInput, match="python -m data.tokenizers.train --dataset=emoji"):
        find("emoji", str(tmp_path))


LONG = "smiling face with heart-eyes and a red car"


def cut_and_whole(kind, length, **settings):
    """Ids without padding of a text that is cut to `length`, of it whole, and of a short one."""
    found = []
    for text, fits in ((LONG, length), (LONG, 200), ("red", length)):
        ids, mask = opened(kind, fits, **settings).encode([text])
        found.append(ids[0][mask[0]].tolist())
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_mark_of_a_cut_text_is_kept_or_cut_or_not_there(kind):
    bare = cut_and_whole(kind, 8, eos="none")
    (end,) = opened(kind, 8)._after
    assert end not in bare[1] and bare[0] == bare[1][:8]
    kept = cut_and_whole(kind, 8, eos="keep")
    assert kept == [[*bare[1][:7], end], [*bare[1], end], [*bare[2], end]]
    assert cut_and_whole(kind, 8) == kept
    gone = cut_and_whole(kind, 8, eos="cut")
    assert gone == [bare[1][:8], [*bare[1], end], [*bare[2], end]]


def test_a_text_that_just_fits_without_its_end_mark_loses_it_alone():
    bare = cut_and_whole("bpe", 200, eos="none")[1]
    tokenizer = Tokenizer(trained("bpe"), len(bare), Settings(eos="cut"))
    assert tokenizer.encode([LONG])[0][0].tolist() == bare
    assert tokenizer.cut == (1, 0, len(bare), 0)


@pytest.mark.parametrize("kind", ["clip", "bert"])
def test_the_start_mark_can_be_left_out(kind):
    (start,) = opened(kind, 8)._before
    with_mark, without = cut_and_whole(kind, 8)[1], cut_and_whole(kind, 8, bos=False)[1]
    assert with_mark == [start, *without]


def test_sentencepiece_has_the_start_mark_of_its_file_when_asked(tmp_path):
    model = str(tmp_path / "m")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=model, vocab_size=40, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    path = f"{model}.model"
    assert find(path, None) == path
    with pytest.raises(BadInput, match=r"m.model': has neither .* set pad_id"):
        load(path, 8)
    ids, mask = load(path, 9, Settings(bos=True, pad_id=2)).encode(["re"])
    assert ids[0, 0] == 1 and ids[0, mask.sum() - 1 :].tolist() == [2] * (10 - mask.sum())
    library = sentencepiece.SentencePieceProcessor(model_file=path)
    assert ids[0, : mask.sum()].tolist() == library.encode("re", add_bos=True, add_eos=True)


@pytest.mark.parametrize(
    "kind, settings, message",
    [
        ("bpe", dict(bos=True), "bos=True: the tokenizer has no start mark"),
        ("sentencepiece_bpe", dict(bos=True), "bos=True: the tokenizer has no start mark"),
        ("bpe", dict(pad_id=5000), "pad_id=5000: expected less than the"),
        ("sentencepiece_bpe", dict(clean="clip"), "clean='clip'"),
    ],
)
def test_settings_that_cannot_work_are_refused(kind, settings, message):
    with pytest.raises(BadInput, match=message):
        opened(kind, 8, **settings)


@pytest.mark.parametrize("model", MODELS)
def test_lowercase_comes_before_all_else(model):
    spec = json.loads(trained(model))
    if "normalizer" in spec:
        spec["normalizer"] = None
    ids, _ = Tokenizer(json.dumps(spec), 8, Settings(lowercase=True)).encode(["RED", "red"])
    assert ids[0].tolist() == ids[1].tolist()
    assert Tokenizer(json.dumps(spec), 8, Settings(lowercase=True)).lowercase


@pytest.mark.parametrize("kind", KINDS)
def test_the_json_carries_what_was_asked_for(kind):
    asked = Tokenizer(KINDS[kind](), 6, Settings(eos="cut", pad_id=3, lowercase=True))
    again = Tokenizer(asked.json, 6)
    assert again.manifest() == asked.manifest() and again.json == asked.json
    assert Tokenizer(asked.json, 6, Settings(pad_id=3)).json == asked.json
    assert asked.json != KINDS[kind]() == opened(kind, 6).json
    np.testing.assert_array_equal(asked.encode([LONG, "RED"])[0], again.encode([LONG, "RED"])[0])


def test_a_setting_and_the_same_in_the_file_are_one_tokenizer(text):
    asked = Tokenizer(text, 8, Settings(lowercase=True, pad_id=0, eos="keep"))
    spec = with_settings(json.loads(text), Settings(lowercase=True))
    inside = Tokenizer(json.dumps(spec, indent=2), 16).manifest()
    assert inside["sha256"] != asked.manifest()["sha256"] and same_ids(inside, asked.manifest())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [dict(eos="cut"), dict(pad_id=3)])
def test_another_setting_is_another_tokenizer(kind, change):
    one, other = opened(kind, 8), Tokenizer(KINDS[kind](), 8, Settings(**change))
    assert same_ids(one.manifest(), Tokenizer(one.json, 9).manifest())
    assert not same_ids(one.manifest(), other.manifest())


def test_what_is_not_known_of_a_tokenizer_is_not_held_against_it():
    assert same_ids({}, {"sha256": "a"}) and same_ids({"sha256": "a"}, {"ids_sha256": "b"})
    assert not same_ids({"sha256": "a"}, {"sha256": "b", "ids_sha256": "c"})


def test_settings_in_a_file_are_checked(text):
    spec = json.loads(text) | {"settings": {"eso": "cut"}}
    with pytest.raises(BadInput, match="settings: unknown key 'eso'; did you mean 'eos'"):
        Tokenizer(json.dumps(spec), 8)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cut_is_counted_from_all_threads(kind):
    whole = len(cut_and_whole(kind, 200, eos="none", bos=False)[1])
    tokenizer = Tokenizer(KINDS[kind](), 7, Settings(eos="none", bos=False))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: tokenizer.encode([LONG, ""]), range(50)))
    cut = tokenizer.cut
    assert cut == (100, 50, 50 * whole, 50 * (whole - 7))
    assert cut.share_of_texts == 0.5 and cut.share_of_tokens == (whole - 7) / whole


def test_threads_that_learn_words_at_once_do_not_disturb_each_other(monkeypatch):
    monkeypatch.setattr("data.tokenizers._MAX_CACHED_WORDS", 3000)
    tokenizer, alone = Tokenizer(trained("bpe"), 60), Tokenizer(trained("bpe"), 60)
    chunks = [[f"red{i * j} car{i + j} {'x' * 90}{i}" for j in range(20)] for i in range(400)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda chunk: tokenizer.encode(chunk)[0], chunks))
    for ids, chunk in zip(found, chunks, strict=True):
        np.testing.assert_array_equal(ids, alone.encode(chunk)[0])


@pytest.mark.parametrize("kind", LIBRARY)
def test_of_a_very_long_text_only_the_start_is_encoded(kind):
    tokenizer, whole = Tokenizer(KINDS[kind](), 10), opened(kind, 5000)
    text = " ".join(f"red{i}" for i in range(1000))
    head = tokenizer._heads([text])[0]
    assert len(head) <= 320 and text.startswith(f"{head} ")
    np.testing.assert_array_equal(
        tokenizer.encode([text])[0][0][:9], whole.encode([text])[0][0][:9]
    )
    np.testing.assert_array_equal(tokenizer.words([text])[0][:9], whole.words([text])[0][:9])
    assert tokenizer.cut.tokens == pytest.approx(whole.cut.tokens, rel=0.2)


@pytest.mark.parametrize("kind", LIBRARY)
@pytest.mark.parametrize("text", ["a" * 5000, " " * 5000 + "red car", "\t" * 5000 + " red"])
def test_a_long_text_of_few_tokens_is_encoded_whole(kind, text):
    ids, mask = opened(kind, 10).encode([text])
    whole, there = opened(kind, 9000).encode([text])
    assert ids[0][:9].tolist() == whole[0][:9].tolist()
    assert there.sum() > 10 or mask.sum() == there.sum()


def test_pairs_of_surrogates_are_one_character_and_lone_ones_none():
    for kind in KINDS:
        one, other = opened(kind, 30).encode(["a\ud83d\ude00b", "a😀b"])[0].tolist()
        assert one == other
        one, other = opened(kind, 30).encode(["a\ud83db\ude00", "a\ufffdb\ufffd"])[0].tolist()
        assert one == other


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\0" * 100])
def test_a_file_that_is_no_sentencepiece_model_is_refused(tmp_path, content):
    path = tmp_path / "t.model"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="t.model': is no sentencepiece model"):
        load(str(path), 8)


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
        (["--source={nonsense", "--output=/x"], "is no literal mapping"),
        (["--source=/nowhere.txt", "--output=/x"], "/nowhere.txt: cannot be read"),
        (["--source=a.txt", "--split=train", "--output=/x"], "--split=train: goes with --dataset"),
        (
            ["--source={'name': 'synthetic', 'num_examples': 3}", "--fields=labl", "--output=/x"],
            "did you mean 'label'",
        ),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(args, message, capsys):
    assert train.main(args) == 2
    assert message in capsys.readouterr().err


def test_a_tokenizer_is_trained_on_a_column_of_a_table(tmp_path, capsys):
    (tmp_path / "pairs.csv").write_text("file,title\na.png,red circle\nb.png,blue square\n")
    flags = [f"--source={tmp_path}/pairs.csv", f"--output={tmp_path}/t.json"]
    assert train.main([*flags, "--fields=title", "--vocab_size=40"]) == 0
    assert "from 2 texts" in capsys.readouterr().out
    assert not {"f", "p", ","} & set(
        json.loads((tmp_path / "t.json").read_text())["model"]["vocab"]
    )
    assert train.main([*flags, "--fields=titel"]) == 2
    assert "no text field 'titel'; did you mean 'title'?" in capsys.readouterr().err
