"""Iconify sets as they are read from npm packages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from data.builders.emoji.install import Packages
from mm.config import BadInput

_MOVES = ("hFlip", "vFlip", "rotate")


class IconSet(NamedTuple):
    """An Iconify set: https://iconify.design/docs/types/iconify-json.html."""

    icons: Mapping[str, Mapping]  # name -> body, and sides where they are not the set's
    aliases: Mapping[str, Mapping]  # name -> parent, and how the parent is turned
    chars: Mapping[str, str]  # hexcode -> name; empty for the sets that are joined by name
    width: float
    height: float

    def moves(self, name: str) -> bool:
        """Whether the name is an alias that looks unlike its parent."""
        return any(key in self.aliases.get(name, ()) for key in _MOVES)

    def drawable(self) -> dict[str, dict]:
        """name -> body, sides and moves of every picture that is not hidden (given up)."""
        sides = {"width": self.width, "height": self.height}
        turned = {
            name: {**self.icons[alias["parent"]], **alias}
            for name, alias in self.aliases.items()
            if self.moves(name) and alias["parent"] in self.icons
        }
        every = {**self.icons, **turned}
        return {name: {**sides, **icon} for name, icon in every.items() if not icon.get("hidden")}


def read_icon_set(packages: Packages, package: str) -> IconSet:
    """The set of `package`; raises BadInput if a file is damaged, missing, or lacks what we use."""
    content, chars = packages.read(package, "icons.json"), packages.read(package, "chars.json")
    try:
        found = IconSet(
            icons=content["icons"],
            aliases=content.get("aliases", {}),
            chars=chars,
            width=content["width"],
            height=content["height"],
        )
        for name, icon in found.icons.items():
            if not isinstance(icon["body"], str):
                raise TypeError(f"the body of {name} is no text")
        lost = sorted(set(chars.values()) - found.icons.keys() - found.aliases.keys())
        lost += [a for a, e in found.aliases.items() if e["parent"] not in found.icons]
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"emoji: package {package} is damaged: {error!r} in icons.json") from error
    if lost:
        raise BadInput(f"emoji: package {package} is damaged: no icon {lost[0]!r} in icons.json")
    return found
