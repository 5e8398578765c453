"""The `icons` data set: 350,000 icons of 223 sets, with names, from the npm package @iconify/json.

`python -m data.builders.icons --data_dir=.data` installs the package and says how to go on.
The source `iconify` (data/sources/iconify.py) draws the icons, `python -m data.prepare` with
prepare.py beside this file writes them as shards, and configs/icons.py trains on them.
"""

from pathlib import Path

from data.builders.install import Packages, installed

HERE = Path(__file__).parent
PACKAGE = "@iconify/json"
# split -> the name of its data set, and whether it has one icon of each concept only.
DATASETS = {
    "train": ("icons", False),
    "held_out": ("icons_held_out", True),
    "unseen_sets": ("icons_unseen_sets", True),
}


def cache(data_dir: str) -> Path:
    """Where npm's packages are kept."""
    return Path(data_dir).expanduser() / "downloads" / "icons"


def sets_folder(packages: Packages) -> str:
    """The folder with a JSON file for each icon set."""
    return str(packages.folder / "node_modules" / PACKAGE / "json")


def source(split: str, data_dir: str) -> dict:
    """The spec of the source of a split, from the package installed under data_dir."""
    path = sets_folder(installed(cache(data_dir), HERE))
    return {"name": "iconify", "path": path, "split": split, "unique": DATASETS[split][1]}
