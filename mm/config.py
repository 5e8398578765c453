"""Configs: load a recipe, apply overrides, compare.

A recipe is a Python file with `get_config(arg="")` that returns an `ml_collections.ConfigDict`. It
is code until it is read, and data from then on: plain values, saved as JSON beside every run.
"""

import ast
import difflib
import importlib.util
import inspect
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from ml_collections import ConfigDict, FrozenConfigDict


class BadInput(Exception):
    """A mistake of the user: one line that says what was given, what was expected, what to do."""


class Range(NamedTuple):
    """Of a hint Annotated[int, Range(...)]: which numbers a key takes."""

    expected: str
    holds: Callable[[Any], bool]


Count = Annotated[int, Range("at least 0", lambda n: n >= 0)]
Positive = Annotated[int, Range("at least 1", lambda n: n >= 1)]
Factor = Annotated[float, Range("at least 0", lambda x: x >= 0)]
Scale = Annotated[float, Range("above 0", lambda x: x > 0)]
Rate = Annotated[float, Range("at least 0 and less than 1", lambda x: 0 <= x < 1)]
Share = Annotated[float, Range("0 to 1", lambda x: 0 <= x <= 1)]
Keep = Annotated[float, Range("more than 0, at most 1", lambda x: 0 < x <= 1)]
Part = Annotated[float, Range("more than 0 and less than 1", lambda x: 0 < x < 1)]


def load(path_and_arg: str) -> ConfigDict:
    """Reads `configs/name.py` or `configs/name.py:arg` and returns its `get_config(arg)`.

    Or the config.json of a run.
    """
    path, _, arg = path_and_arg.partition(":")
    file = Path(path)
    if not file.is_file():
        near = suggest(str(file), [str(p) for p in file.parent.glob("*.py")])
        raise BadInput(f"config {path!r}: no such file{near}")
    if file.suffix == ".json":
        return _load_json(file)
    if file.suffix != ".py":
        raise BadInput(f"config {path!r}: expected a .py file, or the config.json of a run")
    spec = importlib.util.spec_from_file_location(f"recipe_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise BadInput(f"config {path!r}: line {error.lineno}: {error.msg}") from error
    if not hasattr(module, "get_config"):
        raise BadInput(f"config {path!r}: has no function get_config(arg)")
    if arg and not inspect.signature(module.get_config).parameters:
        raise BadInput(f"config {path!r}: takes no argument, {arg!r} was given; leave out :{arg}")
    config = module.get_config(arg) if arg else module.get_config()
    if not isinstance(config, ConfigDict):
        raise BadInput(
            f"config {path!r}: get_config returned {type(config).__name__}, not ConfigDict"
        )
    config = ConfigDict(_apart(config))
    config.lock()
    return config


def _apart(config: ConfigDict) -> dict[str, Any]:
    """The same with no group in two places: a key that is set in one would change in the other."""
    return {
        key: _apart(value) if isinstance(value, ConfigDict) else value
        for key, value in config.items()
    }


def _load_json(file: Path) -> ConfigDict:
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise BadInput(f"config {str(file)!r}: is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise BadInput(f"config {str(file)!r}: expected an object, got {type(values).__name__}")
    config = ConfigDict(values)
    config.lock()
    return config


def parse_arg(arg: str, **defaults: Any) -> dict[str, Any]:
    """Reads a recipe's argument, "variant=B/16,res=256", against the defaults it names.

    Raises BadInput on an unknown name or on a value of another type than the default's.
    """
    values = dict(defaults)
    for item in filter(None, arg.split(",")):
        key, equals, text = item.partition("=")
        if key not in defaults or not equals:
            hint = suggest(key, defaults)
            raise BadInput(
                f"config argument {item!r}: expected one of {sorted(defaults)}, =value{hint}"
            )
        values[key] = _converted(f"config argument {key}", text, defaults[key])
    return values


def override(config: ConfigDict, assignments: Iterable[tuple[str, str]]) -> None:
    """Sets dotted keys in place, e.g. ("optimizer.learning_rate", "3e-4").

    A value must be of the type that stands there (an int may become a float, and anything may
    replace None); text is read as a Python literal, or as it is where text stands. A key that the
    config or a group of it leaves out is added, for whoever reads it to check; the groups above it
    must exist.
    """
    for key, text in assignments:
        node, parts = config, key.split(".")
        for depth, part in enumerate(parts):
            if isinstance(node, ConfigDict) and part not in node and depth == len(parts) - 1:
                break
            if not isinstance(node, ConfigDict) or part not in node:
                prefix = ".".join(["config", *parts[:depth]])
                known = list(node) if isinstance(node, ConfigDict) else []
                near = suggest(part, known) or suggest(key, (k for k, _ in flatten(config)))
                group = ".".join(parts[: depth + 1])
                whole = f"; a group that is not there is given whole, as --config.{group}={{...}}"
                raise BadInput(
                    f"unknown config key {key!r}: {prefix} has no {part!r}{near or whole}"
                )
            if depth < len(parts) - 1:
                node = node[part]
        with config.unlocked(), config.ignore_type():
            node[parts[-1]] = _converted(f"config.{key}", text, node.get(parts[-1]))


def _converted(where: str, text: str, current: Any) -> Any:
    """`text` as a value of the type of `current`."""
    if isinstance(current, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError):
        value = text
    wanted = type(current)
    if isinstance(current, float) and type(value) is int:
        value = float(value)
    if isinstance(current, tuple | list) and isinstance(value, tuple | list):
        value = wanted(value)
    if isinstance(current, ConfigDict):
        if not isinstance(value, Mapping):
            raise BadInput(f"{where}={text}: is a group of keys; set one of {sorted(current)}")
        return ConfigDict(value)
    if current is not None and value is not None and type(value) is not wanted:
        raise BadInput(f"{where}={text}: expected {wanted.__name__}, got {type(value).__name__}")
    return value


def suggest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the nearest known name, or "" if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def listed(items: Iterable[str], most: int = 6) -> str:
    """The first items, and how many more there are: one line, however many."""
    items = list(items)
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def plain(config: Any) -> Any:
    """The config as dicts, lists and scalars, as JSON holds it."""
    if isinstance(config, ConfigDict | FrozenConfigDict | Mapping):
        return {str(k): plain(v) for k, v in config.items()}
    if isinstance(config, tuple | list):
        return [plain(v) for v in config]
    return config


def flatten(config: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) for every leaf."""
    for key, value in config.items():
        if isinstance(value, ConfigDict | FrozenConfigDict | Mapping) and len(value):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(given: Mapping, found: Mapping, may_change: Collection[str] = ()) -> str:
    """Each key whose values differ, as "key (given 1, found 2)", eight at most; "" for none.

    Keys equal to an entry of `may_change`, or below it ("log" covers "log.every_steps"), are left
    out. Both as `plain` makes them.
    """
    new, old = dict(flatten(given)), dict(flatten(found))

    def show(values: Mapping[str, Any], key: str) -> str:
        return json.dumps(values[key]) if key in values else "nothing"

    changed = [
        f"{key} (given {show(new, key)}, found {show(old, key)})"
        for key in sorted(old.keys() | new.keys())
        if show(old, key) != show(new, key)
        and not any(key == entry or key.startswith(f"{entry}.") for entry in may_change)
    ]
    return listed(changed, 8)
