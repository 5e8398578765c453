"""Icon sets as Iconify keeps them, one JSON object each.

https://iconify.design/docs/types/iconify-json.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_MOVES = ("hFlip", "vFlip", "rotate")
_FRAME = {"left": 0, "top": 0, "width": 16, "height": 16}  # of icons in a set that says none


class IconSet(NamedTuple):
    """frame: the corner and the sides of all icons that have none of their own."""

    icons: Mapping[str, Mapping]  # name -> body, and the frame where it is not the set's
    aliases: Mapping[str, Mapping]  # name -> parent, and how the parent is turned
    chars: Mapping[str, str]  # hexcode -> name; empty for the sets that are joined by name
    frame: Mapping[str, float]

    def moves(self, name: str) -> bool:
        """Whether the name is an alias that looks unlike its parent."""
        return any(key in self.aliases.get(name, ()) for key in _MOVES)

    def drawable(self) -> dict[str, dict]:
        """name -> body, frame and moves of every picture that is not hidden (given up)."""
        turned = {
            name: {**self.icons[alias["parent"]], **alias}
            for name, alias in self.aliases.items()
            if self.moves(name) and alias["parent"] in self.icons
        }
        every = {**self.icons, **turned}
        return {
            name: {**self.frame, **icon} for name, icon in every.items() if not icon.get("hidden")
        }


def icon_set(content: Mapping[str, Any], chars: Mapping[str, str]) -> IconSet:
    """The set in a JSON object; raises KeyError, TypeError or AttributeError if it is none."""
    found = IconSet(
        icons=content["icons"],
        aliases=content.get("aliases", {}),
        chars=chars,
        frame={side: content.get(side, default) for side, default in _FRAME.items()},
    )
    for name, icon in found.icons.items():
        if not isinstance(icon["body"], str):
            raise TypeError(f"the body of {name} is no text")
    return found
