"""A world of nine tiny packages, in the form of the real ones."""

import json

import pytest

from data.builders.emoji.builder import LICENCES
from data.builders.emoji.catalogue import LANGUAGES
from data.builders.emoji.selection import VENDORS
from data.builders.install import Packages

# hexcode, label, group, subgroup. By its hash the family of honeybee is held out, the others not.
CONCEPTS = [
    ("1F600", "grinning face", 0, 0),
    ("1F3C3", "person running", 1, 1),
    ("1F3C3-200D-2640-FE0F", "woman running", 1, 1),
    ("1F41D", "honeybee", 2, 2),
    ("1F1EB-1F1F7", "flag: France", 3, 3),
]
BY_CODE = ("noto", "twemoji")
_COLOURS = ("red", "green", "blue", "gold", "black")


def icon_name(label):
    return label.replace(": ", "-").replace(" ", "-").lower()


def write_json(folder, file, content):
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def packages(tmp_path):
    """Installed packages: every vendor draws every concept as a bar of its own width."""
    folder = tmp_path / "installed"
    modules = folder / "node_modules"
    for number, vendor in enumerate(VENDORS):
        home = modules / "@iconify-json" / vendor
        icons = {
            icon_name(label): {
                "body": f'<path fill="{colour}" d="M0 0h{number + 2}v16h-{number + 2}z"/>'
            }
            for (_, label, _, _), colour in zip(CONCEPTS, _COLOURS, strict=True)
        }
        chars = {code.lower(): icon_name(label) for code, label, _, _ in CONCEPTS}
        author, spdx, url = LICENCES[vendor]
        write_json(home, "package.json", {"version": "1.0.0"})
        write_json(home, "icons.json", {"icons": icons, "width": 16, "height": 16})
        write_json(home, "chars.json", chars if vendor in BY_CODE else {})
        write_json(
            home, "info.json", {"author": {"name": author}, "license": {"spdx": spdx, "url": url}}
        )
    home = modules / "emojibase-data"
    write_json(home, "package.json", {"version": "1.0.0"})
    entries = [
        {"hexcode": code, "label": label, "group": group, "subgroup": subgroup, "order": order,
         "tags": [label.split()[-1]]}
        for order, (code, label, group, subgroup) in enumerate(CONCEPTS)
    ]  # fmt: skip
    write_json(home, "en/data.json", entries)
    for language in LANGUAGES:
        translated = [{**e, "label": f"{e['label']} ({language})"} for e in entries[:-1]]
        write_json(home, f"{language}/data.json", translated)
    for name in ("cldr", "emojibase", "joypixels", "iamcal", "github", "emojibase-legacy"):
        write_json(home, f"en/shortcodes/{name}.json", {})
    write_json(home, "meta/unicode-names.json", {})
    names = ["smileys-emotion", "people-body", "animals-nature", "flags"]
    groups = {str(i): name for i, name in enumerate(names)}
    write_json(home, "meta/groups.json", {"groups": groups, "subgroups": groups})
    versions = {f"@iconify-json/{vendor}": "1.0.0" for vendor in VENDORS}
    return Packages(folder, {**versions, "emojibase-data": "1.0.0"}, "emoji")


@pytest.fixture
def world(packages):
    """The catalogue and the icon sets of these packages."""
    from data.builders.emoji.catalogue import read_catalogue
    from data.builders.emoji.icons import read_icon_set

    catalogue = read_catalogue(lambda file: packages.read("emojibase-data", file))
    return catalogue, {v: read_icon_set(packages, f"@iconify-json/{v}") for v in VENDORS}
