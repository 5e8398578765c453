"""What was dropped and why, and what examples are like before and after: report.json, report.md."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from data.prepare.scan import SIZES

Part = dict[str, Any]  # counts of some examples; parts are added by `merged`

_EXAMPLES = 5  # of each reason are named, those with the smallest numbers
_SIDES = [0, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096]
# What is counted, from a row of `scan.SIZES`, and where its bins begin; the last has no end.
_COUNTED = {
    "shorter side, pixels": (lambda row: np.minimum(row["height"], row["width"]), _SIDES),
    "longer / shorter side": (
        lambda row: (
            np.maximum(row["height"], row["width"])
            / np.maximum(np.minimum(row["height"], row["width"]), 1)
        ),
        [1, 1.1, 1.25, 1.5, 2, 3, 4, 8],
    ),
    "caption, characters": (
        lambda row: row["characters"],
        [0, 1, 5, 10, 20, 40, 80, 160, 320, 640, 1280],
    ),
    "caption, words": (lambda row: row["words"], [0, 1, 2, 3, 5, 8, 12, 20, 32, 64, 128]),
}


def dropped(ids: Sequence[int], reasons: Sequence[str]) -> Part:
    """Examples and why each of them goes."""
    found: Part = {}
    for example, reason in zip(ids, reasons, strict=True):
        entry = found.setdefault(reason, {"count": 0, "examples": []})
        entry["count"] += 1
        if len(entry["examples"]) < _EXAMPLES:
            entry["examples"].append(int(example))
    return {"dropped": found}


def histograms(when: str, sizes: Int[np.ndarray, "n 4"]) -> Part:
    """when: "read", before anything is dropped, or "kept"."""
    row = dict(zip(SIZES, sizes.T, strict=True))
    counts = {}
    for name, (value, edges) in _COUNTED.items():
        counts[name] = np.histogram(value(row), [*edges, np.inf])[0].tolist()
    return {when: len(sizes), "histograms": {when: counts}}


def evaluated(name: str, count: int, broken: Mapping[str, int]) -> Part:
    """Pictures that others were compared with, and those that could not be, by reason."""
    return {"evaluation": {name: {"pictures": count, "broken": dict(broken)}}}


def merged(parts: Iterable[Part]) -> Part:
    """Their sum: numbers are added, also those in lists; of the examples named, the first stay."""
    return functools.reduce(_added, parts, {})


def _added(a: Part, b: Part) -> Part:
    total = dict(a)
    for key, value in b.items():
        if key not in a:
            total[key] = value
        elif key == "examples":
            total[key] = sorted(a[key] + value)[:_EXAMPLES]
        elif isinstance(value, dict):
            total[key] = _added(a[key], value)
        elif isinstance(value, list):
            total[key] = [x + y for x, y in zip(a[key], value, strict=True)]
        else:
            total[key] = a[key] + value
    return total


def report(part: Part, num_examples: int) -> dict[str, Any]:
    """The whole report. Raises ValueError when an example is neither kept nor dropped."""
    lost = part.get("dropped", {})
    gone = {key: lost[key] for key in sorted(lost, key=lambda key: (-lost[key]["count"], key))}
    counted = part["kept"] + sum(entry["count"] for entry in gone.values())
    if counted != num_examples:
        raise ValueError(f"{counted} of {num_examples} examples are accounted for")
    counts = part["histograms"]
    tables = {
        name: {"from": edges, "read": counts["read"][name], "kept": counts["kept"][name]}
        for name, (_, edges) in _COUNTED.items()
    }
    return {
        "examples": num_examples,
        "kept": part["kept"],
        "dropped": gone,
        "evaluation": part.get("evaluation", {}),
        "histograms": tables,
    }


def markdown(found: Mapping[str, Any], title: str) -> str:
    """The report as tables."""
    total, kept = found["examples"], found["kept"]
    lines = [
        f"# {title}",
        "",
        f"{kept:,} of {total:,} examples were kept ({kept / total:.1%}).",
        "",
    ]
    rows = [
        (reason, f"{entry['count']:,}", f"{entry['count'] / total:.2%}",
         ", ".join(map(str, entry["examples"])))
        for reason, entry in found["dropped"].items()
    ]  # fmt: skip
    lines += _table(("dropped because", "examples", "share", "as"), rows) if rows else []
    rows = [
        (name, f"{entry['pictures']:,}", *_broken(entry["broken"]))
        for name, entry in found["evaluation"].items()
    ]
    lines += _table(("evaluation", "pictures", "not compared", "because"), rows) if rows else []
    for name, table in found["histograms"].items():
        starts = [f"{edge:g}" for edge in table["from"]]
        rows = [
            (f"{start} to {end}" if end else f"{start} and more", f"{read:,}", f"{kept:,}")
            for start, end, read, kept in zip(
                starts, [*starts[1:], ""], table["read"], table["kept"], strict=True
            )
            if read
        ]
        lines += _table((name, "before", "kept"), rows)
    return "\n".join(lines)


def _broken(reasons: Mapping[str, int]) -> tuple[str, str]:
    return f"{sum(reasons.values()):,}", ", ".join(sorted(reasons)) or "-"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["|".join(["", *(f" {cell} " for cell in row), ""]) for row in [head, *rows]]
    return [lines[0], "|" + " --- |" * len(head), *lines[1:], ""]
