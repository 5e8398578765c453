import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from data.builders import preparation
from data.builders.emoji import builder as builder_module
from data.builders.emoji.selection import report
from data.builders.install import install
from data.builders.render import png, svg
from mm.config import BadInput


@pytest.fixture
def installed(packages, monkeypatch):
    monkeypatch.setattr(builder_module, "install", lambda cache, manifests, log: packages)
    monkeypatch.setattr(builder_module, "OWN_NAMES", {})
    return packages


def quiet(line):
    del line


def prepare(data_dir, log):
    return preparation.prepare(builder_module.Emoji, data_dir, log)


def digests(folder):
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in Path(folder).iterdir()}


def test_examples_have_picture_names_and_identity(installed, tmp_path):
    prepare(tmp_path / "data", quiet)
    source = tfds.data_source("emoji", data_dir=tmp_path / "data", split="train")
    example = source[2]
    assert example["id"] == b"noto/1f3c3-200d-2640"
    assert (example["concept"], example["family"]) == (b"1F3C3-200D-2640", b"1F3C3")
    assert (example["label"], list(example["tags"])) == (b"woman running", [b"running"])
    assert (example["group"], example["vendor"]) == (b"people-body", b"noto")
    assert example["labels"]["de"] == b"woman running (de)"
    assert example["image"].shape == (64, 64, 3) and example["image"][0, 0].tolist() == [0, 0, 255]
    assert source[3]["labels"]["de"] == b""  # the flag has no German name here


def test_licences_and_vendor_ranges_are_kept_with_the_data(installed, tmp_path):
    prepare(tmp_path / "data", quiet)
    info = tfds.builder("emoji", data_dir=tmp_path / "data").info
    assert "emojione-v1: Emoji One, CC-BY-SA-4.0" in info.description
    assert info.metadata["vendor_ranges"]["train"]["noto-v1"] == [4, 8]


def test_second_preparation_reuses_the_first(installed, tmp_path, monkeypatch):
    prepare(tmp_path / "data", quiet)
    monkeypatch.setattr(builder_module, "install", None)  # whoever calls it fails
    lines = []
    assert prepare(tmp_path / "data", lines.append).info.splits["unseen"].num_examples == 1
    assert "already prepared" in lines[0]


def test_changed_licence_is_refused(installed, tmp_path):
    path = installed.folder / "node_modules/@iconify-json/noto/info.json"
    path.write_text(path.read_text().replace("Apache-2.0", "GPL-3.0"))
    with pytest.raises(BadInput, match="the licence of @iconify-json/noto"):
        prepare(tmp_path / "data", quiet)


def test_damaged_picture_is_named_and_nothing_is_left(installed, tmp_path):
    path = installed.folder / "node_modules/@iconify-json/noto/icons.json"
    path.write_text(path.read_text().replace("<path", "<pa<th"))
    with pytest.raises(BadInput, match="noto/1f600 is damaged"):
        prepare(tmp_path / "data", quiet)
    assert not list((tmp_path / "data/emoji").glob("*1.0.0"))


def test_record_file_that_was_cut_is_refused(installed, tmp_path):
    folder = Path(prepare(tmp_path / "data", quiet).data_dir)
    (file,) = folder.glob("emoji-seen*")
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(BadInput, match=f"{file.name}: expected 3 records, found a damaged file"):
        prepare(tmp_path / "data", quiet)
    file.unlink()
    with pytest.raises(BadInput, match=f"{file.name}: expected 3 records, found no file"):
        prepare(tmp_path / "data", quiet)


def test_damaged_description_is_refused(installed, tmp_path):
    folder = Path(prepare(tmp_path / "data", quiet).data_dir)
    os.truncate(folder / "dataset_info.json", 100)
    with pytest.raises(
        BadInput, match="the data set under .* is damaged .* delete its folder `emoji`"
    ):
        prepare(tmp_path / "data", quiet)


def test_data_dir_that_cannot_be_written_is_one_line(installed, tmp_path):
    (tmp_path / "data").write_text("a file, not a folder")
    with pytest.raises(BadInput, match="cannot prepare under"):
        prepare(tmp_path / "data", quiet)


_IN_ANOTHER_PROCESS = """
import os, signal, sys
from pathlib import Path
from data.builders.emoji import builder
from data.builders.preparation import prepare
from data.builders.install import Packages
versions = dict.fromkeys([f"@iconify-json/{v}" for v in builder.VENDORS], "1.0.0")
packages = Packages(Path(sys.argv[1]), {**versions, "emojibase-data": "1.0.0"}, "emoji")
builder.install, builder.OWN_NAMES = lambda cache, manifests, log: packages, {}
drawn, png = [], builder.png
def png_and_die(*args):
    drawn.append(args)
    if len(drawn) == int(sys.argv[3]):  # 30 is in the second split, after the first is written
        os.kill(os.getpid(), signal.SIGKILL)
    return png(*args)
builder.png = png_and_die
prepare(builder.Emoji, sys.argv[2])
"""


def prepare_in_another_process(installed, data_dir, die_at_picture):
    arguments = [str(installed.folder), str(data_dir), str(die_at_picture)]
    command = [sys.executable, "-c", _IN_ANOTHER_PROCESS, *arguments]
    return subprocess.run(command, capture_output=True).returncode


def test_another_process_writes_the_same_bytes(installed, tmp_path):
    here = prepare(tmp_path / "a", quiet).data_dir
    assert prepare_in_another_process(installed, tmp_path / "b", die_at_picture=-1) == 0
    assert digests(here) == digests(tmp_path / "b/emoji/1.0.0")


def test_killed_preparation_is_not_trusted(installed, tmp_path):
    assert prepare_in_another_process(installed, tmp_path / "data", die_at_picture=30) == -9
    home = tmp_path / "data/emoji"
    assert list(home.glob("incomplete*")) and not (home / "1.0.0").exists()
    lines = []
    splits = prepare(tmp_path / "data", lines.append).info.splits
    assert splits["train"].num_examples == 28
    assert not any("already prepared" in line for line in lines)
    assert not list(home.glob("incomplete*"))


@pytest.mark.slow
def test_real_packages_give_the_expected_counts(tmp_path, monkeypatch):
    """Installs from the npm registry, with the npm of the Python package.

    All pictures are drawn by `make data`, before any test of a clean checkout.
    """
    monkeypatch.setenv("PATH", "/nowhere")
    selection = builder_module.selected(install(tmp_path, builder_module.HERE, quiet))
    counts = {name: len(pictures) for name, pictures in selection.splits.items()}
    assert counts == {"train": 8035, "seen": 1479, "unseen": 165}
    assert sum("0 labels stand for two pictures" in line for line in report(selection)) == 2
    families = {
        split: {picture.concept.family for picture in pictures}
        for split, pictures in selection.splits.items()
    }
    assert not families["train"] & families["unseen"]
    for picture in selection.splits["unseen"]:
        assert png(svg(picture.icon), picture.id)
