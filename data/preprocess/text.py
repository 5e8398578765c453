"""Ops on text, and on what tells which pairs belong together."""

import functools
import hashlib
import html
import string
import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from data import tokenizers
from data.preprocess import Columns, Op, markup
from data.preprocess.draws import Draws
from data.sources import BadExample
from mm import registry
from mm.config import BadInput, Count, Positive

MAX_CHARACTERS = 1 << 20
_NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


@registry.register("op", "caption")
def caption(
    *,
    label: str,
    tags: str | None = None,
    max_tags: int = 8,
    p_label: float = 1.0,
    separator: str = ", ",
    empty: bool = False,
    max_characters: Positive = MAX_CHARACTERS,
) -> Op:
    """Writes `text`: the label and a random subset of the tags, in random order.

    label, tags: fields, one text and a list of texts. How many tags is uniform in 0 .. the least of
    max_tags and what there are. p_label: the label is there with this probability, and always when
    no tag is. Without `tags` the text is the label, with nothing random. A text that is blank
    (unless `empty`), longer than max_characters or no Unicode is a BadExample.
    """
    if not 0 <= p_label <= 1:
        raise BadInput(f"p_label={p_label}: expected 0 .. 1")
    if max_tags < 0:
        raise BadInput(f"max_tags={max_tags}: expected at least 0")

    def alone(columns: Columns, draws: Draws) -> Columns:
        return columns | {"text": _checked(columns[label], empty, max_characters)}

    def apply(columns: Columns, draws: Draws) -> Columns:
        lengths = np.array([len(row) for row in columns[tags]])
        count, use_label = draws.uniform(2)
        counts = (count * (np.minimum(lengths, max_tags) + 1)).astype(int)
        place = draws.uniform(int(lengths.max())).T  # [b, longest]
        place = np.where(np.arange(place.shape[1]) < lengths[:, None], place, 2)
        order = np.argsort(place, axis=1, kind="stable").tolist()
        texts = []
        for row, n in enumerate(counts.tolist()):
            items = columns[tags][row]
            parts = [items[i] for i in order[row][:n]]
            if not parts or use_label[row] < p_label:
                parts.insert(0, columns[label][row])
            texts.append(separator.join(parts))
        return columns | {"text": _checked(texts, empty, max_characters)}

    return Op(alone, reads=(label,)) if tags is None else Op(apply, reads=(label, tags))


@registry.register("op", "choose")
def choose(*, key: str, empty: bool = False, max_characters: Positive = MAX_CHARACTERS) -> Op:
    """Writes `text`: one of the list of texts `key`, each as likely, another in another epoch.

    Raises BadExample as `caption`; of a list without texts, too.
    """

    def apply(columns: Columns, draws: Draws) -> Columns:
        texts = []
        for row, place in zip(columns[key], draws.uniform(1)[0].tolist(), strict=True):
            if isinstance(row, str):
                raise BadInput(f"{key!r} is one text, not a list of texts; use caption")
            texts.append(row[int(place * len(row))] if len(row) else "")
        return columns | {"text": _checked(texts, empty, max_characters)}

    return Op(apply, reads=(key,))


@registry.register("op", "normalize_text")
def normalize_text(
    *,
    strip_html: bool = False,
    unescape: bool = False,
    nfkc: bool = False,
    lowercase: bool = False,
    punctuation: bool = True,
    whitespace: bool = False,
    empty: bool = False,
) -> Op:
    """Changes `text`, in the order of these arguments. A text that is blank then is a BadExample.

    strip_html: tags, comments, scripts and styles go, entities are resolved. unescape: "&amp;" is
    an ampersand. nfkc: Unicode's compatibility forms. punctuation: if False, that of ASCII goes,
    and "_" becomes a space, as in SigLIP's zero-shot evaluation. whitespace: each run of it becomes
    one space, none is left at the ends. empty: blank texts are let through.
    """
    steps: list[tuple[bool, Callable[[str], str]]] = [
        (strip_html, markup.strip),
        (unescape, html.unescape),
        (nfkc, functools.partial(unicodedata.normalize, "NFKC")),
        (lowercase, str.lower),
        (not punctuation, lambda text: text.translate(_NO_PUNCTUATION)),
        (whitespace, lambda text: " ".join(text.split())),
    ]
    chosen = [step for wanted, step in steps if wanted]
    if not chosen:
        raise BadInput("changes nothing; set one of its arguments, such as lowercase=True")

    def apply(columns: Columns, draws: Draws) -> Columns:
        texts = _texts(columns)
        for step in chosen:
            texts = [step(text) for text in texts]
        return columns | {"text": _checked(texts, empty)}

    return Op(apply)


@registry.register("op", "template")
def template(*, templates: str | Sequence[str]) -> Op:
    """Puts `text` where {} is: template("a photo of a {}."); of several, each is as likely."""
    listed = [templates] if isinstance(templates, str) else list(templates)
    if not listed or any(one.count("{}") != 1 for one in listed):
        raise BadInput(f"templates={templates!r}: expected {{}} once in each")

    def apply(columns: Columns, draws: Draws) -> Columns:
        texts = _texts(columns)
        if len(listed) == 1:
            return columns | {"text": [listed[0].replace("{}", text) for text in texts]}
        places = (draws.uniform(1)[0] * len(listed)).astype(int).tolist()
        texts = [listed[i].replace("{}", text) for i, text in zip(places, texts, strict=True)]
        return columns | {"text": texts}

    return Op(apply)


