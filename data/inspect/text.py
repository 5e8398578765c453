"""What was found, in words: plain text for a terminal of 80 columns."""

import bisect
import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from unicodedata import east_asian_width

import numpy as np

from data.inspect.examine import Fields, Found
from data.sources import Feature, Source

WIDTH = 80
_NAMED = 5  # examples of a fault, captions that repeat


def describe(spec: Mapping[str, Any], source: Source, fields: Fields, found: Found) -> list[str]:
    """The lines."""
    said = ", ".join(f"{key}={value!r}" for key, value in spec.items() if key != "name")
    share = "all" if found.examples == len(source) else f"{found.examples:,}"
    lines = [
        *_wrapped(f"{spec['name']}: {said}"),
        f"{len(source):,} examples; looked at {share} of them",
        "",
        *_fields(source.features, found.first),
    ]
    if fields.image is not None:
        lines += ["", *_pictures(fields.image, found)]
    if fields.caption is not None:
        lines += ["", *_captions(fields.caption, found)]
    return [line.rstrip() for line in [*lines, "", *_broken(found)]]


def _fields(features: Mapping[str, Feature], first: Mapping[str, Any] | None) -> list[str]:
    rows = []
    for key, feature in features.items():
        value = _shown(first[key]) if first and key in first else ""
        rows.append((key, _kind(feature), value))
    return ["fields", *_table(rows, align="<<<")]


def _kind(feature: Feature) -> str:
    kind = {"image": "picture"}.get(feature.dtype, feature.dtype)
    shape = f" {list(feature.shape)}" if feature.shape else ""
    return f"{kind}{shape}" + (", a list" if feature.ragged else "")


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, np.ndarray) and value.size > 8:
        return f"{value.size:,} numbers"
    if isinstance(value, np.ndarray | np.generic):
        return str(value.tolist())
    if isinstance(value, list) and any(isinstance(item, bytes) for item in value):
        return f"{len(value)} of bytes"
    return repr(value)


def _pictures(key: str, found: Found) -> list[str]:
    lines = [f"pictures ({key}): {len(found.sizes):,} decoded"]
    if not found.sizes:
        return lines
    height, width, size = np.array(found.sizes, float).T
    rows = [
        _spread("width, pixels", width),
        _spread("height, pixels", height),
        _spread("width / height", width / height, digits=2),
        _spread("bytes, thousand", size / 1000, digits=1),
    ]
    formats = [f"{name} {count:,}" for name, count in found.formats.most_common()]
    return [*lines, *_table([_HEAD, *rows]), *_wrapped("  formats: " + ", ".join(formats))]


def _captions(key: str, found: Found) -> list[str]:
    count = sum(found.captions.values())
    lines = [f"captions ({key}): {count:,}"]
    if not count:
        return lines
    rows = [_HEAD, _spread("characters", found.characters), _spread("words", found.words)]
    if found.tokens:
        rows.append(_spread("tokens", found.tokens))
    if set(found.captions_each) != {1}:
        rows.append(_spread("of an example", found.captions_each))
    lines += _table(rows)
    empty = sum(n for caption, n in found.captions.items() if not caption.strip())
    repeated = [(caption, n) for caption, n in found.captions.most_common() if n > 1]
    again = sum(n - 1 for _, n in repeated)
    lines.append(f"  empty: {empty:,}; the same as an earlier one: {again:,} ({again / count:.1%})")
    named = sorted(repeated, key=lambda pair: (-pair[1], pair[0]))[:_NAMED]
    return lines + [_cut(f"    {n:,} times {caption!r}") for caption, n in named]


def _broken(found: Found) -> list[str]:
    total = sum(map(len, found.broken.values()))
    lines = [f"broken: {total:,} of {found.examples:,}"]
    for reason, examples in sorted(found.broken.items(), key=lambda item: -len(item[1])):
        named = ", ".join(map(str, sorted(examples)[:_NAMED]))
        more = ", ..." if len(examples) > _NAMED else ""
        lines += _wrapped(f"  {len(examples):,} {reason}: examples {named}{more}")
    return lines


_HEAD = ("", "min", "median", "mean", "max")


def _spread(name: str, values: Sequence[float], digits: int = 0) -> tuple[str, ...]:
    numbers = (np.min(values), np.median(values), np.mean(values), np.max(values))
    return name, *(f"{number:,.{digits}f}" for number in numbers)


def _table(rows: Iterable[Sequence[str]], align: str = "<>>>>") -> list[str]:
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        _cut("  " + "  ".join(f"{c:{a}{w}}" for c, a, w in zip(row, align, widths, strict=True)))
        for row in rows
    ]


def _cut(line: str) -> str:
    """Not wider than the terminal, where a Chinese character takes two columns."""
    line = line.rstrip()
    ends = list(itertools.accumulate(2 if east_asian_width(c) in "WF" else 1 for c in line))
    if not ends or ends[-1] <= WIDTH:
        return line
    return line[: bisect.bisect(ends, WIDTH - 3)] + "..."


def _wrapped(line: str) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(
        line.lstrip(), WIDTH, initial_indent=indent, subsequent_indent=indent + "  "
    )
