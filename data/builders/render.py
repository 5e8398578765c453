"""Icons of an Iconify set as PNG pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping

import resvg_py
from PIL import Image

from data.sources import BadExample

SIZE = 64  # pixels, both sides


def svg(icon: Mapping) -> str:
    """The whole SVG document of one icon; Iconify keeps only what is inside the <svg> element.

    `icon` has `body`, `width` and `height`, and may have `left`, `top` (the view box's corner),
    `hFlip`, `vFlip` and `rotate` (quarter turns): iconify.design/docs/types/iconify-icon.html.
    An icon that is not square is centred on the square canvas, not stretched.
    """
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = icon["width"], icon["height"]
    body, moves = icon["body"], []
    quarter_turns = icon.get("rotate", 0) % 4
    horizontal, vertical = bool(icon.get("hFlip")), bool(icon.get("vFlip"))
    if horizontal:
        moves.append(f"translate({2 * left + width} 0) scale(-1 1)")
    if vertical:
        moves.append(f"translate(0 {2 * top + height}) scale(1 -1)")
    if quarter_turns:
        # Iconify turns after it flips, and the transform written first is applied last.
        x, y = left + width / 2, top + height / 2
        moves.insert(0, f"rotate({90 * quarter_turns} {x:g} {y:g})")
        if quarter_turns % 2:  # the centre stays, the sides change places
            left, top, width, height = x - height / 2, y - width / 2, height, width
    if moves:
        body = f'<g transform="{" ".join(moves)}">{body}</g>'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIZE}" height="{SIZE}" viewBox="{left:g} {top:g} {width:g} {height:g}">'
        f"{body}</svg>"
    )


def png(document: str, name: str) -> bytes:
    """The document as an RGB PNG of SIZE x SIZE pixels, on white.

    Raises:
      BadExample: the document is not SVG that resvg can draw; the line has `name`.
    """
    try:
        drawn = resvg_py.svg_to_bytes(
            svg_string=document,
            background="#ffffff",
            width=SIZE,
            height=SIZE,
            dpi=96,  # resvg_py's default of 0 makes lengths in points or millimetres vanish
            skip_system_fonts=True,  # the same bytes on every machine, and much faster
        )
    except ValueError as error:
        message = f"the picture {name} is damaged: {error}"
        raise BadExample(message, "SVG cannot be drawn") from error
    with Image.open(io.BytesIO(drawn)) as image:
        picture = image.convert("RGB")  # the background is opaque, so no colour changes
    out = io.BytesIO()
    picture.save(out, format="PNG", compress_level=6)
    return out.getvalue()
