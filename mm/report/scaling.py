"""A saturating power law, E + A x^-alpha, through the losses of several sizes or data amounts.

  python -m mm.report.scaling workdirs/sweeps/data_amount --x=input.source.last --target=10

x is `parameters`, `flops` or `examples` of an arm, or the number that a key has in it; a CSV file
with columns x and y does as well. Where the metric is better when higher, y is 1 - metric. Prints
the fit, and writes scaling.json and a plot. It says so when the points do not determine the law.
"""

import argparse
import csv
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy.optimize import least_squares

from mm.config import BadInput, suggest
from mm.report import chart
from mm.report.arms import examples_of, read_record, read_runs
from mm.runtime.workdir import write_atomic, write_json

Vector = Float[np.ndarray, " n"]

NAMES = ("E", "A", "alpha")
_HUBER = 1.345  # standard deviations: 95% as efficient as least squares when noise is normal
_STEEPEST = 5.0  # of alpha; no law that anybody has reported is above 2
_STARTS = [(part, alpha) for part in (0.0, 0.5, 0.9) for alpha in (0.1, 0.3, 1.0, 2.0)]
_WIDE = 3.0  # an interval whose ends differ by this factor determines nothing
_FAR = 10.0  # times the greatest x: further is a guess about another regime
_TINY = 1e-12


class Fit(NamedTuple):
    """parameters: E, A, alpha; draws: the same of each bootstrap sample; doubts: why not to use it.

    x, y: what was fitted; noise: standard deviation of the residuals of log y.
    """

    parameters: Vector
    draws: Float[np.ndarray, "draws 3"]
    x: Vector
    y: Vector
    noise: float
    doubts: list[str]

    def interval(self, index: int, level: float = 0.95) -> tuple[float, float]:
        """Of a parameter, by percentiles."""
        return _percentiles(self.draws[:, index], level)

    def predict(self, x: float, level: float = 0.95) -> tuple[float, float, float]:
        """(y, low, high) at x: of the law, without the noise of a run."""
        drawn = np.array([law(draw, np.array([x]))[0] for draw in self.draws])
        return float(law(self.parameters, np.array([x]))[0]), *_percentiles(drawn, level)


def law(parameters: Sequence[float], x: Vector) -> Vector:
    """E + A x^-alpha."""
    floor, scale, alpha = parameters
    return floor + scale * x**-alpha


