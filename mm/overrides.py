"""`--config.key=value` on a command line. Standard library alone: launchers read it, too."""

from collections.abc import Sequence


def split_overrides(arguments: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Takes `--config.key=value` and `--config.key value` out of the command line."""
    overrides, rest, arguments = [], [], list(arguments)
    while arguments:
        argument = arguments.pop(0)
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        key, equals, value = argument.removeprefix("--config.").partition("=")
        if not equals and arguments and not arguments[0].startswith("--"):
            value = arguments.pop(0)
        overrides.append((key, value))
    return overrides, rest
