"""Icon sets as they are read from npm packages."""

from __future__ import annotations

from data.builders.iconify import IconSet, icon_set
from data.builders.install import Packages
from mm.config import BadInput


def read_icon_set(packages: Packages, package: str) -> IconSet:
    """The set of `package`; raises BadInput if a file is damaged, missing, or lacks what we use."""
    content, chars = packages.read(package, "icons.json"), packages.read(package, "chars.json")
    try:
        found = icon_set(content, chars)
        lost = sorted(set(chars.values()) - found.icons.keys() - found.aliases.keys())
        lost += [a for a, e in found.aliases.items() if e["parent"] not in found.icons]
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"emoji: package {package} is damaged: {error!r} in icons.json") from error
    if lost:
        raise BadInput(f"emoji: package {package} is damaged: no icon {lost[0]!r} in icons.json")
    return found
