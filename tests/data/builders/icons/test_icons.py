import json

import pytest

from data.builders import icons
from data.builders.icons.__main__ import main
from data.builders.icons.prepare import get_config
from data.builders.install import installed, lock_file
from data.sources import open_source
from mm.config import BadInput, plain
from tests.data.sources import iconify_sets


@pytest.fixture
def data_dir(tmp_path):
    """Where the package is installed already, with five small sets."""
    packages = installed(icons.cache(str(tmp_path)), icons.HERE)
    home = packages.folder / "node_modules" / icons.PACKAGE
    iconify_sets.write(home / "json")
    (home / "package.json").write_text(json.dumps({"version": packages.versions[icons.PACKAGE]}))
    return str(tmp_path)


def test_the_lock_file_has_hashes_and_the_version_asked_for_and_no_address():
    locked = lock_file(icons.HERE)
    assert all(entry["integrity"].startswith("sha512-") for entry in locked.values())
    assert "resolved" not in (icons.HERE / "package-lock.json").read_text()
    wanted = json.loads((icons.HERE / "package.json").read_text())["dependencies"]
    assert {name: locked[name]["version"] for name in wanted} == wanted


def test_the_command_says_what_is_in_each_split_and_what_is_in_none(data_dir, capsys):
    assert main([f"--data_dir={data_dir}"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["train", "6", "2"] in lines and ["held_out", "1", "1"] in lines
    assert "1 left out: license is GPL-3.0".split() in lines
    commands = [line for line in lines if line[:3] == ["python", "-m", "data.prepare"]]
    assert [line[-1].rsplit("/", 1)[1] for line in commands] == [
        "icons", "icons_held_out", "icons_unseen_sets"
    ]  # fmt: skip


def test_another_version_is_refused(data_dir, capsys):
    packages = installed(icons.cache(data_dir), icons.HERE)
    (packages.folder / "node_modules" / icons.PACKAGE / "package.json").write_text("{}")
    assert main([f"--data_dir={data_dir}"]) == 2
    assert "icons: package @iconify/json is version None" in capsys.readouterr().err


@pytest.mark.parametrize("split", icons.DATASETS)
def test_the_config_of_each_split_opens_its_source(data_dir, split):
    config = plain(get_config(f"split={split},data_dir={data_dir}"))
    source = open_source(config["source"], "source")
    assert config["output"]["split"] == split
    assert {config["image_key"], config["caption_key"]} <= source.features.keys()
    assert config == json.loads(json.dumps(config))  # as it goes to Beam's workers


def test_training_is_compared_with_what_is_held_out(data_dir):
    config = plain(get_config(f"data_dir={data_dir},sets=one+tw*,last=0.5"))
    assert config["source"]["sets"] == ["one", "tw*"]
    assert len(open_source(config["source"], "source")) == 3
    references = config["decontaminate"]["sources"]
    assert set(references) == {"held_out", "unseen_sets"}
    assert all(len(open_source(spec["source"], "source")) == 1 for spec in references.values())


def test_an_unknown_split_is_refused():
    with pytest.raises(BadInput, match="split=heldout: have .*did you mean 'held_out'"):
        get_config("split=heldout")
