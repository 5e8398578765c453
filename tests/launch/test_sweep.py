"""Running a sweep, with fakes in place of training; the last test trains."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command_line import split_overrides
from launch import budget, pool, sweep
from launch.arms import Arm, make_sweep
from mm.config import BadInput, load, override, plain
from tests.launch import fakes

ROOT = Path(__file__).resolve().parents[2]
FAKES = [sys.executable, "tests/launch/fakes.py", "sweep"]
GOLDEN = ROOT / "tests/golden/sweep/table.md"
SECONDS = 120  # the longest that anything here may take
FILE = """
def get_sweep():
    return dict(
        config="configs/menu.py",
        axes=dict(list={"narrow": {}, "wide": {"width": 8}, "huge": {"width": 64}}),
        metric="unseen/score",
        budget=dict(examples=800),
    )
"""
RUNS = [f"{arm}/seed-{seed}" for seed in range(3) for arm in ("narrow", "wide", "huge")]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "widths.py"
    path.write_text(FILE)
    return path


def command(file, workdir, *flags):
    return [*FAKES, str(file), f"--workdir={workdir}", *flags]


def run(file, workdir, *flags, **variables):
    return subprocess.run(
        command(file, workdir, *flags), cwd=ROOT, env={**os.environ, **variables},
        capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip


@pytest.fixture
def here(monkeypatch, capfd):
    """Runs a sweep in this process, without a table: (exit code, what it said, its errors)."""
    monkeypatch.setattr(sweep, "COST", fakes.COST)
    monkeypatch.setattr(sweep, "TABLE", ["true"])
    monkeypatch.setattr(pool, "_POLL_SECONDS", 0.02)

    def run_here(file, workdir, *flags):
        code = sweep.main([str(file), f"--workdir={workdir}", f"--launcher={fakes.RUN}", *flags])
        return code, *capfd.readouterr()

    return run_here


def start(file, workdir, *flags, **variables):
    return subprocess.Popen(
        command(file, workdir, *flags), cwd=ROOT, env={**os.environ, **variables},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def starts(workdir):
    return [line.split()[0] for line in (workdir / "starts.txt").read_text().splitlines()]


def wait_for(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def pid_in(path):
    """Waits until the file holds a whole line, and reads it."""
    wait_for(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


def gone(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def tables(workdir):
    return [(workdir / name).read_text() for name in ("table.md", "table.csv", "runs.csv")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep that nothing disturbed: (its folder, what it printed)."""
    workdir = tmp_path_factory.mktemp("whole")
    file = workdir.with_suffix(".py").with_name("widths.py")
    file.write_text(FILE)
    done = run(file, workdir)
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def test_nothing_of_jax_tensorflow_or_numpy_is_loaded():
    code = (
        "import sys, launch.sweep as s; s.read_sweep('configs/ablations/fusion.py');"
        "print([m for m in ('jax', 'tensorflow', 'numpy', 'flax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_the_table_is_the_golden_one(whole):
    """Remake with: cp <workdir>/table.md tests/golden/sweep/table.md, and look at the diff."""
    assert (whole[0] / "table.md").read_text() == GOLDEN.read_text()


def test_every_arm_runs_on_every_seed_seed_by_seed(whole):
    assert starts(whole[0]) == RUNS


def test_what_is_written_beside_the_table(whole):
    workdir, said = whole
    page = (workdir / "report.html").read_text()
    assert "<svg" in page and "http://" not in page.replace("http://www.w3.org", "")
    for name in ("metric_by_compute", "curves"):
        assert (workdir / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (workdir / f"{name}.svg").read_text().rstrip().endswith("</svg>")
    assert "huge: +" in said and "distinguishable from seed noise" in said


def test_a_finished_run_is_not_repeated(file, tmp_path, whole):
    workdir = tmp_path / "runs"
    shutil.copytree(whole[0], workdir)
    (workdir / "table.csv").unlink()
    assert run(file, workdir).returncode == 0
    assert starts(workdir) == RUNS and tables(workdir) == tables(whole[0])


def test_a_failed_run_is_in_the_table_and_the_others_go_on(file, tmp_path, whole):
    workdir = tmp_path / "runs"
    shutil.copytree(whole[0], workdir)
    shutil.rmtree(workdir / "wide/seed-1")
    shutil.rmtree(workdir / "huge/seed-1")
    done = run(file, workdir, FAKE_FAIL="wide/seed-1")
    assert done.returncode == 1 and starts(workdir) == [*RUNS, "wide/seed-1", "huge/seed-1"]
    table = (workdir / "table.md").read_text()
    assert "FAILED wide/seed-1: exit code 1: error: the loss of step 7 is nan" in table
    assert "| wide | 2/3 |" in table and "| huge | 3/3 |" in table
    assert "FAILED wide/seed-1" in (workdir / "report.html").read_text()
    assert run(file, workdir).returncode == 0, "what failed is tried again"
    assert starts(workdir)[-1] == "wide/seed-1" and tables(workdir) == tables(whole[0])


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_a_sweep_killed_in_the_middle_leaves_no_run_and_goes_on_to_the_same_table(
    file, tmp_path, whole
):
    workdir = tmp_path / "runs"
    process = start(file, workdir, FAKE_HOLD="wide/seed-1")
    child = pid_in(workdir / "wide/seed-1/pid")
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=SECONDS)
    wait_for(lambda: gone(child))
    assert not (workdir / "table.md").exists()
    assert run(file, workdir).returncode == 0
    assert starts(workdir) == [*RUNS[:5], *RUNS[4:]], "only the one that was killed starts again"
    assert tables(workdir) == tables(whole[0])


def test_one_told_to_stop_lets_its_run_save_and_says_how_to_go_on(file, tmp_path):
    workdir = tmp_path / "runs"
    process = start(file, workdir, FAKE_HOLD="narrow/seed-0")
    pid_in(workdir / "narrow/seed-0/pid")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=SECONDS) == 75
    assert (workdir / "narrow/seed-0/saved").exists() and starts(workdir) == ["narrow/seed-0"]


