"""Runs in real processes: killed with -9, started twice, and spread over several processes."""

import random
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from tests.runs import (
    ROOT,
    assert_same_run,
    column,
    command,
    environment,
    finish,
    kill,
    lines,
)


@pytest.fixture(scope="session")
def tiny(tokenizer):
    """tiny(workdir, *flags) -> a command line; saves every other step."""

    def make(workdir, *flags):
        flags = ("--config.checkpoint.every_steps=2", "--config.total_steps=20", *flags)
        return command(f"tests/tiny.py:tokenizer={tokenizer}", workdir, *flags)

    return make


@pytest.fixture(scope="session")
def emoji():
    """Prepares the data of the quick start where it is expected, if it is not there yet."""
    for module in ("data.builders.emoji", "data.tokenizers.train --dataset=emoji"):
        arguments = [sys.executable, "-m", *module.split(), "--data_dir=.data"]
        subprocess.run(arguments, cwd=ROOT, check=True)


def quickstart(workdir, steps=40):
    """The quick start as it is, but for its length; saves and logs often."""
    return command(
        "configs/quickstart.py",
        workdir,
        f"--config.total_steps={steps}",
        "--config.optimizer.schedule.warmup_steps=10",
        "--config.checkpoint.every_steps=2",
        "--config.log.every_steps=1",
    )


def assert_survives(make, tmp_path, moments, optimize=False):
    """A run killed at each of `moments` equals one that was not."""
    rng = random.Random(0)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    finish(make(whole), 1, optimize)
    caught = [kill(make(killed), killed, when, rng, optimize) for when in moments]
    finish(make(killed), 1, optimize)
    assert_same_run(killed, whole)
    return [when for when, yes in zip(moments, caught, strict=True) if yes]


def assert_independent_of_processes(make, tmp_path, optimize=False):
    """1 process x 4 devices and 2 x 2: the same ids, the same losses up to rounding."""
    one, two = tmp_path / "one", tmp_path / "two"
    finish(make(one), 4, optimize)
    launch = [sys.executable, "-m", "launch.local", "--processes=2", "--devices_per_process=2"]
    finish([*launch, f"--log_dir={tmp_path}/logs", "--", *make(two)], 1, optimize)
    assert column(one, "batch_hash") == column(two, "batch_hash")
    a, b = (np.array(column(workdir, "loss")) for workdir in (one, two))
    assert len(a) >= 20
    np.testing.assert_allclose(a[0], b[0], rtol=1e-6)
    np.testing.assert_allclose(a[:20], b[:20], rtol=1e-4)


def test_a_run_killed_three_times_is_bit_identical(tiny, tmp_path):
    assert "save" in assert_survives(tiny, tmp_path, ["save", "step", "save"])


def test_two_processes_compute_what_one_does(tiny, tmp_path):
    assert_independent_of_processes(tiny, tmp_path)


def test_a_second_run_in_a_busy_workdir_is_refused(tiny, tmp_path):
    first = subprocess.Popen(
        tiny(tmp_path, "--config.total_steps=100000"),
        cwd=ROOT,
        env=environment(1),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        while lines(tmp_path) < 2 and first.poll() is None:
            pass
        second = subprocess.run(
            tiny(tmp_path, "--config.total_steps=100000"),
            cwd=ROOT,
            env=environment(1),
            capture_output=True,
            text=True,
        )
        assert second.returncode == 2 and f"is in use by pid {first.pid}" in second.stderr
        first.terminate()
        assert first.wait() == 75
    finally:
        first.kill()


@pytest.mark.slow
def test_the_quick_start_survives_twelve_kills(emoji, tmp_path):
    moments = ["save", "step", "step", "start"] * 3
    assert assert_survives(quickstart, tmp_path, moments, optimize=True) == moments


@pytest.mark.slow
def test_the_quick_start_does_not_depend_on_the_number_of_processes(emoji, tmp_path):
    # 20 steps are compared.
    short = partial(quickstart, steps=20)
    assert_independent_of_processes(short, tmp_path, optimize=True)
