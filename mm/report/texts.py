"""The part of a run's page with written texts: pictures, what was asked, written, and right."""

import base64
from collections.abc import Mapping
from typing import Any

from mm.report import html
from mm.report.html import Html, element


def section(shown: Mapping[str, Any]) -> Html:
    """Examples spread evenly over the evaluation."""
    rows = [_row(row) for row in shown["rows"]]
    note = f"{len(rows)} of {shown['examples']:,} examples, spread evenly over them."
    return html.join([html.paragraph(note, quiet=True), element("div", *rows, class_="queries")])


def _row(row: Mapping[str, Any]) -> Html:
    picture = html.picture(base64.b64decode(row["picture"]), row["references"][0])
    lines = []
    if asked := row.get("asked"):
        lines.append(element("div", asked, class_="quiet"))
    tick = {True: "✓ ", False: "✗ ", None: ""}[row.get("right")]
    lines.append(element("div", element("b", f"{tick}{row['written'] or '(nothing)'}")))
    if not row.get("right"):
        lines.append(element("div", " · ".join(row["references"]), class_="quiet"))
    hit = element("div", picture, class_="hit")
    texts = element("div", *lines, style="flex:1;min-width:0")
    return element("div", element("div", hit, texts, class_="row"), class_="query")