def test_a_second_sweep_of_the_same_folder_is_refused(file, tmp_path):
    workdir = tmp_path / "runs"
    process = start(file, workdir, FAKE_HOLD="narrow/seed-0")
    pid_in(workdir / "narrow/seed-0/pid")
    code = (
        "import sys; from launch import sweep; sweep.LOCK_SECONDS = 0;"
        f"sys.exit(sweep.main([{str(file)!r}, '--workdir={workdir}']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    process.send_signal(signal.SIGTERM)
    assert done.returncode == 2 and f"is in use by pid {process.pid}" in done.stderr
    assert process.wait(timeout=SECONDS) == 75


def test_a_dry_run_prints_the_commands_and_starts_nothing(file, tmp_path, here):
    lines = here(file, tmp_path / "runs", "--dry_run")[1].splitlines()
    assert len(lines) == 1 + len(RUNS) and not (tmp_path / "runs").exists()
    assert lines[1].endswith(
        f"--config=configs/menu.py --workdir={tmp_path}/runs/narrow/seed-0 "
        "--config.total_steps=100 --config.optimizer.schedule.warmup_steps=10 --config.seed=0"
    )
    assert lines[2].endswith(
        f"--workdir={tmp_path}/runs/wide/seed-0 --config.width=8 --config.total_steps=100 "
        "--config.optimizer.schedule.warmup_steps=10 --config.seed=0"
    )


def test_a_launcher_of_ours_without_the_two_dashes_is_refused(file, tmp_path, capsys):
    flags = [f"--workdir={tmp_path / 'runs'}", "--launcher=python -m launch.gke --wait"]
    assert sweep.main([str(file), *flags]) == 2
    assert "ends without --" in capsys.readouterr().err and not (tmp_path / "runs").exists()


@pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda _: [])(0)) < 2, reason="one core")
def test_runs_side_by_side_have_cores_of_their_own(file, tmp_path, whole):
    workdir = tmp_path / "runs"
    assert run(file, workdir, "--parallel=2").returncode == 0
    assert sorted(starts(workdir)) == sorted(RUNS) and tables(workdir) == tables(whole[0])


