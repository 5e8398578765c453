"""A sheet of pictures with their captions under them."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64
from PIL import Image, ImageDraw, ImageFont

from data.inspect.examine import Fields, texts
from data.sources import BadExample, Source, read_each
from data.sources.pictures import decode

_COLUMNS, _ROWS = 6, 5
_CELL, _GAP, _LINE, _LINES = 192, 16, 17, 3  # pixels; lines of text under a picture
_INK, _FAINT, _PAPER, _EDGE = "#1a1a1a", "#777777", "#ffffff", "#d0d0d0"
_FONT = 14


def draw(source: Source, ids: Int64[np.ndarray, " n"], fields: Fields) -> Image.Image:
    """30 of the examples at most, spread over them; what is broken says why."""
    chosen = np.unique(np.linspace(0, len(ids) - 1, _COLUMNS * _ROWS).round().astype(int))
    keys = [key for key in fields if key is not None]
    records = read_each(source, ids[chosen], keys)
    height = _CELL + _LINE * (_LINES + 1) + _GAP
    rows = -(-len(records) // _COLUMNS)
    size = (_COLUMNS * (_CELL + _GAP) + _GAP, rows * height + _GAP)
    sheet, font = Image.new("RGB", size, _PAPER), ImageFont.load_default(_FONT)
    ink = ImageDraw.Draw(sheet)
    for place, (example, record) in enumerate(zip(ids[chosen].tolist(), records, strict=True)):
        x = _GAP + place % _COLUMNS * (_CELL + _GAP)
        y = _GAP + place // _COLUMNS * height
        picture, caption = _cell(record, fields)
        if picture is not None:
            picture.thumbnail((_CELL, _CELL))
            left, top = (_CELL - picture.width) // 2, (_CELL - picture.height) // 2
            sheet.paste(picture, (x + left, y + top))
        ink.rectangle((x - 1, y - 1, x + _CELL, y + _CELL), outline=_EDGE)
        y += _CELL + 3
        ink.text((x, y), str(example), fill=_FAINT, font=font)
        for i, line in enumerate(_lines(caption, ink, font), 1):
            ink.text((x, y + i * _LINE), line, fill=_INK, font=font)
    return sheet


def _cell(record: dict | BadExample, fields: Fields) -> tuple[Image.Image | None, str]:
    if isinstance(record, BadExample):
        return None, f"broken: {record.reason}"
    caption = "; ".join(texts(record[fields.caption])) if fields.caption else ""
    value = record[fields.image]
    try:
        pixels = decode(value) if isinstance(value, bytes) else value
    except BadExample as error:
        return None, f"broken: {error.reason}"
    picture = Image.fromarray(pixels.squeeze())
    small = max(picture.size) * 2 <= _CELL  # whole pixels, not a blur
    times = _CELL // max(picture.size) if small else 1
    wide, high = picture.width * times, picture.height * times
    return picture.resize((wide, high), Image.Resampling.NEAREST), caption


def _lines(text: str, ink: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont) -> Iterator[str]:
    """As much of it as fits, broken at spaces where it can be."""
    rest = " ".join(text.split())
    for number in range(1, _LINES + 1):
        fits = len(rest)
        while fits and ink.textlength(rest[:fits], font) > _CELL:
            fits -= 1
        if fits == len(rest):
            yield rest
            return
        if number == _LINES:
            yield rest[: max(fits - 2, 0)] + "..."
            return
        cut = rest.rfind(" ", 0, fits + 1)
        cut = cut if cut > 0 else fits
        yield rest[:cut]
        rest = rest[cut:].lstrip()
