"""What of a retrieval a person looks at: queries, what was found, the worst, a similarity matrix.

All in one JSON file, pictures and all, from which `mm.report` draws.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from data.preprocess import Preprocess
from mm.report.retrieval import best_columns, draw

_QUERIES = 8  # of each kind and direction
_BEST = 5
_SAMPLE = 16  # pairs of the similarity matrix
_SIDE = 96  # pixels of a thumbnail


def examples(
    source: Any,
    preprocess: Preprocess,
    zimg: Float[np.ndarray, "n d"],
    ztxt: Float[np.ndarray, "n d"],
    ids: Int[np.ndarray, " n"],
    ranks: Mapping[str, Int[np.ndarray, " n"]],
) -> dict[str, Any]:
    """What the page shows of a pool whose source has captions and pictures.

    Under a direction: queries spread evenly over the pool, and those whose own is found last. Each
    has its "query" and "rank" (0 is best; places in the pool), the "score" of its own, and "found",
    the best with their scores. "captions" and "pictures" (WebP in base64) are by place.
    """
    fields = text_and_image(preprocess)
    shown: dict[str, Any] = {"pool_size": len(zimg)}
    texts, images = set(), set()
    for name, (queries, candidates, own, others) in {
        "text_to_image": (ztxt, zimg, texts, images),
        "image_to_text": (zimg, ztxt, images, texts),
    }.items():
        rank = ranks[name]
        even = spread(len(rank), _QUERIES)
        worst = [i for i in np.argsort(-rank, kind="stable")[:_QUERIES].tolist() if rank[i] > 0]
        shown[name] = {
            kind: [_query(i, queries, candidates, int(rank[i])) for i in rows]
            for kind, rows in (("even", even), ("worst", worst))
        }
        for row in [*shown[name]["even"], *shown[name]["worst"]]:
            own.add(row["query"])
            others |= {row["query"], *(place for place, _ in row["found"])}
    sample = spread(len(zimg), _SAMPLE)
    scores = ztxt[sample] @ zimg[sample].T
    shown["similarity"] = {"places": sample, "scores": np.round(scores, 3).tolist()}
    texts, images = sorted(texts | set(sample)), sorted(images | set(sample))
    records = source.read(ids[texts], (fields[0],))
    captions = (caption_of(record[fields[0]]) for record in records)
    shown["captions"] = dict(zip(map(str, texts), captions, strict=True))
    records = source.read(ids[images], (fields[1],))
    pictures = (thumbnail(to_image(record[fields[1]])) for record in records)
    shown["pictures"] = dict(zip(map(str, images), pictures, strict=True))
    return shown


def sheet(
    source: Any,
    fields: tuple[str, str],
    scores: Float[np.ndarray, "q n"],
    rows: Sequence[int],
    ids: Int[np.ndarray, " n"],
    title: str,
) -> bytes:
    """A PNG of the captions of `rows`, places in the pool, and the pictures that score best."""
    text, image = fields
    shown = np.unique(best_columns(scores))
    captions = [caption_of(record[text]) for record in source.read(ids[rows], (text,))]
    records = source.read(ids[shown], (image,))
    pictures = {i: to_image(r[image]) for i, r in zip(shown.tolist(), records, strict=True)}
    buffer = io.BytesIO()
    draw(captions, pictures, scores, rows, title).save(buffer, "PNG")
    return buffer.getvalue()


def text_and_image(preprocess: Preprocess) -> tuple[str, str] | None:
    """The fields of the source that the caption and the picture come from."""
    text, image = text_field(preprocess), preprocess.field_of("decode")
    return None if text is None or image is None else (text, image)


def text_field(preprocess: Preprocess) -> str | None:
    """The field of the source that the caption comes from."""
    return preprocess.field_of("caption") or preprocess.field_of("choose")


def say(record: Mapping[str, Any], field: str, text: str) -> dict[str, Any]:
    """The record with another caption."""
    return {**record, field: text if isinstance(record[field], str) else [text]}


def spread(count: int, wanted: int) -> list[int]:
    """Places spread evenly over a pool, so that nobody chose them."""
    return np.linspace(0, count - 1, min(wanted, count)).astype(int).tolist()


def caption_of(found: Any) -> str:
    """A text, or the first of several."""
    return found if isinstance(found, str) else found[0]


def to_image(picture: bytes | np.ndarray) -> Image.Image:
    """From encoded bytes, or from uint8 [h, w, 3]."""
    if isinstance(picture, bytes):
        return Image.open(io.BytesIO(picture))
    return Image.fromarray(picture)


def thumbnail(picture: Image.Image, side: int = _SIDE) -> str:
    """WebP in base64, at most so large, on white."""
    picture = picture.convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "WEBP", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()


def _query(i: int, queries: np.ndarray, candidates: np.ndarray, rank: int) -> dict[str, Any]:
    scores = queries[i : i + 1] @ candidates.T
    found = [[int(j), round(float(scores[0, j]), 4)] for j in best_columns(scores, _BEST)[0]]
    return {"query": i, "rank": rank, "score": round(float(scores[0, i]), 4), "found": found}
