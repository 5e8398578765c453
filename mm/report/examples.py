"""The part of a run's page with pictures: what was found, the worst, similarities, words.

Drawn from the JSON that `mm.evals.examples` leaves.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mm.report import classes, html, texts
from mm.report.explanations import heated, overlay
from mm.report.html import Html, element

STYLE = """
.queries { display: grid; gap: .8rem 2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
.query { border-top: 1px solid var(--rule); padding-top: .4rem; min-width: 0; }
.row { display: flex; flex-wrap: wrap; gap: .3rem; margin-top: .3rem; align-items: flex-start; }
.hit { width: clamp(2.95rem, 13vw, 4.6rem); text-align: center; font-size: .75rem;
  line-height: 1.25; color: var(--quiet); }
.hit img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #fff;
  border: 1px solid var(--rule); border-radius: .25rem; }
.hit.right { color: var(--right); font-weight: 700; }
.hit.right img { border: 3px solid var(--right); }
.hit.own { margin-left: .5rem; }
.hit.map { width: clamp(4.4rem, 21vw, 6rem); }
.texts { margin: 0; padding-left: 1.3rem; font-size: .85rem; flex: 1 1 12rem; min-width: 0; }
.texts .right { color: var(--right); font-weight: 700; }
.matrix td, .matrix th { border: 0; padding: 1px; }
.matrix th { font-weight: 400; max-width: 10rem; overflow: hidden; text-overflow: ellipsis; }
.matrix img { width: 1.6rem; height: 1.6rem; object-fit: contain; background: #fff; }
.matrix i { display: block; width: 1.6rem; height: 1.6rem; background: var(--line-0); }
.matrix .own { outline: 2px solid var(--right); outline-offset: -2px; }
"""
KINDS = {
    "attention": "Attention between the tokens of a word and each place, in the fusion: the mean "
    "over its heads and layers that join text and image. Each map is scaled from its lowest place "
    "to its highest, whose weight is below.",
    "occlusion": "In this model no word attends to the picture. Shown is by how much the "
    "similarity with a word falls when a part of the picture is painted over in its mean colour "
    "(largest fall below each). Maps of a picture share a scale; the first is of the caption.",
}
OTHERS = {  # by "kind"; without one it is a retrieval
    "classes": ("Classes", classes.section),
    "texts": ("Texts", texts.section),
}
POOL = "Last, where the tower's pooling attends to, whatever the word."


def retrieval(shown: Mapping[str, Any]) -> Html:
    """Queries with what was found for them, in both directions."""
    size = f"{shown['pool_size']:,}"
    parts = [
        html.paragraph(
            f"The best five of {size} for each text, with their similarity; the right one is "
            "framed and ticked. Where it is not among them it stands last.",
            quiet=True,
        ),
        element("h3", "Worst failures: texts whose picture is found last"),
        _queries(shown, "text_to_image", "worst"),
        element("h3", "Texts spread evenly over the pool"),
        _queries(shown, "text_to_image", "even"),
    ]
    other = [
        element("h3", "Worst failures"),
        _queries(shown, "image_to_text", "worst"),
        element("h3", "Pictures spread evenly over the pool"),
        _queries(shown, "image_to_text", "even"),
    ]
    return html.join([*parts, html.details(f"Pictures to texts: the best five of {size}", *other)])


def _queries(shown: Mapping[str, Any], direction: str, kind: str) -> Html:
    rows = shown[direction][kind]
    if not rows:
        return html.paragraph("None: each finds its own first.")
    draw = _of_text if direction == "text_to_image" else _of_picture
    return element("div", *(draw(shown, row) for row in rows), class_="queries")


def _of_text(shown: Mapping[str, Any], row: Mapping[str, Any]) -> Html:
    """A text and the pictures that were found."""
    own, place = row["query"], row["rank"] + 1
    hits = [
        _hit(shown, index, f"✓ {score:.2f}" if index == own else f"{score:.2f}", index == own)
        for index, score in row["found"]
    ]
    if own not in (index for index, _ in row["found"]):
        hits.append(_hit(shown, own, f"✓ {row['score']:.2f}", True, "own"))
    head = element("div", element("b", shown["captions"][str(own)]), " ", _rank(place))
    return element("div", head, element("div", *hits, class_="row"), class_="query")


def _of_picture(shown: Mapping[str, Any], row: Mapping[str, Any]) -> Html:
    """A picture and the texts that were found."""
    own, place = row["query"], row["rank"] + 1

    def line(index: int, score: float, more: str = "") -> Html:
        tick = "✓ " if index == own else ""
        text = f"{tick}{shown['captions'][str(index)]} ({score:.2f}{more})"
        return element("li", text, class_="right" if index == own else None)

    lines = [line(index, score) for index, score in row["found"]]
    if own not in (index for index, _ in row["found"]):
        last = element("ol", line(own, row["score"]), start=place, class_="texts")
    else:
        last = None
    texts = element("div", element("ol", *lines, class_="texts"), last, style="flex:1;min-width:0")
    picture = _hit(shown, own, f"rank {place:,}", False)
    return element("div", element("div", picture, texts, class_="row"), class_="query")


def _rank(place: int) -> Html:
    return element("span", "found first" if place == 1 else f"rank {place:,}", class_="quiet")


def _hit(shown: Mapping, index: int, below: str, right: bool, *classes: str) -> Html:
    caption = shown["captions"].get(str(index), f"picture {index}")
    picture = html.picture(base64.b64decode(shown["pictures"][str(index)]), caption)
    kinds = ["hit", *(["right"] if right else []), *classes]
    return element("div", picture, below, class_=" ".join(kinds))


def similarity(shown: Mapping[str, Any]) -> Html:
    """Texts against pictures of a sample of pairs: the stronger the color, the more alike."""
    places, scores = shown["similarity"]["places"], np.array(shown["similarity"]["scores"], float)
    finite = scores[np.isfinite(scores)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    share = np.nan_to_num((scores - low) / max(high - low, 1e-9))
    columns = [
        element("td", html.picture(base64.b64decode(shown["pictures"][str(i)]), str(i)))
        for i in places
    ]
    rows = [element("tr", element("th"), *columns)]
    for i, place in enumerate(places):
        cells = [
            element(
                "td",
                element("i", style=f"opacity:{share[i, j]:.2f}"),
                title=f"{scores[i, j]:.2f}",
                class_="own" if i == j else None,
            )
            for j in range(len(places))
        ]
        rows.append(element("tr", element("th", shown["captions"][str(place)]), *cells))
    note = (
        f"{len(places)} pairs spread evenly over the pool: texts down, pictures across; the pairs "
        f"are framed. No colour is a similarity of {low:.2f}, full colour {high:.2f}."
    )
    table = element("table", html.join(rows), class_="matrix")
    box = element("div", table, class_="scroll", tabindex="0")
    return html.join([html.paragraph(note, quiet=True), box])


def word_maps(maps: Mapping[str, Any] | None) -> Html:
    """Where the model finds words."""
    if maps is None:
        return html.paragraph("Left out: the evaluation was asked for none (maps=0).")
    if maps["kind"] not in KINDS:
        return html.paragraph("Left out: this model reads no single pictures (clips have no maps).")
    if not any(example["words"] for example in maps["examples"]):
        return html.paragraph("Left out: no caption of the sample has such a word.")
    pooled = any(example["pool"] is not None for example in maps["examples"])
    parts = [html.paragraph(KINDS[maps["kind"]], f" {POOL}" if pooled else "", quiet=True)]
    return html.join([*parts, _examples(maps)])


def _examples(maps: Mapping[str, Any]) -> Html:
    rows = []
    for example in maps["examples"]:
        picture = Image.open(io.BytesIO(base64.b64decode(example["picture"]))).convert("RGB")
        found = [np.array(grid, np.float32) for _, grid in example["words"]]
        shared = max((grid.max() for grid in found), default=0.0)
        hits = [_map(example["caption"], _webp(picture), "")]
        for (word, _), grid in zip(example["words"], found, strict=True):
            of_caption = maps["kind"] == "occlusion" and word == example["caption"]
            word = "all of it" if of_caption else word
            if maps["kind"] == "occlusion":
                heat, most = (
                    _webp(overlay(picture, grid, 0.0, shared)),
                    f"−{max(grid.max(), 0):.2f}",
                )
            else:
                heat, most = _webp(heated(picture, grid)), f"{grid.max():.0%}"
            hits.append(_map(word, heat, f"{word} {most}"))
        if example["pool"] is not None:
            grid = np.array(example["pool"], np.float32)
            heat = _webp(heated(picture, grid))
            hits.append(_map("pooling", heat, f"(pooling) {grid.max():.0%}"))
        head = element("div", element("b", example["caption"]))
        rows.append(element("div", head, element("div", *hits, class_="row"), class_="query"))
    return element("div", *rows, class_="queries")


def _map(alt: str, picture: bytes, below: str) -> Html:
    return element("div", html.picture(picture, alt), below, class_="hit map")


def _webp(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def sections(found: Mapping[str, Mapping[str, Any]]) -> Sequence[tuple[str, Html]]:
    """(heading, body) of each evaluation."""
    parts = []
    for name, shown in found.items():
        if shown.get("kind") in OTHERS:
            heading, section = OTHERS[shown["kind"]]
            parts.append((f"{heading}: {name}", section(shown)))
            continue
        body = [
            retrieval(shown),
            element("h3", "Similarity matrix"),
            similarity(shown),
            element("h3", "Where the model finds words"),
            word_maps(shown.get("maps")),
        ]
        parts.append((f"Retrieval: {name}", html.join(body)))
    return parts
