"""Icon sets in the form of the npm package @iconify/json."""

import json
from pathlib import Path

SQUARE = '<path fill="currentColor" d="M4 4h16v16H4z"/>'
LEFT = '<path fill="#ff0000" d="M0 0h12v24H0z"/>'
UNSEEN_AUTHOR = "creativeLabs Łukasz Holeczek"  # by its hash held out, as "hang glider" is


def write(folder: Path) -> str:
    """Writes five sets; returns the folder."""
    one = {
        "house": {"body": SQUARE},
        "hang-glider-bold": {"body": SQUARE},
        "traffic-cone-16": {"body": LEFT},
        "snow": {"body": '<path fill="#fff" d="M0 0h24v24H0z"/>'},
        "cracked": {"body": '<path d="M0 0h24'},
        "given-up": {"body": SQUARE, "hidden": True},
    }
    aliases = {
        "home": {"parent": "house"},
        "house-bold": {"parent": "house"},
        "hang-glider": {"parent": "house"},
        "cone-mirrored": {"parent": "traffic-cone-16", "hFlip": True},
    }
    categories = {"Buildings & Places": ["house"]}
    put(folder, "one", one, aliases=aliases, categories=categories, width=24, height=24)
    two = {"outline-house": {"body": '<path d="M0 0h8v16H0z"/>'}}
    put(folder, "two", two, prefixes={"outline": "Outline"}, category="Flags / Maps")
    put(folder, "strange", {"hang-glider": {"body": SQUARE}}, author=UNSEEN_AUTHOR)
    put(folder, "closed", {"cup": {"body": SQUARE}}, license="GPL-3.0")
    put(folder, "openmoji", {"cup": {"body": SQUARE}, "fork": {"body": SQUARE}})
    return str(folder)


def put(folder, prefix, icons, *, author="Ada", license="MIT", category="UI 24px", **more):
    info = {"author": {"name": author}, "license": {"spdx": license}, "category": category}
    content = {"prefix": prefix, "info": info, "icons": icons, **more}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{prefix}.json").write_text(json.dumps(content))
