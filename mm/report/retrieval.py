"""A picture of retrieval: some captions, and the pictures that the model likes best for each."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

_CELL, _GAP, _TEXT, _HEAD = 64, 8, 250, 30  # pixels
_INK, _PAPER, _RIGHT, _WRONG = "#1a1a1a", "#ffffff", "#2e9e4f", "#d8d8d8"


def draw(
    captions: Sequence[str],
    pictures: Sequence[Image.Image],
    scores: Float[np.ndarray, "q n"],
    own: Sequence[int],
    title: str,
) -> Image.Image:
    """One row a caption: its text and its five best of `pictures`, the right one framed green.

    scores: of each caption with every picture of the pool. own: the right picture's index of each
    caption. pictures: the whole pool, or a mapping from index to those that are shown.
    """
    best = best_columns(scores)
    width = _TEXT + best.shape[1] * (_CELL + _GAP) + _GAP
    sheet = Image.new("RGB", (width, _HEAD + len(captions) * (_CELL + _GAP) + _GAP), _PAPER)
    ink, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    ink.text((_GAP, _GAP), title, fill=_INK, font=font)
    for row, (caption, columns) in enumerate(zip(captions, best, strict=True)):
        top = _HEAD + row * (_CELL + _GAP)
        for line, text in enumerate(wrapped(caption, font, _TEXT - 2 * _GAP)[:3]):
            ink.text((_GAP, top + 4 + 19 * line), text, fill=_INK, font=font)
        for place, column in enumerate(columns):
            left = _TEXT + place * (_CELL + _GAP)
            right = column == own[row]
            frame = (left - 3, top - 3, left + _CELL + 2, top + _CELL + 2)
            ink.rectangle(frame, outline=_RIGHT if right else _WRONG, width=3 if right else 1)
            sheet.paste(pictures[column].convert("RGB").resize((_CELL, _CELL)), (left, top))
    return sheet


def best_columns(scores: Float[np.ndarray, "q n"], count: int = 5) -> np.ndarray:
    """The `count` highest columns of each row, best first; NaN last."""
    return np.argsort(-np.nan_to_num(scores, nan=-np.inf), axis=1, kind="stable")[:, :count]


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """`text` in lines no wider than `width` pixels, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
