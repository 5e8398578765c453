"""The page of a run, report.html: results, curves, pictures, config, where its time went.

  python -m mm.report.run WORKDIR

Reads what a run leaves in its workdir, also of one that still runs or was killed, and says what is
not there. Needs neither JAX nor the network.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from mm.config import flatten
from mm.report import curves, examples, html
from mm.report.html import Html
from mm.report.measures import is_share
from mm.runtime import goodput, metrics
from mm.runtime.progress import duration
from mm.runtime.workdir import write_atomic

_LEFT = "config.json", "metrics.jsonl"  # by every run that has begun
_KS = "recall@1", "recall@5", "recall@10", "median_rank"
_DIRECTIONS = {"text_to_image": "text → image", "image_to_text": "image → text"}


def write(workdir: os.PathLike | str, evaluation: os.PathLike | str | None = None) -> epath.Path:
    """Writes the page and returns its path.

    evaluation: the directory of a `--mode=eval`, whose results and pictures it then shows, and
    where it is written; by default those of the end of training, in the workdir.
    """
    path = epath.Path(evaluation or workdir) / "report.html"
    write_atomic(path, build(workdir, evaluation))
    return path


def leave_page(workdir: os.PathLike | str, evaluation: os.PathLike | str | None = None) -> str:
    """`write` for the end of a run: returns a line that says where the page is.

    Or why there is none: what is trained and saved must not fail for its picture.
    """
    try:
        return f"all of it on one page: {write(workdir, evaluation)}"
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        again = f"python -m mm.report.run {workdir}"
        return f"warning: report.html was not written ({why}); to see where it fails: {again}"


def build(workdir: os.PathLike | str, evaluation: os.PathLike | str | None = None) -> str:
    """The page as text; the same files give the same text."""
    workdir = epath.Path(workdir)
    found = epath.Path(evaluation) if evaluation else workdir
    config, results = _json(workdir / "config.json"), _json(found / "results.json")
    environment = _json(workdir / "environment.json") or {}
    starts = goodput.read(workdir / "goodput.json")
    lines = metrics.read(workdir / "metrics.jsonl")
    evals = list((config or {}).get("evals") or {})
    is_last = results is not None
    if results is None:
        results = next((hit for line in reversed(lines) if (hit := _of_evals(line, evals))), None)
    shown = {
        path.stem: json.loads(path.read_text())
        for path in sorted((found / "report").glob("*.json"))
    }
    shown = {name: shown[name] for name in [*evals, *shown] if name in shown}
    pictures = examples.sections(shown) or [("Retrieval", _no_pictures(config, is_last))]
    none = "No goodput.json: the run was made by an older version, or has not made a step."
    sections = [
        ("Results", _results(results, lines, config, is_last)),
        ("Curves", _curves(lines, config, evals)),
        *pictures,
        ("Time and memory", curves.times(lines, starts, none)),
        ("Config", _config(config, _json(workdir / "recipe.json"))),
        ("Environment", _environment(environment, workdir)),
    ]
    below = html.join(
        [
            html.paragraph(
                _status(lines, config, starts, environment, found if evaluation else None)
            ),
            _tiles(results, lines, starts),
        ]
    )
    title = workdir.resolve().name if "://" not in os.fspath(workdir) else workdir.name
    return html.page(title, sections, below=below, style=examples.STYLE + curves.STYLE)


def _json(path: epath.Path) -> Any:
    """What a file holds; None without it."""
    return json.loads(path.read_text()) if path.exists() else None


def _of_evals(line: Mapping[str, Any], evals: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key.split("/")[0] in evals}


def _status(
    lines: Sequence[Mapping],
    config: Mapping | None,
    starts: Sequence[Mapping],
    environment: Mapping,
    evaluation: epath.Path | None,
) -> str:
    """One line: how far it came, where, when."""
    step, total = lines[-1]["step"] if lines else 0, (config or {}).get("total_steps")
    parts = [f"step {step:,}" + (f" of {total:,}" if total else "")]
    if starts:
        parts.append(starts[-1]["ended"] or ("finished" if step == total else "not finished"))
    if evaluation is not None:
        parts.insert(0, f"evaluation {evaluation.name}")
    devices = environment.get("devices")
    if devices:
        parts.append(f"{devices['count']} × {devices['kind']}")
    if environment.get("time"):
        parts.append(environment["time"])
    if git := environment.get("git"):
        parts.append(f"git {git['revision'][:10]}{' with changes' if git['dirty'] else ''}")
    return " · ".join(parts)


def _tiles(results: Mapping | None, lines: Sequence[Mapping], starts: Sequence[Mapping]) -> Html:
    """The figures that are looked for first."""
    found = {}
    for key, value in (results or {}).items():
        name, _, metric = key.rpartition("/")
        evaluation, _, direction = name.rpartition("/")
        if metric == "recall@1" and direction in _DIRECTIONS:
            found[f"{evaluation}: {_DIRECTIONS[direction]} R@1"] = f"{100 * value:.1f}%"
    if lines and "loss" in lines[-1]:
        found["loss"] = f"{lines[-1]['loss']:.4g}"
    if lines and (rate := lines[-1].get("examples_per_second")):
        found["examples a second"] = f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"
    if starts:
        found["wall time"] = duration(sum(goodput.summary(starts).values()))
        found["goodput"] = f"{curves.good(starts):.0%}"
    return html.tiles(found)


def _results(
    results: Mapping | None, lines: Sequence[Mapping], config: Mapping | None, is_last: bool
) -> Html:
    """Recalls in a table, other results in another."""
    if not results:
        return html.paragraph("None yet: no results.json, and no line of metrics.jsonl has any.")
    parts = []
    if not is_last:
        parts.append(html.paragraph("The latest of an evaluation during training."))
    groups: dict[str, dict[str, Any]] = {}
    rest = []
    for key, value in results.items():
        name, _, metric = key.rpartition("/")
        if metric in _KS:
            groups.setdefault(name, {})[metric] = value
        elif metric != "pool_size":
            rest.append([key, _metric(key, value)])
    rows = []
    for name, values in groups.items():
        evaluation, _, direction = name.rpartition("/")
        rows.append(
            [
                evaluation or name,
                _DIRECTIONS.get(direction, direction),
                *(_metric(metric, values.get(metric)) for metric in _KS),
                _number(results.get(f"{evaluation}/pool_size")),
            ]
        )
    if rows:
        header = ["evaluation", "query → found", "R@1", "R@5", "R@10", "median rank", "pool"]
        parts.append(html.table(rows, header))
    best = ((config or {}).get("checkpoint") or {}).get("keep_best")
    values = [
        (line[best], line["step"]) for line in lines if math.isfinite(line.get(best, math.nan))
    ]
    if values:
        value, step = max(values)
        shown = f"Best {best}: {_metric(best, value)} at step {step:,}."
        parts.append(html.paragraph(shown))
    if rest:
        table = html.table(rest, ["result", "value"])
        parts.append(table if len(rest) <= 8 else html.details(f"{len(rest)} more", table))
    return html.join(parts)


def _metric(name: str, value: Any) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f}%" if is_share(name) else _number(value)


def _number(value: Any) -> str:
    if value is None:
        return ""
    value = float(value)
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e15 else f"{value:.5g}"


def _curves(lines: Sequence[Mapping], config: Mapping | None, evals: Sequence[str]) -> Html:
    if not lines:
        return html.paragraph("None: no metrics.jsonl, or no step of it yet.")
    return curves.training(lines, list((config or {}).get("objectives") or {}), evals)


def _no_pictures(config: Mapping | None, is_last: bool) -> Html:
    """Why there are none."""
    kinds = {spec.get("name") for spec in ((config or {}).get("evals") or {}).values()}
    if config is not None and "retrieval" not in kinds:
        why = "config.evals has no retrieval."
    elif not is_last:
        why = "pictures are drawn by the evaluation at the end of training, and by --mode=eval."
    else:
        why = "the evaluation left none: its source has no captions or no pictures, or it was made "
        why += "by an older version (python main.py --mode=eval makes a new one)."
    return html.paragraph(f"No pictures: {why}")


def _config(config: Mapping | None, recipe: Mapping | None) -> Html:
    """The differences to the recipe, then all of it."""
    if config is None:
        return html.paragraph("No config.json in this workdir.")
    if recipe is None:
        parts = [html.paragraph("Recipe not found: what differs from it is not known.")]
    else:
        given, plain = dict(flatten(config)), dict(flatten(recipe["config"]))

        def value(values: Mapping, key: str) -> str:
            return json.dumps(values[key], ensure_ascii=False) if key in values else "—"

        rows = [
            [key, value(plain, key), value(given, key)]
            for key in sorted(given.keys() | plain.keys())
            if value(plain, key) != value(given, key)
        ]
        said = f"{len(rows)} keys differ from" if len(rows) != 1 else "One key differs from"
        said = said if rows else "As in"
        parts = [html.paragraph(f"{said} ", html.element("code", recipe["name"]), ".")]
        parts += [html.table(rows, ["key", "recipe", "this run"])] if rows else []
    whole = json.dumps(config, indent=2, ensure_ascii=False)
    return html.join([*parts, html.details("The whole config", html.preformatted(whole))])


def _environment(environment: Mapping, workdir: epath.Path) -> Html:
    if not environment:
        return html.paragraph("No environment.json in this workdir.")
    known = {key: value for key, value in environment.items() if key not in ("packages", "command")}
    shown = {key: value for key, value in flatten(known) if value is not None and value != {}}
    shown["command"] = html.element("code", " ".join(environment.get("command", [])))
    parts = [html.facts(shown)]
    if packages := environment.get("packages"):
        parts.append(html.details("Packages", html.facts(packages)))
    if (parameters := workdir / "parameters.txt").exists():
        text = html.preformatted(parameters.read_text())
        parts.append(html.details("Parameters: shapes and how they are split", text))
    return html.join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page of a workdir and prints where it is."""
    parser = argparse.ArgumentParser(
        prog="python -m mm.report.run",
        description="Writes report.html of a run, again or before it has ended.",
    )
    parser.add_argument("workdir", help="that of the run")
    parser.add_argument("--evaluation", help="a directory that --mode=eval wrote, as eval-480")
    flags = parser.parse_args(arguments)
    workdir = epath.Path(flags.workdir)
    evaluation = workdir / flags.evaluation if flags.evaluation else None
    for path in (workdir, evaluation or workdir):
        if not path.is_dir():
            print(
                f"error: {path}: no such directory; expected the workdir of a run", file=sys.stderr
            )
            return 2
    if not any((workdir / name).exists() for name in _LEFT):
        print(
            f"error: {workdir}: is no workdir of a run, which has a {' or a '.join(_LEFT)}; give "
            "the --workdir of main.py (of a sweep: python -m mm.report.sweep)",
            file=sys.stderr,
        )
        return 2
    print(write(workdir, evaluation))
    return 0


if __name__ == "__main__":
    sys.exit(main())
