"""The page of a run, from what a workdir holds."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mm.report import curves, run
from mm.report.explanations import overlay
from tests.report.workdirs import HOSTILE, write

VOID = {"meta", "img"}


class Reader(HTMLParser):
    """The text of a page, its headings, and whether its tags fit each other."""

    def __init__(self, page):
        super().__init__()
        self.open, self.headings, self.text, self.sources = [], [], "", []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.sources += [x for name, x in attributes if name in ("src", "href", "xlink:href")]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.sources += [x for name, x in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.fixture
def workdir(tmp_path):
    return write(tmp_path / "a run")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return run.build(write(tmp_path_factory.mktemp("page") / "a run"))


def test_results_come_first_then_curves_pictures_and_details(page):
    page = Reader(page)
    assert page.headings == [
        "Results", "Curves", "Retrieval: seen", "Time and memory", "Config", "Environment"
    ]  # fmt: skip
    for shown in (
        "a run", "step 40 of 40 · finished", "50.0%", "3:00", "Best seen/text_to_image/recall@1: "
        "62.5% at step 20", "fit/contrastive/loss", "1.25", "git 0123456789 with changes",
    ):  # fmt: skip
        assert shown in page.text, shown


def test_the_page_is_one_file_and_no_caption_or_key_is_markup(tmp_path):
    page = run.build(write(tmp_path / "run", caption=HOSTILE))
    found = Reader(page)
    assert "<script" not in page and HOSTILE in found.text
    assert all(source.startswith(("#", "data:image/")) for source in found.sources)
    assert len(found.sources) > 20 and not re.search(r"url\((?!#)|@import", page)


def test_the_same_files_give_the_same_page(workdir, page):
    assert run.build(workdir) == page


def test_the_right_one_is_marked_and_a_failure_has_its_rank(page):
    assert page.count('class="hit right"') == 1  # the one query that found its own
    assert page.count('class="hit right own"') == 2  # the failure, among the worst and the even
    assert "✓ 0.90" in page and "✓ -0.25" in page and "rank 18" in page
    assert page.count('class="own"') == 4  # the diagonal of the matrix


def test_what_differs_from_the_recipe_is_told_and_nothing_else(page):
    section = page[page.index("configs/tiny.py:size=S") :]
    rows = re.findall(r"<tr>(.*?)</tr>", section[: section.index("</table>")], re.DOTALL)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows[1:]]
    assert cells == [["model.image.width", "8", "16"], ["seed", "0", "1"]]


def test_time_is_told_with_what_a_kill_cost(page):
    text = Reader(page).text
    # 60 s of 30 steps, ten of which were made again, then 60 s; 80 s of a start, 20 s between.
    assert "Goodput 55.6%" in text and "2 starts" in text
    assert re.search(r"steps made again after a kill\s*0:20", text)
    assert re.search(r"between one start and the next\s*0:20", text)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("config.json", "No config.json"),
        ("recipe.json", "Recipe not found"),
        ("metrics.jsonl", "no metrics.jsonl"),
        ("environment.json", "No environment.json"),
        ("goodput.json", "No goodput.json"),
        ("report/seen.json", "No pictures: the evaluation left none"),
    ],
)
def test_what_is_missing_is_said(workdir, name, said):
    (workdir / name).unlink()
    assert said in Reader(run.build(workdir)).text


def test_an_empty_workdir_has_a_page_that_says_so(tmp_path):
    text = Reader(run.build(tmp_path)).text
    for said in ("step 0", "None yet", "No pictures", "No config.json"):
        assert said in text


def test_a_run_that_goes_on_shows_its_latest_evaluation(workdir):
    (workdir / "results.json").unlink()
    (workdir / "report" / "seen.json").unlink()
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(lines[:25]) + '{"step": 26, "lo')
    text = Reader(run.build(workdir)).text
    assert "step 25 of 40" in text and "latest of an evaluation during training" in text
    assert "62.5%" in text and "at the end of training" in text


def test_an_evaluation_has_a_page_of_its_own(workdir):
    evaluation = workdir / "eval-20"
    (evaluation / "report").mkdir(parents=True)
    (evaluation / "results.json").write_text('{"seen/text_to_image/recall@1": 0.125}')
    shown = json.loads((workdir / "report" / "seen.json").read_text())
    (evaluation / "report" / "seen.json").write_text(json.dumps(shown | {"pool_size": 77}))
    assert run.write(workdir, evaluation) == evaluation / "report.html"
    text = Reader((evaluation / "report.html").read_text()).text
    assert "evaluation eval-20" in text and "12.5%" in text and "best five of 77" in text


def test_shares_are_in_percent_beside_each_other(workdir):
    (workdir / "results.json").write_text('{"seen/f1/macro": 0.625, "seen/brier": 0.375}')
    text = Reader(run.build(workdir)).text
    assert "seen/f1/macro62.5%" in text and "seen/brier0.375" in text


def test_a_page_that_cannot_be_drawn_fails_no_run(workdir):
    (workdir / "results.json").write_text("{")
    line = run.leave_page(workdir)
    assert line.startswith("warning: report.html was not written (JSONDecodeError")
    assert not (workdir / "report.html").exists()


def test_the_command_writes_the_page_without_jax(workdir):
    code = (
        "import sys, mm.report.run as run\n"
        "code = run.main([sys.argv[1]])\n"
        "print({'jax', 'tensorflow', 'matplotlib.pyplot'} & sys.modules.keys() or 'none', code)"
    )
    done = subprocess.run([sys.executable, "-c", code, workdir], capture_output=True, text=True)
    assert done.stdout.splitlines() == [str(workdir / "report.html"), "none 0"], done.stderr


def test_a_folder_that_is_not_there_is_told(tmp_path, capsys):
    assert run.main([str(tmp_path / "none")]) == 2
    assert "no such directory" in capsys.readouterr().err


def test_a_folder_of_something_else_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("no run")
    assert run.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "is no workdir of a run, which has a config.json" in error and error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_long_curves_are_thinned_to_means():
    lines = [{"step": i, "loss": float(i % 2)} for i in range(1, 10_001)]
    found = curves.curve(lines, "loss")
    assert len(found) <= 300 and found[-1][0] == 10_000
    assert all(abs(y - 0.5) < 0.05 for _, y in found)


def test_the_heat_is_where_the_map_is_high():
    picture = Image.new("RGB", (32, 32), "white")
    grid = np.array([[0.0, 1.0], [-1.0, 0.0]], np.float32)
    found = np.asarray(overlay(picture, grid, 0.0, 1.0), int)
    orange = found[..., 0] - found[..., 2]
    assert orange[2, 29] > 150 and abs(orange[29, 2]) < 20
    flat = np.asarray(overlay(picture, grid, 0.0, 0.0), int)
    assert abs(flat[..., 0] - flat[..., 2]).max() < 20
