"""Text to token ids by Hugging Face `tokenizers`. All that matters is inside tokenizer.json.

Normalization (lowercase, NFKC), the split into words and the end mark are parts of that file, so a
checkpoint that carries it and the length reproduces the ids.
"""

import hashlib
import itertools
import json
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from etils import epath
from jaxtyping import Bool, Int32

from mm.config import BadInput

# With these, a space always ends a token, and what stands left of it changes nothing on the right.
_WORD_SPLITTERS = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
_WORD_NORMALIZERS = ("NFC", "NFKC", "NFD", "NFKD", "Lowercase")
_MAX_CACHED_WORDS = 1 << 20


class Tokenizer:
    """tokenizer.json with a length. `encode` may be called from several threads."""

    def __init__(self, text: str, length: int):
        spec = json.loads(text)
        self.json, self.length = text, length
        self._tokenizer = tokenizers.Tokenizer.from_str(text)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # "[PAD]" written in a caption is text
        self.vocab_size = self._tokenizer.get_vocab_size()
        self.pad_id = _pad_id(spec, self._tokenizer)
        self._before, self._after = _marks(self._tokenizer)
        if length <= len(self._before) + len(self._after):
            raise BadInput(f"length={length}: leaves no room for a token beside the marks")
        self._knows_words = spec.get("pre_tokenizer") is not None
        self._words: dict[str, _Tokens] | None = {} if _splits_at_spaces(spec) else None
        normalizers = _normalizers(spec)
        self.lowercase = any(
            n["type"] == "Lowercase" or (n["type"] == "BertNormalizer" and n.get("lowercase"))
            for n in normalizers
        )

    def encode(self, texts: list[str]) -> tuple[Int32[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """Returns (ids, mask), padded or cut on the right to `length`; end marks are never cut."""
        lines = [[t for ids, _ in line for t in ids] for line in self._tokens(texts)]
        return self._padded(lines, self._before, self._after, self.pad_id)

    def words(self, texts: list[str]) -> Int32[np.ndarray, "b l"]:
        """The number in its text of the word that each token of `encode` is a part of, from 0.

        -1 for marks and padding. Words are what the file's pre-tokenizer splits a text into: "it's"
        may be three. Raises BadInput for a file without one.
        """
        if not self._knows_words:
            raise BadInput("the tokenizer has no pre_tokenizer, so it knows no words; use another")
        lines = []
        for parts in self._tokens(texts):
            line, first = [], 0
            for _, words in parts:
                line += [first + word for word in words]
                first = line[-1] + 1 if words else first
            lines.append(line)
        return self._padded(lines, [-1] * len(self._before), [-1] * len(self._after), -1)[0]

    def _padded(
        self, lines: list[list[int]], before: list[int], after: list[int], padding: int
    ) -> tuple[Int32[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """Cut so that marks fit before and after, then filled up; and what is no padding."""
        room = self.length - len(before) - len(after)
        lines = [[*before, *line[:room], *after] for line in lines]
        lengths = np.array([len(line) for line in lines], int)
        found = np.full((len(lines), self.length), padding, np.int32)
        there = np.arange(self.length) < lengths[:, None]
        found[there] = np.fromiter(itertools.chain.from_iterable(lines), np.int32, lengths.sum())
        return found, there

    def manifest(self) -> dict[str, Any]:
        """What a checkpoint says about it, beside the file itself."""
        return {
            "sha256": hashlib.sha256(self.json.encode()).hexdigest(),
            "vocab_size": self.vocab_size,
            "length": self.length,
            "lowercase": self.lowercase,
            "pad_id": self.pad_id,
            "ids_before": self._before,
            "ids_after": self._after,
            "truncation": "right, keeping the marks",
        }

    def _tokens(self, texts: list[str]) -> list[list["_Tokens"]]:
        """The parts of each text that are encoded alone, without marks."""
        if self._words is None:
            return [[tokens] for tokens in self._encode(texts)]
        # 5 us a caption, where the library's own call takes 30: captions are made of few words.
        words = self._words
        split = [text.split(" ") for text in texts]
        new = {word for line in split for word in line} - words.keys()
        if new:
            if len(words) > _MAX_CACHED_WORDS:
                words = self._words = {}
                new = {word for line in split for word in line}
            found = sorted(new)
            words.update(zip(found, self._encode(found), strict=True))
        return [[words[word] for word in line] for line in split]

    def _encode(self, texts: list[str]) -> list["_Tokens"]:
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [_Tokens(e.ids, e.word_ids) for e in encodings]


class _Tokens(NamedTuple):
    ids: list[int]
    words: list[int]  # the number of each token's word


def load(path: str, length: int) -> Tokenizer:
    """Reads a tokenizer.json; raises BadInput when it is not there or is none."""
    try:
        text = epath.Path(path).read_text()
    except OSError as error:
        raise BadInput(
            f"tokenizer {path!r}: cannot be read ({error}); train one with "
            "`python -m data.tokenizers.train`"
        ) from error
    try:
        return Tokenizer(text, length)
    except BadInput as error:
        raise BadInput(f"tokenizer {path!r}: {error}") from error
    except Exception as error:  # the library raises bare Exceptions
        raise BadInput(f"tokenizer {path!r}: is no tokenizer.json ({error})") from error


def find(name: str, data_dir: str | None) -> str:
    """The path of a tokenizer: `name` itself if it ends in .json, else that of a data set.

    Tokenizers are trained when a data set is prepared, not when training starts: hosts of a pod
    often see the data read-only, and would else race to write the same file. It lies beside its
    data set, `<data_dir>/<name>/tokenizer-<vocabulary>.json`; where there are several, the path
    must be given.
    """
    if name.endswith(".json"):
        return name
    if data_dir is None:
        raise BadInput(f"tokenizer {name!r}: set data_dir, or give the path of a tokenizer.json")
    folder = epath.Path(data_dir).expanduser() / name
    found = sorted(str(path) for path in folder.glob("tokenizer-*.json"))
    if len(found) == 1:
        return found[0]
    if found:
        raise BadInput(f"tokenizer {name!r}: there are several, give the path of one: {found}")
    raise BadInput(
        f"tokenizer {name!r}: no tokenizer-*.json in {folder}; train one with `python -m "
        f"data.tokenizers.train --dataset={name} --data_dir={data_dir}`"
    )


def _pad_id(spec: dict, tokenizer: tokenizers.Tokenizer) -> int:
    if spec.get("padding"):
        return spec["padding"]["pad_id"]
    for token in ("[PAD]", "<pad>"):
        if tokenizer.token_to_id(token) is not None:
            return tokenizer.token_to_id(token)
    raise BadInput("has neither a padding section nor a token [PAD] or <pad>")


def _marks(tokenizer: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the file's post-processor puts before and after a text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a").ids
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    return full[:start], full[start + len(bare) :]


def _normalizers(spec: dict) -> list[dict]:
    normalizer = spec.get("normalizer") or {"type": "Sequence", "normalizers": []}
    return normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]


def _splits_at_spaces(spec: dict) -> bool:
    """Whether the ids of a text are those of its words, one after the other."""
    splitter = (spec.get("pre_tokenizer") or {}).get("type")
    plain = all(n["type"] in _WORD_NORMALIZERS for n in _normalizers(spec))
    special = all(token["special"] for token in spec.get("added_tokens", []))
    return splitter in _WORD_SPLITTERS and plain and special
