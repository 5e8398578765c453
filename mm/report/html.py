"""A page in one file: its style and pictures inside, no network, no script.

Every builder escapes the text that it is given; what is `Html` already goes in as it is.
"""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from mm.report.colors import DARK, LIGHT

_STYLE = """
:root { color-scheme: light dark; %s }
@media (prefers-color-scheme: dark) { :root { %s } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .3rem 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p { margin: .4rem 0; max-width: 50rem; }
a { color: var(--link); }
nav a { display: inline-block; margin-right: 1rem; padding: .15rem 0; }
code, pre { font: .85rem/1.45 ui-monospace, monospace; }
pre { margin: 0; padding: .6rem; background: var(--sheet); overflow-x: auto; white-space: pre; }
.scroll { overflow-x: auto; max-width: 100%%; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .25rem .7rem .25rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--rule); overflow-wrap: normal; }
td:first-child { overflow-wrap: anywhere; min-width: 6rem; }
.facts { margin: .5rem 0; }
.facts td { overflow-wrap: anywhere; }
th { color: var(--quiet); font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
caption { text-align: left; color: var(--quiet); }
.quiet { color: var(--quiet); font-size: .9rem; }
.grid { display: grid; gap: .8rem 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%%, 20rem), 1fr)); }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; margin: .6rem 0; }
.tile { background: var(--sheet); border-radius: .4rem; padding: .4rem .8rem; flex: 1 1 8.5rem;
  max-width: 15rem; }
.tile b { display: block; font-size: 1.25rem; line-height: 1.3; }
figure { margin: 0; min-width: 0; }
figcaption { color: var(--quiet); font-size: .85rem; line-height: 1.35; }
img, svg { max-width: 100%%; height: auto; }
svg { display: block; width: 100%%; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
.pixels { image-rendering: pixelated; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--link); padding: .2rem 0; }
"""


class Html(str):
    """Markup: nothing escapes it again."""


def html(content: Any) -> Html:
    """Text as markup; None as nothing."""
    if isinstance(content, Html):
        return content
    return Html("" if content is None else escape(str(content)))


def join(parts: Iterable[Any], between: str = "\n") -> Html:
    """One after the other."""
    return Html(html(between).join(html(part) for part in parts))


def element(tag: str, /, *content: Any, **attributes: Any) -> Html:
    """`element("p", "a < b", class_="quiet")`; attributes of None or False are left out."""
    shown = ""
    for key, value in attributes.items():
        if value is not None and value is not False:
            shown += " " + key.rstrip("_").replace("_", "-")
            shown += "" if value is True else f'="{escape(str(value))}"'
    if tag in ("img", "meta"):  # they have no end
        return Html(f"<{tag}{shown}>")
    return Html(f"<{tag}{shown}>{join(content, '')}</{tag}>")


def paragraph(*content: Any, quiet: bool = False) -> Html:
    """One paragraph; quiet for a note."""
    return element("p", *content, class_="quiet" if quiet else None)


def table(rows: Iterable[Sequence[Any]], header: Sequence[Any] = (), caption: Any = None) -> Html:
    """Rows of cells, in a box of its own that scrolls. A column of numbers stands to the right."""
    rows = [list(row) for row in rows]
    columns = max([len(header), *map(len, rows)], default=0)
    found = ([row[i] for row in rows if i < len(row)] for i in range(columns))
    kinds = ["number" if cells and all(map(_number, cells)) else None for cells in found]
    parts = [] if caption is None else [element("caption", caption)]
    if header:
        cells = (element("th", x, class_=kind) for x, kind in zip(header, kinds, strict=False))
        parts.append(element("thead", element("tr", *cells)))
    body = (
        element("tr", *(element("td", x, class_=kind) for x, kind in zip(row, kinds, strict=False)))
        for row in rows
    )
    parts.append(element("tbody", join(body)))
    # A region that scrolls must be in reach of the keyboard.
    return element("div", element("table", *parts), class_="scroll", tabindex="0")


def _number(cell: Any) -> bool:
    """Whether it is one, or reads as one: "12.3%", "1,479", "-0.5 ± 0.1"; an empty cell may be."""
    if isinstance(cell, int | float):
        return True
    return isinstance(cell, str) and bool(re.fullmatch(r"[-+−±~()\d.,%eE\s]*|nan|NaN", cell))


def facts(values: Mapping[Any, Any]) -> Html:
    """Names and what they are, one a line."""
    rows = (
        element("tr", element("th", name, scope="row"), element("td", value))
        for name, value in values.items()
    )
    return element("table", join(rows), class_="facts")


def tiles(values: Mapping[str, str]) -> Html:
    """The few figures that matter most: each name with its value above it."""
    found = (
        element("div", element("b", value), element("span", name, class_="quiet"), class_="tile")
        for name, value in values.items()
    )
    return element("div", *found, class_="tiles")


def picture(
    data: bytes, alt: str, *, caption: Any = None, width: int | None = None, pixels: bool = False
) -> Html:
    """A PNG or WebP inside of the page. width: in CSS pixels, or less on a phone.

    pixels: not smoothed.
    """
    kind = "webp" if data.startswith(b"RIFF") else "png"
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    image = element("img", src=source, alt=alt, width=width, class_="pixels" if pixels else None)
    return figure(image, caption) if caption is not None else image


def figure(content: Html, caption: Any = None) -> Html:
    """A chart or a picture, and what it shows."""
    below = [] if caption is None else [element("figcaption", caption)]
    return element("figure", content, *below)


def grid(parts: Iterable[Any]) -> Html:
    """As many side by side as there is room for."""
    return element("div", join(parts), class_="grid")


def details(summary: Any, *body: Any, opened: bool = False) -> Html:
    """What is read on demand."""
    return element("details", element("summary", summary), *body, open=opened)


def preformatted(text: str) -> Html:
    """Lines as they are, in a box that scrolls."""
    return element("pre", text, tabindex="0")


def page(
    title: str, sections: Iterable[tuple[str, Any]], *, below: Any = None, style: str = ""
) -> str:
    """The whole file. sections: (heading, body), in order; below: stands under the title.

    style: more CSS.
    """
    sections = list(sections)
    names = [f"section-{i}" for i in range(len(sections))]
    links = (element("a", head, href=f"#{n}") for n, (head, _) in zip(names, sections, strict=True))
    style = _STYLE % (_properties(LIGHT), _properties(DARK)) + style
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        Html(f"<style>{style}</style>"),
    ]
    body = [element("h1", title), html(below)]
    body += [element("nav", join(links))] if len(sections) > 1 else []
    body += [
        element("section", element("h2", heading), Html("\n"), content, id=name)
        for name, (heading, content) in zip(names, sections, strict=True)
    ]
    parts = element("head", join(head)), element("body", Html("\n"), join(body), Html("\n"))
    return f"<!DOCTYPE html>\n{element('html', join(parts), lang='en')}\n"


def _properties(colors: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {color};" for name, color in colors.items())
