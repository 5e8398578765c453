import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mm.config import BadInput
from mm.runtime import workdir

_HOLD = """
import sys, time
from mm.runtime.workdir import lock
with lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path):
    """A process that holds the lock of tmp_path."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_busy_workdir_is_refused_and_the_owner_named(tmp_path, owner):
    with pytest.raises(BadInput, match=f"in use by pid {owner.pid} on "):
        with workdir.lock(tmp_path):
            pass


def test_the_lock_is_free_after_kill_9(tmp_path, owner):
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    with workdir.lock(tmp_path):
        assert f"pid {os.getpid()} " in (tmp_path / "lock").read_text()


def test_the_lock_is_free_after_the_block(tmp_path):
    for _ in range(2):
        with workdir.lock(tmp_path / "new"):
            pass


def test_the_first_start_writes_the_config_and_the_same_one_is_accepted(tmp_path):
    config = {"seed": 1, "model": {"sizes": (1, 2), "empty": {}}}
    for _ in range(2):
        workdir.check_config(tmp_path, config)
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "seed": 1,
        "model": {"sizes": [1, 2], "empty": {}},
    }


def test_another_config_is_refused_with_each_differing_key(tmp_path):
    workdir.check_config(tmp_path, {"seed": 1, "model": {"width": 64, "old": True}})
    with pytest.raises(BadInput) as error:
        workdir.check_config(tmp_path, {"seed": 1, "model": {"width": 128, "new": "x"}})
    message = str(error.value)
    assert "model.width (given 128, found 64)" in message
    assert "model.old (given nothing, found true)" in message
    assert 'model.new (given "x", found nothing)' in message
    assert "seed" not in message and "\n" not in message


def test_keys_that_may_change_are_updated_in_the_file(tmp_path):
    workdir.check_config(tmp_path, {"seed": 1, "log": {"every_steps": 1}})
    workdir.check_config(tmp_path, {"seed": 1, "log": {"every_steps": 5}}, may_change=("log",))
    assert json.loads((tmp_path / "config.json").read_text())["log"] == {"every_steps": 5}


def test_a_prefix_covers_whole_names_only(tmp_path):
    workdir.check_config(tmp_path, {"log": 1, "logit_scale": 1})
    with pytest.raises(BadInput, match="logit_scale"):
        workdir.check_config(tmp_path, {"log": 2, "logit_scale": 2}, may_change=("log",))


def test_an_unreadable_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInput, match="config.json is not JSON"):
        workdir.check_config(tmp_path, {})


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    workdir.write_atomic(path, "old")

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        workdir.write_atomic(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_the_environment_names_versions_devices_and_command():
    found = workdir.environment()
    assert found["packages"]["jax"] and found["devices"]["count"] == 8
    assert found["command"][0] == sys.executable
    json.dumps(found)


def test_a_copy_that_a_launcher_made_tells_what_the_launcher_wrote(tmp_path):
    subprocess.run(["git", "-C", str(tmp_path), "init", "--quiet"], check=True)
    (tmp_path / "revision.json").write_text('{"revision": "abc", "dirty": true}')
    assert workdir.git_state(tmp_path) == {"revision": "abc", "dirty": True}


def test_what_was_not_committed_at_a_launch_stays_with_the_run(tmp_path, monkeypatch):
    code, run = tmp_path / "code", tmp_path / "run"
    code.mkdir()
    run.mkdir()
    monkeypatch.setattr(workdir, "_ROOT", code)
    (code / "dirty.diff").write_text("+x\n")
    workdir.write_environment(run)
    assert not (run / "dirty.diff").exists(), "somebody's own file"
    (code / "revision.json").write_text('{"revision": "abc", "dirty": true, "diff_sha256": "12"}')
    workdir.write_environment(run)
    assert (run / "dirty.diff").read_text() == "+x\n"
    assert json.loads((run / "environment.json").read_text())["git"]["diff_sha256"] == "12"


def test_git_state_tells_revision_and_changes(tmp_path):
    def git(*arguments):
        who = ["-c", "user.name=t", "-c", "user.email=t@t"]
        subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True)

    git("init")
    git("commit", "--allow-empty", "-m", "x")
    clean = workdir.git_state(tmp_path)
    (tmp_path / "new").write_text("x")
    assert len(clean["revision"]) == 40 and not clean["dirty"]
    assert workdir.git_state(tmp_path) == {**clean, "dirty": True}


def test_git_state_is_none_outside_of_git_and_without_it(tmp_path, monkeypatch):
    assert workdir.git_state(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert workdir.git_state(Path(__file__).parent) is None