def test_a_config_that_is_refused_names_the_arm_before_anything_runs(file, tmp_path, here):
    file.write_text(FILE.replace('"width": 64', '"wrong": 64'))
    code, _, errors = here(file, tmp_path / "runs")
    assert code == 2 and not (tmp_path / "runs/starts.txt").exists()
    assert errors == "error: arm 'huge': unknown config key 'wrong'\n"


def test_a_metric_of_no_evaluation_is_refused_before_anything_runs(file, tmp_path, here):
    file.write_text(FILE.replace("unseen/score", "unsen/score"))
    code, _, errors = here(file, tmp_path / "runs")
    assert code == 2 and not (tmp_path / "runs/starts.txt").exists()
    assert errors == (
        "error: metric 'unsen/score': config.evals of arm 'narrow' has no 'unsen'; "
        "did you mean 'unseen'? (have ['unseen'])\n"
    )


def test_a_metric_that_the_first_results_have_not_stops_the_sweep(file, tmp_path, here):
    file.write_text(FILE.replace("unseen/score", "unseen/scoer"))
    code, _, errors = here(file, tmp_path / "runs")
    assert code == 2 and starts(tmp_path / "runs") == ["narrow/seed-0"]
    assert "did you mean 'unseen/score'" in errors and errors.count("\n") == 1


def test_a_wrong_metric_leaves_the_table_and_its_record_as_they_were(file, tmp_path, whole, here):
    workdir = tmp_path / "runs"
    shutil.copytree(whole[0], workdir)
    file.write_text(FILE.replace("unseen/score", "unseen/scoer"))
    assert here(file, workdir)[0] == 2
    assert tables(workdir) == tables(whole[0])
    assert (workdir / "sweep.json").read_text() == (whole[0] / "sweep.json").read_text()


def test_one_that_saved_and_one_only_submitted_are_not_finished_but_not_failed(
    file, tmp_path, whole
):
    workdir = tmp_path / "runs"
    shutil.copytree(whole[0], workdir)
    shutil.rmtree(workdir / "wide/seed-1")
    shutil.rmtree(workdir / "huge/seed-1")
    done = run(file, workdir, FAKE_LATER="wide/seed-1=75,huge/seed-1=0")
    assert done.returncode == 75
    said = "NOT FINISHED, there are no results"
    assert f"wide/seed-1: {said}: exit code 75: wide/seed-1 begins\n" in done.stdout
    assert f"huge/seed-1: {said}: exit code 0\n" in done.stdout
    assert "2 of 9 runs are not finished (wide/seed-1, huge/seed-1); the same" in done.stdout
    table = (workdir / "table.md").read_text()
    assert "wide/seed-1: is not finished" in table and "exit code" not in table


def test_arms_whose_probe_is_not_there_are_in_the_table_without_runs(file, tmp_path):
    file.write_text(FILE.replace("examples=800", "seconds=100"))
    workdir = tmp_path / "runs"
    done = run(file, workdir, FAKE_LATER="wide/probe=75", FAKE_FAIL="huge/probe")
    assert done.returncode == 1 and not done.stderr
    probes, runs = ["narrow/probe", "wide/probe", "huge/probe"], RUNS[::3]
    assert starts(workdir) == [*probes, *runs], "the arm whose probe is there goes on"
    assert "3 of 9 runs are not finished (wide/seed-0, wide/seed-1, wide/seed-2);" in done.stdout
    table = (workdir / "table.md").read_text()
    assert "| narrow | 3/3 |" in table and "wide/seed-0: is not finished" in table
    assert "FAILED huge/seed-0: exit code 1: error: the loss of step 7 is nan" in table


def test_without_any_probe_there_is_an_empty_table_and_75(file, tmp_path):
    file.write_text(FILE.replace("examples=800", "seconds=100"))
    later = "narrow/probe=75,wide/probe=69,huge/probe=0"
    done = run(file, tmp_path / "runs", FAKE_LATER=later)
    assert done.returncode == 75 and len(starts(tmp_path / "runs")) == 3
    assert (tmp_path / "runs/table.md").read_text().count("is not finished") == 9


