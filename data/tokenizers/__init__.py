"""Text to token ids: Hugging Face's tokenizer.json and sentencepiece's .model behind one class.

All that matters is in one JSON text that travels with checkpoints: a tokenizer.json, or the bytes
of a .model in base64, with the `settings` that were asked for. With the length it gives the ids.
"""

import base64
import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Int32

from data import files
from mm import registry
from mm.config import BadInput, Count

DATA_DIR = ".data"  # where our commands keep data sets, if nobody says otherwise
FETCHED = ("bert", "clip")  # by data.tokenizers.fetch
_MAX_CACHED_WORDS = 1 << 17  # 70 MB for each tokenizer
_LONGEST_CACHED_WORD = 64  # characters
_LONG = 32  # characters a token: of a text with more, its start is tried first


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be said of a tokenizer beside its file; None: as the file has it.

    eos: of a text that is too long, the end mark is kept, "keep", or cut off with the rest, "cut";
    "none": there is no end mark. bos: whether there is a start mark. pad_id: what fills up.
    lowercase: by Python's str.lower, before all that the file does. clean: "clip" is open_clip's
    cleaning of texts, in place of the file's normalizer (`data.tokenizers.clean`).
    """

    eos: Literal["keep", "cut", "none"] | None = None
    bos: bool | None = None
    pad_id: Count | None = None
    lowercase: bool = False
    clean: Literal["clip"] | None = None


class Tokens(NamedTuple):
    ids: list[int]
    words: list[int]  # the number of each token's word


class Model(Protocol):
    """Text to tokens without marks. `encode` is called from several threads at once.

    before, after: the marks that the file puts around a text; bos, eos: those it could. by_word:
    whether a text's tokens are those of its parts between spaces, one part after the other. spells:
    whether tokens tell where words end.
    """

    vocab_size: int
    pad_id: int | None
    before: list[int]
    after: list[int]
    bos: list[int]
    eos: list[int]
    lowercase: bool
    knows_words: bool
    by_word: bool
    spells: bool

    def encode(self, texts: list[str], words: bool) -> list[Tokens]:
        """`words` of the tokens are left empty unless they are wanted."""
        ...

    def decode(self, lines: list[list[int]]) -> list[str]:
        """The texts of tokens without marks, if it `spells`."""
        ...


class Cut(NamedTuple):
    """How many texts were encoded and cut, and how many tokens, not counting marks.

    Of a text that was cut at a small part of its length, the tokens are an estimate.
    """

    texts: int = 0
    texts_cut: int = 0
    tokens: int = 0
    tokens_cut: int = 0

    @property
    def share_of_texts(self) -> float:
        return self.texts_cut / max(self.texts, 1)

    @property
    def share_of_tokens(self) -> float:
        return self.tokens_cut / max(self.tokens, 1)


class Tokenizer:
    """A tokenizer's JSON with a length. `encode` may be called from several threads."""

    def __init__(self, text: str, length: int, settings: Settings | None = None):
        spec = _parsed(text)
        saved = spec.pop("settings", {})
        default = dataclasses.asdict(Settings())
        asked = dataclasses.asdict(settings or Settings()).items()
        chosen = saved | {key: value for key, value in asked if value != default[key]}
        settings = Settings(**registry.check(Settings, chosen, "settings"))
        self.json = text if chosen == saved else json.dumps(spec | {"settings": chosen})
        self.length = length
        self._model = _model(spec, settings)
        self._clean = _cleaning(settings)
        self._before, self._after, self._eos = _marks(self._model, settings)
        self.vocab_size = self._model.vocab_size
        self.pad_id = _pad_id(self._model, settings)
        kept = len(self._before) + len(self._after) * (self._eos == "keep")
        if length <= kept:
            raise BadInput(f"length={length}: leaves no room for a token beside the marks")
        self._room = length - kept
        self.lowercase = bool(settings.lowercase or settings.clean or self._model.lowercase)
        self._words: dict[str, Tokens] | None = {} if self._model.by_word else None
        self._cut, self._lock = Cut(), threading.Lock()

    def encode(self, texts: list[str]) -> tuple[Int32[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """Returns (ids, mask), padded or cut on the right to `length`; see `Settings.eos`.

        No text raises; what is no Unicode (halves of surrogate pairs) is taken for U+FFFD.
        """
        texts = self._cleaned(texts)
        heads = self._heads(texts)
        lines = [[t for ids, _ in line for t in ids] for line in self._tokens(heads)]
        self._count(texts, heads, lines)
        return self._padded(lines, self._before, self._after, self.pad_id)

    def words(self, texts: list[str]) -> Int32[np.ndarray, "b l"]:
        """The number in its text of the word that each token of `encode` is a part of, from 0.

        -1 for marks and padding. Words are what the file splits a text into: "it's" may be three.
        Raises BadInput for a file without a pre-tokenizer.
        """
        if not self._model.knows_words:
            raise BadInput("the tokenizer has no pre_tokenizer, so it knows no words; use another")
        lines = []
        for parts in self._tokens(self._heads(self._cleaned(texts)), words=True):
            line, first = [], 0
            for _, words in parts:
                line += [first + word for word in words]
                first = line[-1] + 1 if words else first
            lines.append(line)
        return self._padded(lines, [-1] * len(self._before), [-1] * len(self._after), -1)[0]

    def check_spells(self) -> None:
        """Raises BadInput where `decode` cannot tell "gro" "up" from "group"."""
        if not self._model.spells:
            raise BadInput(
                "the tokenizer does not say where a word ends, so that what is written cannot be "
                "read; train one with `python -m data.tokenizers.train --model=sentencepiece_bpe`"
            )

    def decode(self, ids: Int32[np.ndarray, "b l"]) -> list[str]:
        """The texts of tokens up to an end mark, without marks and padding; see `check_spells`."""
        self.check_spells()
        marks, lines = {*self._model.bos, *self._before, self.pad_id}, []
        for row in ids.tolist():
            end = next((i for i, token in enumerate(row) if token in self._model.eos), len(row))
            lines.append([token for token in row[:end] if token not in marks])
        return [" ".join(text.split()) for text in self._model.decode(lines)]

    @property
    def cut(self) -> Cut:
        """What `encode` has cut so far."""
        return self._cut

    def manifest(self) -> dict[str, Any]:
        """What a checkpoint says about it, beside the file itself."""
        return {
            "sha256": hashlib.sha256(self.json.encode()).hexdigest(),
            "ids_sha256": self._ids_sha256,
            "vocab_size": self.vocab_size,
            "length": self.length,
            "lowercase": self.lowercase,
            "pad_id": self.pad_id,
            "ids_before": self._before,
            "ids_after": self._after,
            "truncation": "right, marks too" if self._eos == "cut" else "right, keeping the marks",
        }

    @functools.cached_property
    def _ids_sha256(self) -> str:
        """Of what decides the ids: the same whether settings are beside the file or in it."""
        spec = _parsed(self.json)
        settings = Settings(**spec.pop("settings", {}))
        if "sentencepiece" in spec:
            rules = spec | {"lowercase": settings.lowercase}
        else:
            from data.tokenizers.huggingface import rules_of, with_settings

            rules = rules_of(with_settings(spec, settings))
        marks = self._before, self._after, self._eos, self.pad_id
        return hashlib.sha256(json.dumps([rules, marks], sort_keys=True).encode()).hexdigest()

    def _padded(
        self, lines: list[list[int]], before: list[int], after: list[int], padding: int
    ) -> tuple[Int32[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """Cut so that the marks that are kept fit, then filled up; and what is no padding."""
        lines = [[*before, *line[: self._room], *after][: self.length] for line in lines]
        lengths = np.array([len(line) for line in lines], int)
        found = np.full((len(lines), self.length), padding, np.int32)
        there = np.arange(self.length) < lengths[:, None]
        found[there] = np.fromiter(itertools.chain.from_iterable(lines), np.int32, lengths.sum())
        return found, there

    def _count(self, texts: list[str], heads: list[str], lines: list[list[int]]) -> None:
        counts = [len(line) for line in lines]
        for i, (text, head) in enumerate(zip(texts, heads, strict=True)):
            if len(head) < len(text):
                counts[i] = round(counts[i] * len(text) / len(head))
        over = [count - self._room for count in counts if count > self._room]
        with self._lock:
            now = self._cut
            self._cut = Cut(
                now.texts + len(texts),
                now.texts_cut + len(over),
                now.tokens + sum(counts),
                now.tokens_cut + sum(over),
            )

    def _cleaned(self, texts: list[str]) -> list[str]:
        try:
            "".join(texts).encode()
        except UnicodeEncodeError:
            texts = [well_formed(text) for text in texts]
        return texts if self._clean is None else [self._clean(text) for text in texts]

    def _heads(self, texts: list[str]) -> list[str]:
        """Of very long texts the start, up to a space, where that alone gives too many tokens."""
        longest = _LONG * self.length
        if self._words is None:
            return texts
        return [text if len(text) <= longest else self._head(text, longest) for text in texts]

    def _head(self, text: str, longest: int) -> str:
        head = text[: max(text.rfind(" ", 0, longest), 0)]
        tokens = sum(len(ids) for ids, _ in self._tokens([head])[0])
        return head if tokens > self._room else text

    def _tokens(self, texts: list[str], words: bool = False) -> list[list[Tokens]]:
        """The parts of each text that are encoded alone, without marks."""
        if self._words is None:
            return [[tokens] for tokens in self._model.encode(texts, words)]
        # 5 us a caption, where the library's own call takes 30: captions are made of few words.
        cache = self._words
        split = [text.split(" ") for text in texts]
        new = {word for line in split for word in line if word not in cache}
        if not new:
            return [[cache[word] for word in line] for line in split]
        if len(cache) > _MAX_CACHED_WORDS:
            cache = self._words = {}
            new = {word for line in split for word in line}
        found = sorted(new)
        fresh = dict(zip(found, self._model.encode(found, True), strict=True))
        cache.update((word, fresh[word]) for word in found if len(word) <= _LONGEST_CACHED_WORD)
        known = collections.ChainMap(cache, fresh)
        return [[known[word] for word in line] for line in split]


def same_ids(one: Mapping, other: Mapping) -> bool:
    """Whether two manifests are of tokenizers that give a text the same ids, as far as they say."""
    said = [key for key in ("sha256", "ids_sha256") if key in one and key in other]
    return not said or any(one[key] == other[key] for key in said)


def load(path: str, length: int, settings: Settings | None = None) -> Tokenizer:
    """Reads a tokenizer.json or a sentencepiece .model; raises BadInput if it is none."""
    try:
        content = files.read(os.path.expanduser(path))
    except BadInput as error:
        reason = str(error).removeprefix(f"{os.path.expanduser(path)}: ")
        raise BadInput(
            f"tokenizer {path!r}: {reason}; train one with `python -m data.tokenizers.train`"
        ) from error
    try:
        if path.endswith(".model"):
            return Tokenizer(of_sentencepiece(content), length, settings)
        return Tokenizer(content.decode(errors="replace"), length, settings)
    except BadInput as error:
        raise BadInput(f"tokenizer {path!r}: {error}") from error


def of_sentencepiece(model: bytes) -> str:
    """The JSON of a .model file."""
    return json.dumps({"sentencepiece": base64.b64encode(model).decode()})


def well_formed(text: str) -> str:
    """Pairs of surrogates joined, lone ones replaced by U+FFFD: what can be written as UTF-8."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def find(name: str, data_dir: str | None) -> str:
    """The path of a tokenizer: `name` if it ends in .json or .model, else what has that name.

    Tokenizers are made when a data set is prepared, not when training starts: hosts of a pod often
    see the data read-only, and would else race to write the same file. That of a data set lies
    beside it, `<data_dir>/<name>/tokenizer-<vocabulary>.json`, and so do those that
    data.tokenizers.fetch gets; where there are several, the path must be given. data_dir: None is
    that of the commands, .data.
    """
    if name.endswith((".json", ".model")):
        return name
    data_dir = data_dir or DATA_DIR
    folder = files.join(os.path.expanduser(data_dir), name)
    try:
        found = files.expand(files.join(folder, "tokenizer-*.json"))
    except BadInput as error:
        command = f"train one with `python -m data.tokenizers.train --dataset={name}"
        if name in FETCHED:
            command = f"get it with `python -m data.tokenizers.fetch {name}"
        raise BadInput(f"tokenizer {name!r}: {error}; {command} --data_dir={data_dir}`") from error
    if len(found) > 1:
        raise BadInput(f"tokenizer {name!r}: there are several, give the path of one: {found}")
    return found[0]


def _parsed(text: str) -> dict[str, Any]:
    try:
        spec = json.loads(text)
    except ValueError as error:
        raise BadInput(f"is no tokenizer.json ({error})") from error
    if not isinstance(spec, dict) or not isinstance(spec.get("settings", {}), dict):
        raise BadInput("is no tokenizer.json (expected an object)")
    return spec


def _model(spec: dict[str, Any], settings: Settings) -> Model:
    if "sentencepiece" in spec:
        from data.tokenizers.sentencepiece import SentencePiece

        if settings.clean:
            raise BadInput(f"clean={settings.clean!r}: replaces a normalizer that is none of these")
        return SentencePiece(spec["sentencepiece"])
    from data.tokenizers.huggingface import HuggingFace

    return HuggingFace(spec | {"normalizer": None} if settings.clean else spec)


def _cleaning(settings: Settings) -> Callable[[str], str] | None:
    if settings.clean:
        from data.tokenizers.clean import clip

        return clip
    return str.lower if settings.lowercase else None


def _marks(model: Model, settings: Settings) -> tuple[list[int], list[int], str]:
    """Ids before and after a text, and what becomes of the last when it is cut."""
    before = model.before if settings.bos is None else model.bos if settings.bos else []
    if settings.bos and not before:
        raise BadInput("bos=True: the tokenizer has no start mark")
    if settings.eos in ("keep", "cut") and not model.eos:
        raise BadInput(f"eos={settings.eos!r}: the tokenizer has no end mark")
    after = model.after if settings.eos is None else [] if settings.eos == "none" else model.eos
    return before, after, settings.eos or "keep"


def _pad_id(model: Model, settings: Settings) -> int:
    found = model.pad_id if settings.pad_id is None else settings.pad_id
    if found is None:
        raise BadInput(
            "has neither a padding section nor a token [PAD] or <pad>; set pad_id, as in "
            "tokenize(..., pad_id=0)"
        )
    if found >= model.vocab_size:
        raise BadInput(f"pad_id={found}: expected less than the {model.vocab_size} tokens")
    return found
