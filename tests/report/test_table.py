"""The table and the page of a sweep; tests/launch/test_sweep.py has a golden one."""

import csv
import json
import math
from functools import partial

import pytest

from mm.config import BadInput
from mm.report.arms import make_rows, read_record, read_runs
from mm.report.sweep import curve, curve_key, main, write_report
from tests.report.workdirs import METRIC, write_sweep


@pytest.fixture
def sweep(tmp_path):
    """write({arm: {seed: value}}, ...) -> the folder; a value of None: a run not finished."""

    return partial(write_sweep, tmp_path)


def rows(folder):
    record = read_record(folder)
    return make_rows(record, read_runs(record))


def test_a_share_is_shown_in_percent_and_written_as_it_is(sweep):
    folder = sweep({"a": {0: 0.1, 1: 0.2}, "b": {0: 0.15, 1: 0.26}})
    write_report(folder)
    assert "| b | 2/2 | 20.5 ± 7.8 | +5.5 | +5.0 to +6.0 |" in (folder / "table.md").read_text()
    with open(folder / "table.csv") as file:
        found = list(csv.DictReader(file))
    assert float(found[1]["mean"]) == pytest.approx(0.205) and found[0]["difference"] == ""


def test_time_is_that_of_all_steps_at_the_median_rate(sweep):
    lines = [{"step": i, "loss": 1.0, "examples_per_second": r} for i, r in enumerate((8, 5, 1), 1)]
    assert rows(sweep({"a": {0: 0.1}, "b": {0: 0.1}}, lines=lines))[0].seconds == 40 / 5


def test_what_is_trained_and_the_memory_of_a_step_are_shown_where_arms_differ(sweep):
    line = {"step": 10, "loss": 2.0, "examples_per_second": 8.0, "memory/step": 0.5}
    folder = sweep({"a": {0: 0.1}, "b": {0: 0.2}}, lines=[line])
    write_report(folder)
    alike = (folder / "table.md").read_text()
    assert "trained" not in alike and "memory" not in alike and "| 1,234 | 1e+07 |" in alike
    record = json.loads((folder / "sweep.json").read_text())
    record["arms"]["b"]["frozen"] = 1000
    (folder / "sweep.json").write_text(json.dumps(record))
    (folder / "b/seed-0/metrics.jsonl").write_text(json.dumps(line | {"memory/step": 0.25}) + "\n")
    write_report(folder)
    table = (folder / "table.md").read_text()
    assert "| parameters | trained | FLOPs | examples | steps | memory | time |" in table
    assert "| 1,234 | 234 | 1e+07 | 40 | 10 | 256 MiB | 5 s |" in table
    page = (folder / "report.html").read_text()
    assert "trained</th>" in page and "256 MiB" in page
    with open(folder / "table.csv") as file:
        found = list(csv.DictReader(file))
    assert [row["trained"] for row in found] == ["1234", "234"]
    assert [float(row["step_bytes"]) for row in found] == [2**29, 2**28]


def test_a_run_that_is_not_finished_and_a_metric_that_is_no_number_are_failures(sweep):
    folder = sweep({"a": {0: 0.1, 1: 0.2}, "b": {0: None, 1: math.nan}})
    found = rows(folder)[1]
    assert found.summary is None and found.verdict == "no seed that both have finished"
    assert [run.failure for run in found.runs] == ["is not finished", "the metric is nan"]
    write_report(folder)
    assert "FAILED b/seed-1: the metric is nan" in (folder / "table.md").read_text()


def test_what_failed_counts_as_that_even_with_older_results(sweep):
    failed = {"b/seed-0": {"exit_code": -9, "last_line": "step 3"}}
    found = rows(sweep({"a": {0: 0.1}, "b": {0: 0.2}}, failed=failed))[1]
    assert found.runs[0].failure == "exit code -9: step 3" and found.summary is None


def test_a_metric_of_no_run_is_refused_with_the_nearest(sweep):
    folder = sweep({"a": {0: 0.1}, "b": {0: 0.2}}, metric="seen/text_to_image/recal@10")
    with pytest.raises(BadInput, match="did you mean 'seen/text_to_image/recall@10'"):
        rows(folder)


def test_the_table_of_another_metric_is_printed_and_not_written(sweep, capsys):
    folder = sweep({"a": {0: 0.1, 1: 0.2}, "b": {0: 0.15, 1: 0.26}})
    write_report(folder)
    before = (folder / "table.md").read_text()
    for path in folder.rglob("results.json"):
        path.write_text(json.dumps({"other/recall@1": 2 * json.loads(path.read_text())[METRIC]}))
    assert main([str(folder), "--metric=other/recall@1"]) == 0
    printed = capsys.readouterr().out
    assert "| b | 2/2 | 41.0 ±" in printed and "written" not in printed
    assert (folder / "table.md").read_text() == before
    assert main([str(folder), "--metric=other/recal@1"]) == 2
    assert "did you mean 'other/recall@1'" in capsys.readouterr().err


def test_one_seed_gets_a_table_that_promises_nothing(sweep):
    folder = sweep({"a": {0: 0.1}, "b": {0: 0.2}})
    write_report(folder)
    assert "| b | 1/1 | 20.0 | +10.0 |  |  | one seed" in (folder / "table.md").read_text()


def test_the_page_escapes_what_arms_say(sweep):
    folder = sweep({"a": {0: 0.1, 1: 0.2}, "b": {0: 0.2, 1: 0.2}})
    write_report(folder)
    page = (folder / "report.html").read_text()
    assert "&lt;b&gt;" in page and "<b>" not in page.replace("<body", "")


def test_the_page_links_to_those_of_runs(sweep):
    folder = sweep({"a": {0: 0.1, 1: 0.2}, "b": {0: 0.2, 1: 0.2}})
    (folder / "b/seed-1/report.html").write_text("")
    write_report(folder)
    page = (folder / "report.html").read_text()
    assert 'href="b/seed-1/report.html"' in page and "a/seed-1/report.html" not in page


def test_curves_are_of_the_metric_if_it_was_evaluated_on_the_way(sweep):
    lines = [{"step": 5, "loss": 2.0, METRIC: 0.1}, {"step": 10, "loss": 1.0, METRIC: 0.3}]
    found = rows(sweep({"a": {0: 0.1, 1: 0.2}, "b": {0: 0.2}}, lines=lines))
    assert curve_key(METRIC, [run for row in found for run in row.runs]) == METRIC
    assert curve(found[0], METRIC) == [(20.0, 0.1, 0.1, 0.1), (40.0, 0.3, 0.3, 0.3)]


def test_curves_are_of_the_loss_else(sweep):
    found = rows(sweep({"a": {0: 0.1}, "b": {0: 0.2}}))
    assert curve_key(METRIC, [run for row in found for run in row.runs]) == "loss"
    assert curve(found[0], "loss") == [(40.0, 2.0, 2.0, 2.0)]


def test_a_folder_without_a_sweep_is_refused(tmp_path):
    with pytest.raises(BadInput, match="has no sweep.json"):
        read_record(tmp_path)
