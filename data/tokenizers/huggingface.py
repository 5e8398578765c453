"""Tokenizers of Hugging Face's `tokenizers`: all that a tokenizer.json can say."""

import json
from typing import Any

import tokenizers
from tokenizers import decoders

from data.tokenizers import Settings, Tokens
from mm.config import BadInput

# With these, a space always ends a token, and what stands left of it changes nothing on the right.
_WORD_SPLITTERS = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
_WORD_NORMALIZERS = ("NFC", "NFKC", "NFD", "NFKD", "Lowercase", "BertNormalizer")
# CLIP's regular expression. None of what it matches holds whitespace or looks around itself. That
# of open_clip ignores case: a long s is an s, and U+0345, whose capital is a letter, no other sign.
CLIP_PATTERN = r"'[s\u017F]|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}\u0345]+"
_HF_CLIP = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|" + _HF_CLIP  # as transformers has it
_WORD_PATTERNS = (CLIP_PATTERN, _HF_CLIP, CLIP_WORDS)
_WHITESPACE = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
_LOWERCASE = {"type": "Lowercase"}
_NEVER = "\uffff" * 8
_PADS = ("[PAD]", "<pad>")


class HuggingFace:
    """See `data.tokenizers.Model`; spec is a parsed tokenizer.json."""

    def __init__(self, spec: dict[str, Any]):
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(_unwritten(spec)))
        except Exception as error:  # the library raises bare Exceptions
            raise BadInput(f"is no tokenizer.json ({error})") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # "[PAD]" written in a caption is text
        added = {token["content"]: token["id"] for token in spec.get("added_tokens", [])}
        vocabulary = self._tokenizer.get_vocab() | added
        self.vocab_size = max(vocabulary.values()) + 1
        named = next((vocabulary[token] for token in _PADS if token in vocabulary), None)
        self.pad_id = spec["padding"]["pad_id"] if spec.get("padding") else named
        self.before, self.after = self.bos, self.eos = _marks(self._tokenizer)
        self.lowercase = any(
            n["type"] == "Lowercase" or (n["type"] == "BertNormalizer" and n.get("lowercase"))
            for n in _parts(spec, "normalizer")
        )
        self.knows_words = spec.get("pre_tokenizer") is not None
        self.by_word = _splits_at_spaces(spec)
        if not spec.get("decoder"):
            self._tokenizer.decoder = _decoder(spec)
        self.spells = self._tokenizer.decoder is not None
        self._suffix = spec["model"].get("end_of_word_suffix") or ""

    def encode(self, texts: list[str], words: bool) -> list[Tokens]:
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [Tokens(e.ids, e.word_ids if words else []) for e in encodings]

    def decode(self, lines: list[list[int]]) -> list[str]:
        texts = self._tokenizer.decode_batch(lines, skip_special_tokens=False)
        return [text.replace(self._suffix, " ") for text in texts] if self._suffix else texts


def with_settings(spec: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The file whose own normalizer lowercases and cleans, as far as there are steps for it.

    Of clean="clip" there is none for ftfy and the entities of HTML, and a step lowercases letter by
    letter.
    """
    if settings.clean == "clip":
        steps = [_WHITESPACE, _LOWERCASE]
    elif settings.lowercase:
        steps = [_LOWERCASE, *([spec["normalizer"]] if spec.get("normalizer") else [])]
    else:
        return spec
    return spec | {"normalizer": {"type": "Sequence", "normalizers": steps}}


def rules_of(spec: dict[str, Any]) -> dict[str, Any]:
    """What of a tokenizer.json decides the ids of a text, without marks, as the library writes it.

    Special tokens decide nothing: none is looked for in a text.
    """
    spec = json.loads(tokenizers.Tokenizer.from_str(json.dumps(spec)).to_str())
    rules = {key: spec[key] for key in ("model", "normalizer", "pre_tokenizer")}
    return rules | {"added": [token for token in spec["added_tokens"] if not token["special"]]}


def _unwritten(spec: dict[str, Any]) -> dict[str, Any]:
    """Gives the special pieces of a Unigram names that no text has.

    It takes a piece wherever it stands, "</s>" in a caption too, as sentencepiece does not.
    """
    if spec.get("model", {}).get("type") != "Unigram":
        return spec
    added = spec.get("added_tokens", [])
    special = {token["content"] for token in added if token["special"]}
    vocabulary = [
        [_NEVER + piece if piece in special else piece, score]
        for piece, score in spec["model"]["vocab"]
    ]
    others = [token for token in added if not token["special"]]
    return spec | {"model": spec["model"] | {"vocab": vocabulary}, "added_tokens": others}


def _decoder(spec: dict[str, Any]) -> decoders.Decoder | None:
    """For a file without one, by how its pieces say where words end; None where they do not."""
    model = spec["model"]
    if model["type"] == "WordPiece":
        return decoders.WordPiece(model.get("continuing_subword_prefix") or "##")
    for step in _parts(spec, "pre_tokenizer"):
        if step["type"] in ("ByteLevel", "Metaspace"):
            return getattr(decoders, step["type"])()
    return decoders.Fuse() if model.get("end_of_word_suffix") else None


def _marks(tokenizer: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the file's post-processor puts before and after a text."""
    marked = tokenizer.encode("a")
    text = [i for i, special in enumerate(marked.special_tokens_mask) if not special]
    if not text:
        raise BadInput("gives no token for the text 'a', so that marks cannot be told from it")
    return marked.ids[: text[0]], marked.ids[text[-1] + 1 :]


def _parts(spec: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The steps of the normalizer or of the pre_tokenizer."""
    step = spec.get(key) or {"type": "Sequence", f"{key}s": []}
    listed = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}[key]
    return step.get(listed, []) if step["type"] == "Sequence" else [step]


def _splits_at_spaces(spec: dict[str, Any]) -> bool:
    """Whether the ids of a text are those of its words, one after the other."""
    plain = all(
        n["type"] in _WORD_NORMALIZERS or n == _WHITESPACE for n in _parts(spec, "normalizer")
    )
    special = all(token["special"] for token in spec.get("added_tokens", []))
    splitters = _parts(spec, "pre_tokenizer")
    return plain and special and bool(splitters) and _ends_at_spaces(splitters)


def _ends_at_spaces(splitters: list[dict[str, Any]]) -> bool:
    first, *rest = splitters
    if first["type"] in _WORD_SPLITTERS:
        return not rest
    return (
        first["type"] == "Split"
        and first["pattern"].get("Regex") in _WORD_PATTERNS
        and first["invert"]
        and first["behavior"] == "Removed"
        and [step["type"] for step in rest] == ["ByteLevel"]
        and not rest[0]["add_prefix_space"]
    )
