import json

import numpy as np
import pytest

from mm.config import BadInput
from mm.report import scaling
from mm.report.scaling import fit, law, sentences

TRUE = np.array([1.5, 40.0, 0.35])  # E, A, alpha
SIZES = np.array([1e3, 3e3, 1e4, 3e4, 1e5, 3e5])
X = np.repeat(SIZES, 3)


def noisy(seed, noise=0.01, x=X):
    return law(TRUE, x) * np.exp(np.random.default_rng(seed).normal(0, noise, len(x)))


def test_a_law_without_noise_is_found():
    found = fit(SIZES, law(TRUE, SIZES), resamples=5)
    assert found.parameters == pytest.approx(TRUE, rel=1e-3) and found.doubts == []
    assert found.predict(1e7)[0] == pytest.approx(law(TRUE, np.array([1e7]))[0], rel=1e-3)


def test_a_law_of_a_floor_of_zero_is_found():
    y = 7 * SIZES**-0.5
    assert fit(SIZES, y, resamples=5).parameters == pytest.approx([0, 7, 0.5], abs=1e-2)


def test_intervals_cover_what_made_the_points():
    """95% of them would; of 12 laws, 9 or more for each parameter and for a prediction."""
    inside = np.zeros(4)
    for seed in range(12):
        found = fit(X, noisy(seed), resamples=40, seed=seed)
        for i, value in enumerate(TRUE):
            low, high = found.interval(i)
            inside[i] += low <= value <= high
        _, low, high = found.predict(3e6)
        inside[3] += low <= law(TRUE, np.array([3e6]))[0] <= high
    assert (inside >= 9).all(), inside


def test_an_interval_grows_with_the_noise():
    widths = []
    for noise in (0.005, 0.02):
        low, high = fit(X, noisy(0, noise), resamples=40).interval(2)
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]


def test_one_wild_point_moves_the_law_little():
    y = noisy(0)
    y[4] *= 3
    assert fit(X, y, resamples=2).parameters[2] == pytest.approx(TRUE[2], rel=0.15)


def test_the_same_points_give_the_same_intervals():
    first, second = (fit(X, noisy(3), resamples=10) for _ in range(2))
    assert first.interval(0) == second.interval(0)


def test_points_that_do_not_fall_determine_nothing():
    y = np.exp(np.random.default_rng(0).normal(0, 0.02, len(X)))
    found = fit(X, y, resamples=40)
    assert any("y falls by less" in doubt for doubt in found.doubts)
    assert sentences(found, None, "loss")[-1].startswith("NOT DETERMINED: ")


def test_sizes_too_near_to_each_other_determine_nothing():
    x = np.repeat([1000.0, 1200.0, 1400.0, 1700.0], 3)
    found = fit(x, noisy(0, x=x), resamples=40)
    assert any("x reaches over a factor of 1.7 only" in doubt for doubt in found.doubts)


@pytest.mark.parametrize("x", [[1, 2, 3], [1, 1, 2, 2, 3, 3], [1, 2, 3, 4]])
def test_too_few_points_are_refused(x):
    with pytest.raises(BadInput, match="at least 5 points at 4 different x"):
        fit(x, [1.0] * len(x))


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_what_no_power_law_takes_is_refused(value):
    with pytest.raises(BadInput, match="finite x and y above 0"):
        fit([1, 2, 3, 4, 5], [5, 4, 3, 2, value])


def test_far_from_the_points_is_said_to_be_far():
    found = fit(SIZES, law(TRUE, SIZES), resamples=3)
    assert "100 times the greatest x" in sentences(found, 3e7, "loss")[2]
    assert len(sentences(found, 1e6, "loss")) == 2


def a_sweep(folder, better="lower", **more):
    """Of one seed; the loss of an arm is the law of its width."""
    record = {
        "metric": "loss", "better": better, "seeds": [0], "failed": {}, "runs": str(folder),
        "arms": {
            f"w{width}": {
                "overrides": {"width": width}, "parameters": 10 * width, "flops_of_a_step": 2.0,
                "global_batch_size": 4, "set": {"total_steps": 5},
            }
            for width in (1000, 3000, 10_000, 30_000, 100_000)
        },
    } | more  # fmt: skip
    for name, arm in record["arms"].items():
        run = folder / name / "seed-0"
        run.mkdir(parents=True)
        value = law(TRUE, np.array([arm["overrides"]["width"]]))[0]
        results = {"loss": value if better == "lower" else 1 - value / 10}
        (run / "results.json").write_text(json.dumps(results))
    (folder / "sweep.json").write_text(json.dumps(record))


def test_a_sweep_is_fitted_and_the_fit_written(tmp_path, capsys):
    a_sweep(tmp_path)
    assert scaling.main([str(tmp_path), "--x=width", "--target=300000"]) == 0
    written = json.loads((tmp_path / "scaling.json").read_text())
    assert written["parameters"]["alpha"] == pytest.approx(0.35, rel=1e-2)
    assert written["target"][1] == pytest.approx(law(TRUE, np.array([3e5]))[0], rel=1e-3)
    assert (tmp_path / "scaling.svg").exists() and (tmp_path / "scaling.png").exists()
    assert "alpha = 0.35" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text, flags, said",
    [
        (None, [], "points.csv: cannot be read (No such file or directory); expected a CSV"),
        ("", [], "--x=x: no column of"),
        ("tokens,loss\n1,2\n", ["--x=token"], "did you mean 'tokens'?; it has ['tokens', 'loss']"),
        ("tokens,loss\n1,2\n", ["--x=tokens"], "--y=y: no column of"),
        ("x,y\n1,2\n2,high\n", [], "points.csv, line 3: y='high' is no number"),
        ("x,y\n1\n", [], "line 2: y=None is no number"),
    ],
)
def test_a_csv_file_that_is_none_is_refused_in_one_line(tmp_path, capsys, text, flags, said):
    if text is not None:
        (tmp_path / "points.csv").write_text(text)
    assert scaling.main([f"{tmp_path}/points.csv", *flags]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_x_may_be_what_an_arm_is_and_be_scaled(tmp_path):
    a_sweep(tmp_path)
    x, y, name = scaling.read_points(tmp_path, "parameters", None)
    assert x[:2] == [10_000, 30_000] and len(y) == 5 and name == "loss"


def test_a_metric_that_is_better_higher_becomes_an_error(tmp_path):
    a_sweep(tmp_path, better="higher")
    _, y, name = scaling.read_points(tmp_path, "width", None)
    assert name == "1 - loss" and y[0] == pytest.approx(law(TRUE, np.array([1e3]))[0] / 10)


def test_a_csv_file_is_fitted(tmp_path, capsys):
    lines = [f"{x},{y}" for x, y in zip(SIZES, law(TRUE, SIZES), strict=True)]
    (tmp_path / "points.csv").write_text("\n".join(["tokens,loss", *lines]))
    assert scaling.main([f"{tmp_path}/points.csv", "--x=tokens", "--y=loss"]) == 0
    assert "alpha = 0.35" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--x=widht"], "did you mean 'width'"),
        (["--x=width", "--target=-1"], "expected an x above 0"),
        (["--x=width", "--y=los"], "did you mean 'loss'"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(tmp_path, capsys, flags, said):
    a_sweep(tmp_path)
    assert scaling.main([str(tmp_path), *flags]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
