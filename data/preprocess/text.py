"""Ops on text, and on what tells which pairs belong together."""

import functools
import hashlib

import numpy as np

from data import tokenizers
from data.preprocess import Columns, Op
from data.preprocess.draws import Draws
from mm import registry
from mm.config import BadInput


@registry.register("op", "caption")
def caption(
    *,
    label: str,
    tags: str | None = None,
    max_tags: int = 8,
    p_label: float = 1.0,
    separator: str = ", ",
) -> Op:
    """Writes `text`: the label and a random subset of the tags, in random order.

    label, tags: fields, one text and a list of texts. How many tags is uniform in 0 .. the least of
    max_tags and what there are. p_label: the label is there with this probability, and always when
    no tag is. Without `tags` the text is the label, with nothing random.
    """
    if not 0 <= p_label <= 1:
        raise BadInput(f"p_label={p_label}: expected 0 .. 1")
    if max_tags < 0:
        raise BadInput(f"max_tags={max_tags}: expected at least 0")
    if tags is None:
        return Op(lambda columns, _: columns | {"text": list(columns[label])}, reads=(label,))

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
        return columns | {"text": texts}

    return Op(apply, reads=(label, tags))


@registry.register("op", "tokenize")
def tokenize(*, name: str, length: int, words: bool = False, data_dir: str | None = None) -> Op:
    """Turns `text` into int32 [b, length], padded or cut at the end, and `text_mask`, bool.

    name: a tokenizer.json, or the name of a data set that one was trained for (see
    `data.tokenizers.find`). words: also write `text_words`, int32 [b, length], the number of the
    word that a token is a part of, -1 for marks and padding (`data.tokenizers.Tokenizer.words`):
    what masks text reads it. data_dir: where data sets are; `parse` gives it.
    """
    tokenizer = tokenizers.load(tokenizers.find(name, data_dir), length)

    def apply(columns: Columns, draws: Draws) -> Columns:
        if not isinstance(columns.get("text"), list):
            raise BadInput("belongs after the op that writes the text, such as caption")
        ids, mask = tokenizer.encode(columns["text"])
        found = {"text": ids, "text_mask": mask}
        return columns | found | ({"text_words": tokenizer.words(columns["text"])} if words else {})

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

    So come the outputs of a teacher that were stored with the data.
    """

    def apply(columns: Columns, draws: Draws) -> Columns:
        rows = [np.asarray(row, np.float32) for row in columns[key]]
        if wrong := next((row.shape for row in rows if row.shape != (size,)), None):
            raise BadInput(f"{key!r} has the shape {wrong}, expected ({size},)")
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
