"""A confusion matrix as a picture, and as the part of a run's page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageDraw, ImageFont

from mm.report import html
from mm.report.colors import LIGHT
from mm.report.html import Html

_FEW = 24  # classes whose counts are written into the cells
_LARGE, _SMALL, _GAP, _HEAD = 34, 11, 8, 34  # pixels
_MOST = 12  # confusions on the page
_BLUE = np.array([31, 111, 180])


def draw(names: Sequence[str], matrix: Int[np.ndarray, "c _"]) -> Image.Image:
    """A row for each class, a column for what it was taken for, in the same order.

    A column more is of those for which no class was found. The darker a cell, the larger its share
    of the row.
    """
    few = len(names) <= _FEW
    cell, size = (_LARGE, 13) if few else (_SMALL, 9)
    font = ImageFont.load_default(size=size)
    labels = [f"{name} {i}" for i, name in enumerate(names)]
    left = int(max(map(font.getlength, labels))) + 2 * _GAP
    title = f"{matrix.sum():,} examples: classes down, what they are taken for across"
    heading = ImageFont.load_default(size=13)
    none = matrix.shape[1] > len(names)
    right = left + cell * matrix.shape[1] + _GAP
    width = max(right, int(heading.getlength(title)) + 2 * _GAP)
    sheet = Image.new("RGB", (width, _HEAD + cell * (1 + len(names)) + _GAP), LIGHT["paper"])
    ink = ImageDraw.Draw(sheet)
    ink.text((_GAP, _GAP), title, fill=LIGHT["ink"], font=heading)
    top = _HEAD + cell
    if none and few:
        ink.text((left + len(names) * cell, top - cell + _GAP), "none", LIGHT["quiet"], font)
    for i, row in enumerate(matrix):
        y = top + i * cell
        width = font.getlength(labels[i])
        ink.text((left - width - _GAP, y + (cell - size) // 2), labels[i], LIGHT["ink"], font)
        if few:
            ink.text((left + i * cell + _GAP, top - cell + _GAP), str(i), LIGHT["quiet"], font)
        for j, count in enumerate(row.tolist()):
            share, x = count / max(row.sum(), 1), left + j * cell
            color = tuple(np.round(255 - share * (255 - _BLUE)).astype(int).tolist())
            ink.rectangle((x, y, x + cell - 2, y + cell - 2), color)
            if few and count:
                shade = LIGHT["paper"] if share > 0.5 else LIGHT["ink"]
                width = font.getlength(str(count))
                place = x + (cell - width) / 2, y + (cell - size) // 2 - 1
                ink.text(place, str(count), shade, font)
    return sheet


def section(shown: Mapping[str, Any]) -> Html:
    """What is taken for what most often, and how many of each class are found."""
    names, matrix = shown["names"], np.array(shown["confusion"])
    wrong = matrix * (1 - np.eye(*matrix.shape, dtype=int))
    columns = [*names, "none"]  # the last may be missing
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST]
    pairs = [divmod(int(place), matrix.shape[1]) for place in order]
    confused = [
        [names[i], columns[j], f"{wrong[i, j]:,} of {matrix[i].sum():,}"]
        for i, j in pairs
        if wrong[i, j]
    ]
    found = [
        [name, f"{matrix[i, i]:,} of {matrix[i].sum():,}", f"{matrix[:, i].sum():,}"]
        for i, name in enumerate(names)
    ]
    table = html.table(found, ["class", "found", "taken for it, rightly or not"])
    parts = [
        html.table(confused, ["class", "taken for", "how often"])
        if confused
        else html.paragraph("None is taken for another.")
    ]
    return html.join([*parts, html.details(f"All {len(names)} classes", table)])
