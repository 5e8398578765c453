"""Reads the string of ops. Only names, calls and literals: nothing is evaluated."""

import ast
import inspect
from collections.abc import Callable
from typing import Any

from data.preprocess import (  # noqa: F401  (the last ones register ops)
    Columns,
    Op,
    Preprocess,
    augment,
    color,
    corrupt,
    geometry,
    image,
    instruct,
    labels,
    mask,
    media,
    negatives,
    text,
)
from data.preprocess.draws import Draws
from mm import registry
from mm.config import BadInput


def parse(string: str, *, where: str, data_dir: str | None = None) -> Preprocess:
    """Returns the ops of `string`, "a|b(1, k=2)". where: the config key, for messages.

    data_dir: where `tokenize` looks for the tokenizers of prepared data sets. Raises BadInput that
    names the op and the argument that is wrong.
    """
    calls = _calls(_expression(string, where), where)
    names = tuple(ast.unparse(call) for call in calls)
    ops = tuple(_build(call, where, data_dir) for call in calls)
    return Preprocess(string, where, names, ops)


@registry.register("op", "view")
def view(*, name: str, ops: str) -> Op:
    """Writes image_<name>: the picture through `ops`, a string of ops on pictures.

    `decode|view("one", "random_resized_crop(48)|flip")|view("two", "random_resized_crop(48)|flip")
    |resize(48)`: each view draws its own numbers, and `image` goes on as if there were none.
    """
    if not name.isidentifier():
        raise BadInput(f"name={name!r}: expected letters, digits and _")
    inner = parse(ops, where="ops")
    if inner.reads or inner.tokenizer:
        raise BadInput(f"ops={ops!r}: reads fields; expected ops on a picture that is decoded")

    def apply(columns: Columns, draws: Draws) -> Columns:
        decoded = image.decoded(columns)
        made = inner.apply({"image": decoded}, draws.keys())
        return columns | {"image": decoded, f"image_{name}": made["image"]}

    return Op(apply)


def arguments(string: str, *, where: str) -> list[tuple[str, dict[str, Any]]]:
    """Each op's name and arguments, defaults filled in: what a string says, as data.

    Builds nothing; raises BadInput as `parse`, but for values that an op itself would refuse.
    """
    found = []
    for node in _calls(_expression(string, where), where):
        name, constructor, kwargs = _read(node, where)
        parameters = inspect.signature(constructor).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        found.append((name, {k: v for k, v in (defaults | kwargs).items() if k != "data_dir"}))
    return found


def renamed(string: str, op: str, key: str, value: str, *, where: str) -> list[str]:
    """The ops, each as it is written, with another value for one argument of the ops so called."""
    found = []
    for node in _calls(_expression(string, where), where):
        name, _, kwargs = _read(node, where)
        if name == op:
            given = [f"{k}={v!r}" for k, v in (kwargs | {key: value}).items()]
            found.append(f"{name}({', '.join(given)})")
        else:
            found.append(ast.unparse(node))
    return found


def _expression(string: str, where: str) -> ast.expr:
    try:
        return ast.parse(string.strip(), mode="eval").body
    except SyntaxError as error:
        near = (error.text or string).strip()
        raise BadInput(
            f"{where}: cannot read {near!r} near character {error.offset}: {error.msg}; expected "
            "ops such as 'decode|resize(48)|value_range(-1, 1)'"
        ) from error


def _calls(node: ast.expr, where: str) -> list[ast.Name | ast.Call]:
    """The ops of a | b | c, from left to right."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _calls(node.left, where) + _calls(node.right, where)
    if isinstance(node, ast.Name):
        return [node]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return [node]
    raise BadInput(f"{where}: {ast.unparse(node)!r} is no op; expected a name or name(literals)")


def _build(node: ast.Name | ast.Call, where: str, data_dir: str | None) -> Op:
    _, constructor, kwargs = _read(node, where)
    parameters = inspect.signature(constructor).parameters
    given = {"data_dir": data_dir} if "data_dir" in parameters else {}
    op = registry.call(constructor, kwargs, f"{where}: {ast.unparse(node)}", **given)
    if op.tokenizer:
        return op._replace(stage="tokenize")
    return op._replace(stage="text") if constructor.__module__ == text.__name__ else op


def _read(node: ast.Name | ast.Call, where: str) -> tuple[str, Callable, dict[str, Any]]:
    """The name of an op, its constructor, and the arguments that are given by name."""
    name = node.id if isinstance(node, ast.Name) else node.func.id
    constructor = registry.find("op", name, where)
    here = f"{where}: {ast.unparse(node)}"
    kwargs: dict[str, Any] = {}
    if isinstance(node, ast.Call):
        allowed = [key for key in inspect.signature(constructor).parameters if key != "data_dir"]
        if len(node.args) > len(allowed):
            raise BadInput(f"{here}: takes at most {len(allowed)} arguments ({allowed})")
        pairs = [*zip(allowed, node.args, strict=False)]
        for key, value in [*pairs, *((k.arg, k.value) for k in node.keywords)]:
            if key in kwargs:
                raise BadInput(f"{here}: {key!r} is given twice")
            kwargs[str(key)] = _literal(value, here, key)
    return name, constructor, kwargs


def _literal(node: ast.expr, where: str, key: str | None) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError) as error:  # {[1]: 2} has no hash
        raise BadInput(
            f"{where}: {key}={ast.unparse(node)} is no literal; expected a number, a string, a "
            "tuple, True, False or None"
        ) from error
