"""A picture of explanations: some pictures, and over each the maps of several methods."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mm.report.retrieval import wrapped

_CELL, _GAP, _TEXT, _HEAD = 144, 10, 210, 34  # pixels
_INK, _PAPER = "#1a1a1a", "#ffffff"
_HEAT = np.array([255, 70, 0], np.float32)


def draw(
    captions: Sequence[str],
    pictures: Sequence[Image.Image],
    maps: Mapping[str, Float[np.ndarray, "n rows columns"]],
) -> bytes:
    """A PNG: one row a picture: its text, itself, and by each method where it counts.

    Each map goes from no colour at its lowest place to full colour at its highest.
    """
    step = _CELL + _GAP
    size = _TEXT + (1 + len(maps)) * step + _GAP, _HEAD + len(captions) * step + _GAP
    sheet, font = Image.new("RGB", size, _PAPER), ImageFont.load_default(size=15)
    ink = ImageDraw.Draw(sheet)
    for place, name in enumerate(("", *maps)):
        ink.text((_TEXT + place * step, _GAP), name, fill=_INK, font=font)
    for row, (caption, picture) in enumerate(zip(captions, pictures, strict=True)):
        top = _HEAD + row * step
        for line, text in enumerate(wrapped(caption, font, _TEXT - 2 * _GAP)[:6]):
            ink.text((_GAP, top + 4 + 19 * line), text, fill=_INK, font=font)
        picture = picture.convert("RGB").resize((_CELL, _CELL))
        cells = [picture, *(heated(picture, found[row]) for found in maps.values())]
        for place, cell in enumerate(cells):
            sheet.paste(cell, (_TEXT + place * step, top))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def heated(picture: Image.Image, grid: Float[np.ndarray, "rows columns"]) -> Image.Image:
    """The picture in grey, with orange where the map is high."""
    return overlay(picture, grid, grid.min(), grid.max())


def overlay(picture: Image.Image, grid: np.ndarray, low: float, high: float) -> Image.Image:
    """A picture in grey, with orange where the map is high: none at `low`, full at `high`."""
    heat = np.clip((grid - low) / (high - low), 0, 1) if high > low else np.zeros_like(grid)
    heat = Image.fromarray(np.uint8(255 * heat)).resize(picture.size, Image.Resampling.BICUBIC)
    share = np.asarray(heat, np.float32)[..., None] / 255 * 0.85
    grey = np.asarray(ImageOps.grayscale(picture), np.float32)[..., None] * 0.6 + 90
    return Image.fromarray(np.uint8(grey * (1 - share) + _HEAT * share))