def fit(x: Sequence[float], y: Sequence[float], *, resamples: int = 400, seed: int = 0) -> Fit:
    """The law that lies nearest to the points, by residuals of log y under Huber's loss.

    As in Hoffmann et al. 2022, section 3.3 (there 1e-3 is the residual from which the loss is
    linear; here it is 1.345 of their robust deviation). Several y may be of one x, as of several
    seeds. Intervals are by a bootstrap of the residuals, of which there is one a point, made
    larger by sqrt(n / (n - 3)). Raises BadInput for fewer than 4 different x, or 5 points, or what
    is not above 0.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (x > 0).all() and (y > 0).all()):
        raise BadInput("a power law takes finite x and y above 0; leave out the others")
    if len(np.unique(x)) < 4 or len(x) < 5:
        raise BadInput(
            f"{len(x)} points at {len(np.unique(x))} different x: three parameters and their "
            "intervals take at least 5 points at 4 different x"
        )
    best = _fit(x, y, _starts(y), math.inf)
    for _ in range(3):  # the deviation is that of the residuals of its own fit
        scale = _HUBER * max(_deviation(_residuals(best, x, y)), _TINY)
        best = _fit(x, y, [best, *_starts(y)], scale)
    middle = law(best, x)
    residuals = _residuals(best, x, y)
    noise = (residuals - residuals.mean()) * math.sqrt(len(x) / (len(x) - len(NAMES)))
    random = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        drawn = middle * np.exp(-random.choice(noise, len(x)))
        draws.append(_fit(x, drawn, [best, _starts(drawn)[1]], scale))
    found = Fit(best, np.array(draws), x, y, float(np.std(noise)), [])
    return found._replace(doubts=doubts(found))


def doubts(found: Fit) -> list[str]:
    """Why the points do not determine the law; empty if they do."""
    said = []
    reach = found.x.max() / found.x.min()
    if reach < 4:
        said.append(f"x reaches over a factor of {reach:.2g} only; 4 is little, 100 is good")
    low, high = found.interval(2)
    if low <= 0.01 or high >= _STEEPEST * 0.99 or high > _WIDE * low:
        said.append(f"alpha is anything from {low:.2g} to {high:.2g}")
    low, high = found.interval(0)
    if high - low > 0.5 * found.y.min():
        said.append(f"the floor E is anything from {low:.3g} to {high:.3g}")
    fall = law(found.parameters, found.x)
    if fall.max() - fall.min() < 2 * found.noise * fall.mean():
        said.append("y falls by less than two standard deviations of a run")
    return said


def _residuals(parameters: Vector, x: Vector, y: Vector) -> Vector:
    return np.log(law(parameters, x)) - np.log(y)


def _fit(x: Vector, y: Vector, starts: Sequence[Sequence[float]], scale: float) -> Vector:
    """The best of what is found from each start (E, A, alpha); scale: of Huber's loss."""
    center = float(np.exp(np.log(x).mean()))  # there A and alpha depend on each other least
    relative, target = np.log(x / center), np.log(y)

    def power(values: Vector) -> Vector:
        return np.exp(np.minimum(values[1] - values[2] * relative, 300.0))  # less than inf

    def residuals(values: Vector) -> Vector:
        return np.log(values[0] + power(values)) - target

    def slopes(values: Vector) -> Float[np.ndarray, "n 3"]:
        whole, part = values[0] + power(values), power(values) / (values[0] + power(values))
        return np.stack([1 / whole, part, -relative * part], axis=1)

    bounds = ([0.0, -np.inf, 0.0], [float(y.min()), np.inf, _STEEPEST])
    inside = [1e-9 * float(y.min()), -np.inf, 1e-9], [0.999 * float(y.min()), np.inf, 4.999]
    loss = dict(loss="linear") if math.isinf(scale) else dict(loss="huber", f_scale=scale)
    found = []
    for floor, amount, alpha in starts:
        start = [floor, math.log(max(amount, _TINY)) - alpha * math.log(center), alpha]
        begin = np.clip(start, *inside)
        # dogbox finds the same as trf in half of the time.
        found.append(least_squares(residuals, begin, slopes, bounds, "dogbox", **loss))
    floor, logarithm, alpha = min(found, key=lambda one: one.cost).x
    return np.array([floor, math.exp(logarithm + alpha * math.log(center)), alpha])


def _starts(y: Vector) -> list[tuple[float, float, float]]:
    """(E, A, alpha) to begin from."""
    least, middle = float(y.min()), float(np.median(y))
    return [(part * least, middle - part * least, alpha) for part, alpha in _STARTS]


def _deviation(residuals: Vector) -> float:
    """Robust: 1.48 times the median of what they differ from their median."""
    return 1.4826 * float(np.median(np.abs(residuals - np.median(residuals))))


