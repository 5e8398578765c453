"""Two runs on the same examples: each metric, the difference, and whether it is one.

  python -m mm.report.compare workdirs/one workdirs/other

Each is the workdir of a run that has ended, or what --mode=eval wrote, WORKDIR/eval-480. Compared
are metrics made of what became of each example, which evaluators leave beside results.json: both
runs were asked about the same examples, so these are drawn again and again in pairs (Efron and
Tibshirani 1993, chapter 8), and what is hard for both cancels out. Examples that belong together,
as the captions of one picture, are drawn together. The interval says how far other examples might
move the difference; what another seed of training would do, only other runs tell (`launch.sweep`).
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from mm.config import BadInput, differences, flatten, listed
from mm.report import outcomes
from mm.report.outcomes import Outcome
from mm.report.statistics import LEVEL, bootstrap_pairs
from mm.report.table import shower

_SHOWN = 4  # names in a message
_PLACES = ("data_dir", "index_dir", "cache_mib")  # of a source: where it is, not what
_HOW = ("batch_size", "max_bad_share", "maps", "words")  # of an evaluator: no metric's meaning


class Compared(NamedTuple):
    """A metric of both runs; difference: second minus first; interval: of that."""

    metric: str
    first: float
    second: float
    difference: float
    interval: tuple[float, float]
    count: int

    @property
    def verdict(self) -> str:
        low, high = self.interval
        if math.isnan(low):
            return "no number in some resamples"
        if low <= 0 <= high:
            return "not distinguishable"
        return "second is higher" if low > 0 else "second is lower"


def compare(
    first: epath.Path, second: epath.Path, other_preprocess: bool = False
) -> tuple[list[Compared], dict[str, list[str]]]:
    """The metrics that both have as outcomes, and the names of the others by why they are not here.

    other_preprocess: the two may have other ops. Raises BadInput when a run has no outcomes, they
    are not those of its results, or the two are of different sources, ops, evaluators or examples.
    """
    (one, results), (other, others) = map(read_outcomes, (first, second))
    names = [name for name in one if name in other]
    check_alike(first, second, other_preprocess)
    if not names:
        raise BadInput(
            f"{first} and {second}: have no evaluation in common ({sorted(one)[:_SHOWN]} and "
            f"{sorted(other)[:_SHOWN]}); evaluate both by one config: --mode=eval"
        )
    compared = []
    for name in names:
        base, arm = one[name], other[name]
        if base.ids.tolist() != arm.ids.tolist():
            raise BadInput(
                f"{name}: {first} was evaluated on {len(base.ids):,} examples, {second} on "
                f"{len(arm.ids):,}, not the same ones; evaluate both by one config: --mode=eval"
            )
        if not same_draws(base, arm):
            raise BadInput(
                f"{name}: {first} and {second} keep other things of the same examples, as of two "
                "versions or other classes; evaluate both by one: --mode=eval"
            )
        how = dict(kind=base.kind, clusters=base.clusters)
        difference, interval = bootstrap_pairs(base.values, arm.values, **how)
        count = len(np.unique(base.ids if base.clusters is None else base.clusters))
        found = base.metric, arm.metric, difference, interval, count
        compared.append(Compared(name, *found))
    rest = {
        "not made of outcomes of examples, so without an interval": [
            key for key in results if key in others and key not in names
        ],
        "only in first": [key for key in results if key not in others],
        "only in second": [key for key in others if key not in results],
    }
    return compared, {why: keys for why, keys in rest.items() if keys}


def same_draws(base: Outcome, arm: Outcome) -> bool:
    """Whether the same examples are drawn together in both, and values are of one shape."""
    if (base.kind, np.shape(base.values)) != (arm.kind, np.shape(arm.values)):
        return False
    return np.array_equal(base.clusters, arm.clusters) or base.clusters is arm.clusters


def check_alike(first: epath.Path, second: epath.Path, other_preprocess: bool) -> None:
    """Raises BadInput when evaluations of one name are of other sources, ops or evaluators."""
    for file in sorted((first / outcomes.FOLDER).glob("*.npz")):
        if not (second / outcomes.FOLDER / file.name).exists():
            continue
        one, other = map(outcomes.read_of, (file, second / outcomes.FOLDER / file.name))
        for part, but, otherwise in (
            ("source", _PLACES, "on another source"),
            ("evaluator", _PLACES + _HOW, "in another way"),
        ):
            if changed := differences(_without(other[part], but), _without(one[part], but)):
                raise BadInput(
                    f"{file.stem}: {second} was evaluated {otherwise} than {first} ({changed}); "
                    "evaluate both by one config: --mode=eval"
                )
        ops = [each["preprocess"].split("|") for each in (one, other)]
        if ops[0] != ops[1] and not other_preprocess:
            alone = (sorted({*ops[i]} - {*ops[1 - i]}) or ops[i] for i in (0, 1))
            only = " and ".join("|".join(each) for each in alone)
            raise BadInput(
                f"{file.stem}: {first} and {second} were evaluated with different ops ({only}); "
                "evaluate both by one config, or say --other_preprocess if that is what you compare"
            )


def _without(config: Mapping, names: Sequence[str]) -> dict:
    """The leaves by dotted key, but those so named, whatever they are within."""
    return {key: x for key, x in flatten(config) if key.rpartition(".")[2] not in names}


def read_outcomes(path: epath.Path) -> tuple[dict[str, Outcome], dict[str, float]]:
    """{"seen/text_to_image/recall@1": ...} of a folder, and its results.json."""
    folder, results = path / outcomes.FOLDER, path / "results.json"
    if not results.exists():
        raise BadInput(
            f"{path}: has no results.json; expected a run that has ended, or WORKDIR/eval-STEP"
        )
    files = sorted(folder.glob("*.npz")) if folder.exists() else []
    if not files:
        raise BadInput(
            f"{path}: has no outcomes/*.npz; none of its evaluators leaves any, or it is of an "
            "older version: --mode=eval makes them"
        )
    known = json.loads(results.read_text())
    found = {
        f"{file.stem}/{metric}": outcome
        for file in files
        for metric, outcome in outcomes.read(file).items()
    }
    kept = {name: outcome for name, outcome in found.items() if name in known}
    for name, outcome in kept.items():
        both = outcome.metric, known[name]
        if not (all(map(math.isnan, both)) or math.isclose(*both, rel_tol=1e-9, abs_tol=1e-12)):
            raise BadInput(
                f"{path}: results.json says {name} is {known[name]:g}, its outcomes say "
                f"{outcome.metric:g}; evaluate again: --mode=eval"
            )
    return kept, known


def table(compared: Sequence[Compared]) -> str:
    """Aligned lines; shares as percentages."""
    rows = [("", "first", "second", "difference", f"{LEVEL:.0%} interval", "")]
    for row in compared:
        show = shower(row.metric)
        low, high = (show(x, signed=True) for x in row.interval)
        values = show(row.first), show(row.second), show(row.difference, signed=True)
        rows.append((row.metric, *values, f"{low} to {high}", row.verdict))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells, verdict in rows:
        shown = [cell.rjust(width) for cell, width in zip(cells, widths[1:-1], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *shown, verdict]).rstrip())
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mm.report.compare")
    for name in ("first", "second"):
        parser.add_argument(name, type=epath.Path, help="a workdir, or WORKDIR/eval-STEP")
    parser.add_argument(
        "--other_preprocess",
        action="store_true",
        help="compare although the ops differ, as by their resolution or tokenizer",
    )
    flags = parser.parse_args(arguments)
    try:
        compared, rest = compare(flags.first, flags.second, flags.other_preprocess)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    counts = [row.count for row in compared]
    ends = sorted({min(counts), max(counts)})
    print(f"first: {flags.first}\nsecond: {flags.second}\n\n{table(compared)}\n")
    print(
        f"paired bootstrap over {' to '.join(f'{count:,}' for count in ends)} examples; of "
        f"{len(compared)} true differences of zero, {len(compared) * (1 - LEVEL):.1f} would be "
        "called different"
    )
    for why, keys in rest.items():
        print(f"{why}: {listed(keys, _SHOWN)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