def test_seconds_are_turned_into_steps_by_a_probe(file, tmp_path, here):
    file.write_text(FILE.replace("examples=800", "seconds=100"))
    workdir = tmp_path / "runs"
    assert here(file, workdir)[0] == 0
    arms = json.loads((workdir / "sweep.json").read_text())["arms"]
    assert {arm["set"]["total_steps"] for arm in arms.values()} == {200}, "0.5 s is the median"
    assert starts(workdir)[:3] == ["narrow/probe", "wide/probe", "huge/probe"]


def test_a_probe_that_was_killed_and_continued_counts_no_step_that_compiled(tmp_path):
    """Rates of a start are of its steps after the first; (step, seconds since then)."""
    one = budget.Run("x/probe", [], {"global_batch_size": 8})
    first = [(1, None), *((1 + n, 0.5 * n) for n in range(1, 9))]
    second = [(10, None), *((10 + n, 3 + 0.5 * n) for n in range(1, 21))]  # it stumbles once
    lines = [
        {"step": step} | ({} if not time else {"examples_per_second": 8 * (step - begin) / time})
        for begin, start in ((1, first), (10, second))
        for step, time in start
    ]
    (tmp_path / "x/probe").mkdir(parents=True)
    path = tmp_path / "x/probe/metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert budget.step_seconds(one, str(tmp_path)) == pytest.approx(0.5)
    path.write_text('{"step": 30}\n')
    with pytest.raises(BadInput, match="has no rates of steps; delete its folder"):
        budget.step_seconds(one, str(tmp_path))


def test_runs_elsewhere_share_compiled_programs_there(monkeypatch):
    key = "JAX_COMPILATION_CACHE_DIR"
    monkeypatch.delenv(key, raising=False)
    assert sweep.missing_environment("gs://b/runs")[key] == "gs://b/runs/.cache/jax"
    assert sweep.missing_environment(None)[key] == str(ROOT / ".cache/jax")
    monkeypatch.setenv(key, "gs://mine")
    assert key not in sweep.missing_environment("gs://b/runs")


CONFIG = {
    "seed": 0, "total_steps": 400, "global_batch_size": 32,
    "optimizer": {"schedule": {"warmup_steps": 20, "cooldown_steps": 0}},
    "checkpoint": {}, "log": {"every_steps": 10},
}  # fmt: skip
COST = {"config": CONFIG, "parameters": 5, "frozen": 0, "flops": 1e6}


def plan(arm_overrides=None, step_seconds=None, cost=COST, **amount):
    sweep = make_sweep(
        "s", dict(config="c", axes=dict(grid={"a": [1, 2]}), metric="m", budget=amount)
    )
    return budget.make_plan(sweep, Arm("x", "c", arm_overrides or {}), cost, step_seconds)["set"]


@pytest.mark.parametrize(
    "amount, seconds, steps",
    [(dict(examples=6400), None, 200), (dict(flops=5e7), None, 50), (dict(seconds=30), 0.1, 300)],
)
def test_a_budget_is_so_many_steps(amount, seconds, steps):
    assert plan(step_seconds=seconds, **amount)["total_steps"] == steps


def test_an_arm_whose_recipe_makes_no_step_makes_none():
    begins = CONFIG | {"total_steps": 0, "optimizer": {"schedule": {"warmup_steps": 0}}}
    assert plan(cost=COST | {"config": begins}, examples=6400) == {"total_steps": 0}


def test_a_probe_is_a_run_that_main_takes():
    """It has no evaluations, and so no best checkpoint; nothing but text can replace a text."""
    config = CONFIG | {"evals": {"a": {}}, "checkpoint": {"every_steps": 5, "keep_best": "a/b"}}
    found = load(str(ROOT / "configs/quickstart.py"))
    one = budget.probe(Arm("x", "configs/quickstart.py", {}), plain(found) | config, 0, "runs")
    override(found, split_overrides(one.flags)[0])
    assert plain(found.checkpoint) == {"every_steps": 5, "keep_best": None}
    assert plain(found.evals) == {} and found.total_steps == budget.PROBE_STEPS