def _percentiles(values: Vector, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def read_points(path: Path, key: str, metric: str | None) -> tuple[list[float], list[float], str]:
    """(x, y, the name of y) of a sweep's folder or of a CSV file. Raises BadInput."""
    if path.suffix == ".csv":
        return _read_csv(path, key, metric or "y")
    record = read_record(path)
    record |= {"metric": metric} if metric else {}
    x, y = [], []
    for run in read_runs(record):
        if run.value is not None:
            x.append(_x_of(record["arms"][run.arm], run.arm, key))
            y.append(run.value)
    if record["better"] == "higher":
        if any(value > 1 for value in y):
            raise BadInput(f"{record['metric']}: is no share, so 1 - it is no error; take a loss")
        return x, [1 - value for value in y], f"1 - {record['metric']}"
    return x, y, record["metric"]


def _x_of(arm: dict, name: str, key: str) -> float:
    steps = arm["set"]["total_steps"]
    known = {
        "parameters": arm["parameters"],
        "flops": arm["flops_of_a_step"] * steps,
        "examples": examples_of(arm),
        **arm["overrides"],
    }
    if key not in known:
        raise BadInput(f"--x={key}: arm {name!r} has {list(known)}{suggest(key, known)}")
    if isinstance(known[key], bool) or not isinstance(known[key], int | float):
        raise BadInput(f"--x={key}: is {known[key]!r} in arm {name!r}, expected a number")
    return float(known[key])


def _read_csv(path: Path, key: str, metric: str) -> tuple[list[float], list[float], str]:
    try:
        with open(path, newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise BadInput(
            f"{path}: cannot be read ({why}); expected a CSV file with a line of names"
        ) from error
    for flag, name in (("--x", key), ("--y", metric)):
        if name not in columns:
            raise BadInput(
                f"{flag}={name}: no column of {path}{suggest(name, columns)}; it has {columns}"
            )
    for number, row in enumerate(rows, 2):
        for name in (key, metric):
            try:
                row[name] = float(row[name])
            except (TypeError, ValueError) as error:
                raise BadInput(
                    f"{path}, line {number}: {name}={row[name]!r} is no number; correct the line"
                ) from error
    return [row[key] for row in rows], [row[metric] for row in rows], metric


def sentences(found: Fit, target: float | None, name: str) -> list[str]:
    """The fit in words."""
    parts = []
    for index, parameter in enumerate(NAMES):
        low, high = found.interval(index)
        parts.append(f"{parameter} = {found.parameters[index]:.4g} ({low:.4g} to {high:.4g})")
    said = [
        f"{name} = E + A x^-alpha with {', '.join(parts)}; 95% intervals, {len(found.x)} points, "
        f"noise of a point {found.noise:.2%}"
    ]
    if target is not None:
        value, low, high = found.predict(target)
        said.append(f"at x = {target:g}: {value:.4g} ({low:.4g} to {high:.4g})")
        if (times := target / found.x.max()) > _FAR:
            said.append(
                f"that is {times:.3g} times the greatest x: no point says that the law holds"
            )
    if found.doubts:
        said.append("NOT DETERMINED: " + "; ".join(found.doubts))
    return said


def plot(found: Fit, target: float | None, key: str, name: str) -> Figure:
    """The points, the law and its interval, up to the target."""
    end = max(found.x.max(), target or 0)
    xs = np.geomspace(found.x.min(), end, 60)
    drawn = [(x, *found.predict(x)) for x in xs]
    points = [(x, y, math.nan, math.nan) for x, y in zip(found.x, found.y, strict=True)]
    return chart.points(
        {"runs": points}, x=key, y=name.rpartition("/")[2], log_x=True, log_y=True,
        fits={"law": [(x, y) for x, y, _, _ in drawn]},
        band={"law": [(x, low, high) for x, _, low, high in drawn]},
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses, fits, writes; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mm.report.scaling")
    parser.add_argument("points", type=Path, help="the folder of a sweep, or a CSV file")
    parser.add_argument("--x", default="x", help="parameters, flops, examples or a key of the arms")
    parser.add_argument("--times", type=float, default=1.0, help="what x is multiplied by")
    parser.add_argument("--y", help="a metric or a column (default: the sweep's metric, or y)")
    parser.add_argument("--target", type=float, help="the x to extrapolate to")
    parser.add_argument("--out", type=Path, help="a folder (default: that of the points)")
    flags = parser.parse_args(arguments)
    try:
        if flags.target is not None and not flags.target > 0:
            raise BadInput(f"--target={flags.target:g}: expected an x above 0")
        x, y, name = read_points(flags.points, flags.x, flags.y)
        found = fit([flags.times * value for value in x], y)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    said = sentences(found, flags.target, name)
    out = flags.out or (flags.points if flags.points.is_dir() else flags.points.parent)
    out.mkdir(parents=True, exist_ok=True)
    intervals = {key: found.interval(i) for i, key in enumerate(NAMES)}
    written = {
        "parameters": dict(zip(NAMES, found.parameters.tolist(), strict=True)),
        "intervals": intervals,
        "noise": found.noise,
        "doubts": found.doubts,
        "target": None if flags.target is None else [flags.target, *found.predict(flags.target)],
    }
    write_json(out / "scaling.json", written)
    figure = plot(found, flags.target, flags.x, name)
    write_atomic(out / "scaling.svg", chart.svg_file(figure))
    write_atomic(out / "scaling.png", chart.png(figure))
    print("\n".join(said))
    print(f"written to {out}: scaling.json, scaling.svg, scaling.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
