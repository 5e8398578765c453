"""Components by name: the constructor's signature is the schema of its part of the config.

`build(kind, {"name": "vit", "width": 192}, where="config.model.image", rngs=rngs)` finds the
constructor, checks every key and type against its annotations, and calls it. `given` are what the
program passes by itself; a config may not set them.
"""

import contextlib
import contextvars
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Union

from mm.config import BadInput, suggest

_constructors: dict[str, dict[str, Callable]] = {}
# What is being built, so that its parts can say "stem" and mean "config.model.image.stem".
_inside: contextvars.ContextVar[str] = contextvars.ContextVar("inside", default="")
_recorded: contextvars.ContextVar[dict | None] = contextvars.ContextVar("recorded", default=None)


def register(kind: str, name: str) -> Callable[[Callable], Callable]:
    """Class or function decorator that makes `constructor` known as (kind, name)."""

    def add(constructor: Callable) -> Callable:
        known = _constructors.setdefault(kind, {})
        if known.get(name, constructor).__qualname__ != constructor.__qualname__:
            raise ValueError(f"two {kind}s are called {name!r}: {known[name]}, {constructor}")
        known[name] = constructor
        return constructor

    return add


def names(kind: str) -> list[str]:
    """The registered names of a kind, sorted."""
    return sorted(_constructors.get(kind, {}))


def find(kind: str, name: str, where: str) -> Callable:
    """The constructor of (kind, name), or BadInput with the names there are."""
    known = _constructors.get(kind, {})
    if name not in known:
        raise BadInput(
            f"{where}: no {kind} {name!r}{suggest(str(name), known)} (have {names(kind)})"
        )
    return known[name]


def build(kind: str, spec: Mapping, where: str, **given: Any) -> Any:
    """Builds the component that `spec["name"]` names from the other keys of `spec` and `given`.

    where: the config's key, or that of a part of what is being built.
    Raises BadInput on an unknown name or key, a missing key or a value of the wrong type, and when
    the constructor itself refuses a value with BadInput (its message is prefixed with `where`).
    """
    where = _absolute(where)
    if "name" not in spec:
        raise BadInput(f"{where}: has no 'name'; expected one of {names(kind)}")
    constructor = find(kind, spec["name"], where)
    kwargs = {key: value for key, value in spec.items() if key != "name"}
    return call(constructor, kwargs, where, **given)


def call(constructor: Callable, kwargs: Mapping, where: str, **given: Any) -> Any:
    """Calls `constructor(**kwargs, **given)` after `check`; see `build` for what it raises."""
    where = _absolute(where)
    kwargs = check(constructor, kwargs, where, given)
    outer = _inside.set(where)
    try:
        return constructor(**kwargs, **given)
    except BadInput as error:
        message = str(error)
        raise BadInput(
            message if message.startswith("config") else f"{where}: {message}"
        ) from error
    finally:
        _inside.reset(outer)


def check(constructor: Callable, kwargs: Mapping, where: str, given: Sequence[str] = ()) -> dict:
    """Returns `kwargs` with ints made floats and lists made tuples where the signature says so."""
    schema = {key: value for key, value in _schema(constructor).items() if key not in given}
    allowed = list(schema)
    checked = {}
    for key, value in kwargs.items():
        if key not in allowed:
            raise BadInput(f"{where}: unknown key {key!r}{suggest(key, allowed)} (have {allowed})")
        checked[key] = _checked(f"{where}.{key}", value, schema[key].hint)
    missing = [key for key in allowed if key not in checked and schema[key].required]
    if missing:
        raise BadInput(f"{where}: missing {', '.join(map(repr, missing))}")
    if (recorded := _recorded.get()) is not None:
        for key, entry in schema.items():
            recorded[f"{where}.{key}"] = checked.get(key, entry.default)
    return checked


@contextlib.contextmanager
def recording() -> Iterator[dict[str, Any]]:
    """Collects each key that is checked meanwhile with its value or its default, by its path.

    One within another collects for both.
    """
    outer, recorded = _recorded.get(), {}
    token = _recorded.set(recorded)
    try:
        yield recorded
    finally:
        _recorded.reset(token)
        if outer is not None:
            outer |= recorded


def _absolute(where: str) -> str:
    inside = _inside.get()
    return where if where.startswith("config") or not inside else f"{inside}.{where}"


class _Key(NamedTuple):
    hint: Any
    default: Any

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


def _schema(constructor: Callable) -> dict[str, _Key]:
    """The keys that a constructor takes. `**rest: Annotated[Any, C]` stands for the keys of C."""
    # A metaclass (flax's) may hide the signature of a class; its __init__ tells.
    function = constructor.__init__ if inspect.isclass(constructor) else constructor
    hints = typing.get_type_hints(function, include_extras=True)
    schema = {}
    for key, parameter in inspect.signature(function).parameters.items():
        hint = hints.get(key, Any)
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            schema |= _schema(hint.__metadata__[0])
        elif key != "self":
            schema[key] = _Key(hint, parameter.default)
    return schema


def _checked(where: str, value: Any, hint: Any) -> Any:
    """`value` as the annotation `hint` wants it, or BadInput."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _checked_union(where, value, args)
    if origin is Annotated:
        value = _checked(where, value, args[0])
        for limit in hint.__metadata__:
            if not limit.holds(value):
                raise BadInput(f"{where}={value!r}: expected {limit.expected}")
        return value
    if origin is Literal:
        if value not in args:
            near = suggest(str(value), map(str, args))
            raise BadInput(f"{where}={value!r}: expected one of {list(args)}{near}")
        return value
    if hint is float and type(value) is int:
        return float(value)
    kind = origin or hint
    if kind in (tuple, list, Sequence) and isinstance(value, tuple | list):
        item = args[0] if args else Any
        items = [_checked(f"{where}[{i}]", v, item) for i, v in enumerate(value)]
        return items if kind is list else tuple(items)
    if kind in (Mapping, dict) and isinstance(value, Mapping):
        return value
    if kind is type(None) and value is None:
        return None
    if inspect.isclass(kind) and type(value) is bool and kind is not bool:
        raise BadInput(f"{where}={value!r}: expected {_spell(hint)}, got bool")
    if not inspect.isclass(kind) or not isinstance(value, kind):
        raise BadInput(f"{where}={value!r}: expected {_spell(hint)}, got {type(value).__name__}")
    return value


def _checked_union(where: str, value: Any, args: tuple) -> Any:
    real = [arg for arg in args if arg is not type(None)]
    if value is None and len(real) < len(args):
        return None
    for arg in sorted(real, key=lambda a: a is not type(value)):  # an exact match goes first
        try:
            return _checked(where, value, arg)
        except BadInput:
            if len(real) == 1:
                raise
    expected = " or ".join(_spell(arg) for arg in args)
    raise BadInput(f"{where}={value!r}: expected {expected}, got {type(value).__name__}")


def _spell(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return f"{_spell(args[0])} {' and '.join(limit.expected for limit in hint.__metadata__)}"
    if origin is Literal:
        return " or ".join(map(repr, args))
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))