@registry.register("op", "tokenize")
def tokenize(
    *,
    name: str,
    length: int,
    words: bool = False,
    eos: Literal["keep", "cut", "none"] | None = None,
    bos: bool | None = None,
    pad_id: Count | None = None,
    lowercase: bool = False,
    clean: Literal["clip"] | None = None,
    data_dir: str | None = None,
) -> Op:
    """Turns `text` into int32 [b, length], padded or cut at the end, and `text_mask`, bool.

    name: a tokenizer.json, a sentencepiece .model, "clip", "bert", or a data set that one was
    trained for (see `data.tokenizers.find`). words: also write `text_words`, int32 [b, length], the
    number of the word that a token is a part of, -1 for marks and padding
    (`data.tokenizers.Tokenizer.words`): what masks text reads it. eos, bos, pad_id, lowercase,
    clean: see `data.tokenizers.Settings`. data_dir: where data sets are; `parse` gives it.
    """
    settings = tokenizers.Settings(eos, bos, pad_id, lowercase, clean)
    tokenizer = tokenizers.load(tokenizers.find(name, data_dir), length, settings)

    def apply(columns: Columns, draws: Draws) -> Columns:
        texts = _texts(columns)
        ids, mask = tokenizer.encode(texts)
        found = {"text": ids, "text_mask": mask}
        return columns | found | ({"text_words": tokenizer.words(texts)} if words else {})

    return Op(apply, tokenizer=tokenizer)


@registry.register("op", "keep_text")
def keep_text(*, name: str) -> Op:
    """Copies `text` and `text_mask`, tokenized, to `text_<name>` and its mask.

    So that another text can be made after it: the sentence that follows, say.
    """

    def apply(columns: Columns, draws: Draws) -> Columns:
        if not isinstance(columns.get("text"), np.ndarray):
            raise BadInput("belongs after tokenize")
        return columns | {f"text_{name}{end}": columns[f"text{end}"] for end in ("", "_mask")}

    return Op(apply)


@registry.register("op", "numbers")
def numbers(*, key: str, size: int, name: str | None = None) -> Op:
    """Writes the numbers of a field, float32 [b, size], under `name` (default: the field's).

    So come the outputs of a teacher that were stored with the data, and the targets of a
    regression. A field of one number each has the size 1.
    """

    def apply(columns: Columns, draws: Draws) -> Columns:
        rows = [np.atleast_1d(np.asarray(row, np.float32)) for row in columns[key]]
        if wrong := next((row.shape for row in rows if row.shape != (size,)), None):
            raise BadExample(
                f"{key!r} has the shape {wrong}, expected ({size},)", "field has the wrong shape"
            )
        return columns | {name or key: np.stack(rows)}

    return Op(apply, reads=(key,))


@registry.register("op", "group")
def group(*, key: str) -> Op:
    """Writes `group`, an int32 hash of the text `key`: pairs with the same are each other's match.

    Of n different texts, two share a hash with probability n^2 / 2^32: 0.1% for 2,000.
    """

    def apply(columns: Columns, draws: Draws) -> Columns:
        return columns | {"group": np.array([_hash(text) for text in columns[key]], np.int32)}

    return Op(apply, reads=(key,))


@registry.register("op", "entities")
def entities(*, key: str, count: int, max: int) -> Op:
    """Writes `entities`, int32 [b, max]: numbers below `count` for the texts of the list `key`.

    A number is the text's hash modulo count, so that some texts share one. -1 where there are no
    more; those beyond `max` are left out.
    """
    if count < 1 or max < 1:
        raise BadInput(f"count={count}, max={max}: expected at least 1")

    def apply(columns: Columns, draws: Draws) -> Columns:
        found = np.full((len(columns[key]), max), -1, np.int32)
        for row, texts in zip(found, columns[key], strict=True):
            numbers = [_hash(text) % count for text in texts[:max]]
            row[: len(numbers)] = numbers
        return columns | {"entities": found}

    return Op(apply, reads=(key,))


@functools.lru_cache(1 << 16)
def _hash(text: str) -> int:
    """31 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") >> 1


def _texts(columns: Columns) -> list[str]:
    if not isinstance(columns.get("text"), list):
        raise BadInput("belongs after the op that writes the text, such as caption")
    return columns["text"]


def _checked(texts: Sequence[str], empty: bool, max_characters: int = MAX_CHARACTERS) -> list[str]:
    for text in texts:
        if not isinstance(text, str):
            raise BadInput(f"found {type(text).__name__}, expected a text; choose takes lists")
        if len(text) > max_characters:
            raise BadExample(
                f"the text has {len(text):,} characters, expected at most {max_characters:,}",
                "text is too long",
            )
        if not (empty or text.strip()):
            raise BadExample(f"the text is blank ({text[:20]!r})", "text is empty")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        wrong = ord(error.object[error.start])
        message = f"the text holds half a surrogate pair (U+{wrong:04X})"
        raise BadExample(message, "text is no Unicode") from error
    return list(texts)