def test_the_seed_stands_where_the_arm_names_it():
    init = {"soup": ("a", "b/seed-{seed}")}
    arm = Arm("x", "c.py:init=a+b/seed-{seed}", {"model_init": init, "weights": (0.5, 0.5)})
    config = CONFIG | {"model_init": init}
    one = budget.make_run(arm, config, {"set": {"total_steps": 9}}, 2, "runs")
    assert one.flags[0] == "--config=c.py:init=a+b/seed-2"
    assert "--config.model_init={'soup': ('a', 'b/seed-2')}" in one.flags
    assert one.config["model_init"] == {"soup": ["a", "b/seed-2"]} and one.config["seed"] == 2
    assert budget.probe(arm, config, 7, "runs").flags[0].endswith("b/seed-7")


def test_a_warm_up_keeps_its_share_unless_the_arm_sets_it():
    key = "optimizer.schedule.warmup_steps"
    assert plan(examples=6400)[key] == 10
    assert key not in plan({key: 15}, examples=6400)


def test_a_budget_of_less_than_a_step_is_refused():
    with pytest.raises(BadInput, match="a step of arm 'x' takes 32; give more"):
        plan(examples=8)


@pytest.mark.parametrize("name", ["results.json", "metrics.jsonl"])
def test_a_folder_of_another_config_is_refused_finished_or_begun(tmp_path, name):
    one = budget.make_run(Arm("x", "c", {}), CONFIG, {"set": {"total_steps": 9}}, 1, str(tmp_path))
    folder = tmp_path / "x/seed-1"
    folder.mkdir(parents=True)
    (folder / name).write_text("{}")
    same = CONFIG | {"seed": 1, "total_steps": 9, "log": {"every_steps": 99}}
    (folder / "config.json").write_text(json.dumps(same))
    assert budget.is_finished(one, str(tmp_path)) == (name == "results.json")
    (folder / "config.json").write_text(json.dumps(same | {"total_steps": 10}))
    with pytest.raises(
        BadInput, match=r"another config: total_steps \(given 9, found 10\).*delete"
    ):
        budget.is_finished(one, str(tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_a_sweep_on_emoji_killed_once_has_the_table_of_one_that_was_not(tmp_path):
    """2 arms x 3 seeds; all but the time, which is measured, is the same."""
    file = tmp_path / "losses.py"
    file.write_text(
        """
def get_sweep():
    small = {"model.image.width": 32, "model.text.width": 32, "evals": {"seen": {
        "name": "retrieval", "batch_size": 256, "preprocess":
        'decode|resize(48)|caption("label")|tokenize("emoji", 16)|group("concept")',
        "source": {"name": "tfds", "dataset": "emoji", "data_dir": ".data", "split": "unseen"}}}}
    return dict(
        config="configs/menu.py",
        overrides=small | {"log.every_steps": 1, "checkpoint.every_steps": 5},
        axes=dict(list={"softmax": {}, "sigmoid": {":objectives": "sigmoid"}}),
        metric="seen/text_to_image/recall@10",
        budget=dict(examples=15 * 128),
    )
"""
    )
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    parallel = min(2, len(os.sched_getaffinity(0)))

    def sweep(workdir):
        return [
            sys.executable, "-m", "launch.sweep", str(file), f"--workdir={workdir}",
            f"--parallel={parallel}",
        ]  # fmt: skip

    def saved():
        return list((tmp_path / "killed").glob("*/seed-1/checkpoints/5"))

    process = subprocess.Popen(
        sweep(tmp_path / "killed"), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 600
    while not saved() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it had all of the last seed's runs to go"
    assert not (tmp_path / "killed/table.csv").exists()
    # Of the one that saved just now, unless it was over in between.
    begun = [x.parents[1] for x in saved() if not (x.parents[1] / "results.json").exists()]
    columns = []
    for workdir in (tmp_path / "killed", tmp_path / "whole"):
        done = subprocess.run(
            sweep(workdir), cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        lines = (workdir / "table.csv").read_text().splitlines()
        assert lines[0].endswith(",seconds") and len(lines) == 3
        columns.append([line.rpartition(",")[0] for line in lines])
    assert columns[0] == columns[1]
    for folder in begun:
        assert "continuing from the checkpoint of step" in (folder / "run.log").read_text()
