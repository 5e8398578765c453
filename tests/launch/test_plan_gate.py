"""The plan before submitting: by the real main.py and libtpu. `make plan-tools`."""

import pytest

from launch.request import Run, read_run
from launch.shell import NO_MACHINES, REFUSED, Failure
from tests.launch.cloud import Cloud, checkout_of_this


@pytest.mark.slow
@pytest.mark.parametrize(
    "batch, code, said",
    [
        (512, NO_MACHINES, "quota: ERROR"),  # it was submitted
        (2**20, REFUSED, "does not fit v5e:2x2; not submitted"),
    ],
)
def test_a_config_is_compiled_for_the_slice_and_submitted_if_it_fits(
    tmp_path, tokenizer, batch, code, said
):
    cloud = Cloud(tmp_path, create=["quota"])
    cloud.variables["XLA_FLAGS"] = ""
    done = cloud.run(
        *("tpu_vm", "--accelerator=v5litepod-4", "--zone=z", "--name=run", "--poll_seconds=0.05"),
        *(f"--code={checkout_of_this(tmp_path / 'this')}", "--"),
        *(f"--config=tests/tiny.py:tokenizer={tokenizer}", f"--config.global_batch_size={batch}"),
        "--workdir=gs://bucket/run",
        seconds=900,
    )
    assert done.returncode == code and said in done.stderr, done.stdout + done.stderr
    assert ("DOES NOT FIT" in done.stdout) == (code == REFUSED)
    assert ("create" in cloud.verbs()) == (code == NO_MACHINES) and cloud.resources() == []


def test_flags_of_main_are_read_as_main_reads_them():
    given = [
        "--config",
        "c.py:a=1",
        "--config.seed",
        "3",
        "--workdir=w",
        "--config.flip",
        "--step=2",
    ]
    want = Run(tuple(given), "c.py:a=1", "w", "train", ("--config.seed=3", "--config.flip="))
    assert read_run(given) == want
    assert read_run(["python", "main.py", *given]) == want
    assert read_run([".venv/bin/python", "./main.py", "--mode=eval"]).mode == "eval"


def test_another_program_is_refused():
    with pytest.raises(Failure, match="expected flags of main.py") as error:
        read_run(["python", "-m", "bench.plans"])
    assert error.value.code == REFUSED


def test_a_flag_that_main_has_not_is_refused_before_machines_are_asked_for(capsys):
    for flag in ("--mode=evl", "--worksdir=w"):
        with pytest.raises(SystemExit) as error:
            read_run(["--config=c.py", flag])
        said = capsys.readouterr().err.splitlines()[-1]
        assert error.value.code == REFUSED and said.startswith("main.py: error: ")
        assert flag.partition("=")[2 * flag.startswith("--mode")] in said


def test_a_config_that_is_not_there_is_refused_in_a_dry_run_too(tmp_path):
    cloud = Cloud(tmp_path)
    flags = ("--accelerator=v6e-16", "--image=I", f"--code={cloud.code}", "--dry_run")
    done = cloud.run("gke", *flags, "--", "--config=configs/siglop.py:a=1", "--workdir=gs://b")
    assert done.returncode == REFUSED and done.stderr.count("\n") == 1
    assert "no such file in" in done.stderr and "did you mean 'siglip.py'" in done.stderr


def test_a_config_by_its_place_on_this_machine_is_told_its_place_in_the_code(tmp_path):
    cloud = Cloud(tmp_path)
    flags = ("--accelerator=v6e-16", "--image=I", f"--code={cloud.code}", "--dry_run")
    config = f"--config={cloud.code}/configs/siglip.py:a=1"
    done = cloud.run("gke", *flags, "--", config, "--workdir=gs://b")
    assert done.returncode == REFUSED and done.stderr.count("\n") == 1
    assert "--config=configs/siglip.py:a=1\n" in done.stderr


@pytest.mark.parametrize("place", ["ignored", "outside"])
def test_a_config_that_would_not_be_sent_is_refused_with_what_to_do(tmp_path, place):
    cloud = Cloud(tmp_path)
    inside, outside = cloud.code / "launches" / "a" / "config.json", tmp_path / "config.json"
    inside.parent.mkdir(parents=True)
    inside.write_text("{}")
    outside.write_text("{}")
    config = "launches/a/config.json" if place == "ignored" else str(outside)
    flags = ("--accelerator=v6e-16", "--image=I", f"--code={cloud.code}", "--dry_run")
    done = cloud.run("gke", *flags, "--", f"--config={config}", "--workdir=gs://b")
    assert done.returncode == REFUSED and done.stderr.count("\n") == 1
    assert f"--config={config}: is not in the code that is sent" in done.stderr
    assert "give --config=configs/config.json" in done.stderr


def test_slurm_takes_a_config_of_a_shared_folder(tmp_path):
    cloud = Cloud(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    flags = ("--accelerator=h100", f"--code={cloud.code}", "--dry_run", "--")
    done = cloud.run("slurm", *flags, f"--config={tmp_path / 'config.json'}", "--workdir=/shared")
    assert done.returncode == 0, done.stderr


def test_what_is_not_training_has_no_plan(tmp_path):
    cloud = Cloud(tmp_path)
    cloud.variables["FAKE_PLAN"] = "1"  # would be refused
    flags = ("--accelerator=v6e-16", "--image=I", f"--code={cloud.code}", "--dry_run")
    done = cloud.run("gke", *flags, "--", "--config=c.py", "--workdir=gs://b", "--mode=eval")
    assert done.returncode == 0 and "no plan: --mode=eval" in done.stdout
