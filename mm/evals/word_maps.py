"""Where in a picture a model finds a word, for people to look at.

A fusion whose text and image tokens attend to each other is asked for its attention. Of a model
with embeddings alone no word attends to a picture: there each part of it is painted over in turn,
and the map is by how much the word's score falls (occlusion: Zeiler and Fergus 2014, section 4.2).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding
from jaxtyping import Bool, Float

from data.preprocess import Preprocess
from data.preprocess.draws import example_keys
from mm.evals.base import Model
from mm.evals.examples import say, text_field
from mm.evals.pool import in_batches
from mm.models.attention import Weights, recording
from mm.objectives.combine import System
from mm.objectives.views import Views

_CELLS = 7  # parts of a side that are painted over


def word_maps(
    model: Model,
    preprocess: Preprocess,
    records: Sequence[Mapping[str, Any]],
    captions: Sequence[str],
    *,
    words: Sequence[str] = (),
    batch_size: int,
) -> dict[str, Any]:
    """Of each record a map for some words of its caption; every process calls it with the same.

    words: those to look for, by default the longest of each caption. Returns "kind", one of
    "attention" and "occlusion", and for each record under "examples" its "picture", uint8 [h, w, 3]
    as the model sees it, "caption", "words", a list of (word, map [rows, columns]), and "pool",
    where the vector of the picture comes from, None unless that is attention.
    """
    chosen = [find_words(caption, words) for caption in captions]
    field = text_field(preprocess)
    arrays = arrays_of(preprocess, records)
    if arrays["image"].ndim != 4:
        return {"kind": None, "examples": []}  # a clip
    looked = gathered(model.apply(look), model.sharding, arrays)
    made = [[] for _ in records]
    if "words" in looked:
        kind = "attention"
        for row, (caption, listed) in enumerate(zip(captions, chosen, strict=True)):
            for word in listed:
                tokens = find_tokens(preprocess.tokenizer, caption, word)
                if tokens.any():
                    made[row].append((word, looked["words"][row][tokens].mean(0)))
    else:
        kind = "occlusion"
        pairs = zip(captions, chosen, strict=True)
        listed = [
            [caption, *(word for word in found if word != caption)] for caption, found in pairs
        ]
        spoken = [
            say(record, field, text)
            for record, texts in zip(records, listed, strict=True)
            for text in texts
        ]
        made = occlusion(model, arrays, arrays_of(preprocess, spoken), listed, batch_size)
    pictures = [_pixels(image) for image in arrays["image"]]
    pools = looked.get("pool", [None] * len(records))
    rows = zip(captions, pictures, made, pools, strict=True)
    names = "caption", "picture", "words", "pool"
    return {"kind": kind, "examples": [dict(zip(names, row, strict=True)) for row in rows]}


def find_words(caption: str, wanted: Sequence[str] = (), count: int = 3) -> list[str]:
    """The `count` longest words of a caption, or those of `wanted` that it has, in its order."""
    found = list(dict.fromkeys(re.findall(r"[^\W_](?:[\w'’-]*\w)?", caption)))
    if wanted:
        lower = {word.lower() for word in wanted}
        return [word for word in found if word.lower() in lower]
    longest = sorted(found, key=len, reverse=True)[:count]
    return [word for word in found if word in longest]


def find_tokens(tokenizer: Any, text: str, word: str) -> Bool[np.ndarray, " l"]:
    """Which tokens of a text are those of a word: what it adds to the text before it."""
    match = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text)
    if match is None:
        raise ValueError(f"{word!r} is no word of {text!r}")
    _, masks = tokenizer.encode(["", text[: match.start()].rstrip(), text[: match.end()], text])
    none, begin, end, whole = masks.sum(1).tolist()
    first = len(tokenizer.manifest()["ids_before"])
    place = np.arange(tokenizer.length)
    return (place >= first + begin - none) & (place < first + end - none) & (place < whole)


def look(system: System, views: Views) -> dict[str, Array]:
    """What attends to the places of a picture, [b, ..., rows, columns]; {} where nothing does.

    "words": each token of the text in the fusion, "pool": the vector of the picture in its tower.
    Means over heads, and over the layers of the fusion.
    """
    model, found = views.model, {}
    with recording() as of_tower:
        image = views.image()
    grid = getattr(model.image, "grid", None)
    if grid is None or len(grid) != 2:
        return {}
    places, prefix = grid[0] * grid[1], model.image.prefix
    if model.image.pool in ("cls", "map") and of_tower:
        found["pool"] = of_tower[-1].weights[:, :, 0, -places:].mean(1).reshape(-1, *grid)
    if model.fusion is not None:
        text = views.text()
        with recording() as of_fusion:
            views.fuse()
        sizes = text.tokens.shape[1], image.tokens.shape[1]
        maps = [x for each in of_fusion if (x := of_words(each, *sizes, model)) is not None]
        if maps:
            mean = sum(maps) / len(maps)
            found["words"] = mean[..., prefix:].reshape(*mean.shape[:2], *grid)
    return found


def of_words(found: Weights, length: int, places: int, model: Any) -> Float[Array, "b l n"] | None:
    """The part of some weights that is between text and image; None where there is none."""
    weights = found.weights.astype(jnp.float32).mean(1)
    queries, keys = weights.shape[1:]
    if not found.of_itself:
        # A memory may have more tokens, behind those of the tower.
        if queries == length and keys >= places and model.fusion.fuses != ("image",):
            return weights[:, :, :places]
        if queries == places and keys >= length and "image" in model.fusion.fuses:
            return None if "text" in model.fusion.fuses else weights[:, :, :length].swapaxes(1, 2)
        return None
    before = queries - places - length  # class tokens
    if before not in (0, 1) or len(model.fusion.fuses) < 2:
        return None
    return weights[:, before + places :, before : before + places]


def occlusion(
    model: Model,
    images: Mapping[str, np.ndarray],
    texts: Mapping[str, np.ndarray],
    words: Sequence[Sequence[str]],
    batch_size: int,
) -> list[list[tuple[str, np.ndarray]]]:
    """By how much each word's score falls when a part of its picture is painted over.

    texts: arrays of all words, those of the first picture first.
    """
    hidden = np.concatenate([_hidden(image) for image in images["image"]])
    each = 1 + _CELLS**2
    rows = max(len(hidden), len(texts["text"]))
    both = {"image": hidden} | {k: x for k, x in texts.items() if k.startswith("text")}
    filled = {k: x[np.minimum(np.arange(rows), len(x) - 1)] for k, x in both.items()}
    zimg, ztxt = gathered(model.embed, model.sharding, filled, batch_size)
    found, first = [], 0
    for i, listed in enumerate(words):
        scores = zimg[i * each : (i + 1) * each] @ ztxt[first : first + len(listed)].T
        falls = (scores[:1] - scores[1:]).T.reshape(-1, _CELLS, _CELLS)
        found.append(list(zip(listed, falls, strict=True)))
        first += len(listed)
    return found


def _hidden(image: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "n h w c"]:
    """A picture, then itself with each part in its mean colour; parts overlap by half."""
    mean = image.mean((0, 1)).astype(image.dtype)
    found = np.repeat(image[None], 1 + _CELLS**2, 0)
    height, width = image.shape[:2]
    for cell in range(_CELLS**2):
        row, column = divmod(cell, _CELLS)
        spans = [
            slice(max(0, round((at - 0.5) * size / _CELLS)), round((at + 1.5) * size / _CELLS))
            for at, size in ((row, height), (column, width))
        ]
        found[1 + cell, spans[0], spans[1]] = mean
    return found


def arrays_of(preprocess: Preprocess, records: Sequence[Mapping]) -> dict[str, np.ndarray]:
    """What the ops make of records."""
    columns = {key: [record[key] for record in records] for key in preprocess.reads}
    keys = example_keys(0, np.arange(len(records)), np.zeros(len(records), np.int64))
    return preprocess.apply(columns, keys)


def gathered(
    function: Callable, sharding: NamedSharding, rows: Mapping[str, np.ndarray], size: int = 0
) -> Any:
    """function(batch) over all rows, at most `size` at a time, on every host; 0: all at once."""
    count = len(next(iter(rows.values())))
    whole = -(-count // sharding.mesh.size) * sharding.mesh.size
    size = min(size or whole, whole)
    return in_batches(
        function, lambda at: {name: x[at] for name, x in rows.items()}, count, sharding, size
    )


def _pixels(image: np.ndarray) -> np.ndarray:
    """As uint8, of bytes or of any range of floats."""
    if image.dtype == np.uint8:
        return image
    low, high = (-1.0, 1.0) if np.abs(image).max() <= 1 else (image.min(), image.max())
    return np.round((image - low) / max(high - low, 1e-6) * 255).astype(np.uint8)
