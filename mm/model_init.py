"""config.model_init: the parameters that a fresh run begins with, from a run or another's model.

What fits by name and shape is taken; all else is listed, and refused unless a pattern allows it.
"""

import contextlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from etils import epath

from mm.config import BadInput, differences, listed, plain
from mm.interop import formats, options
from mm.interop.run import at_weights, find_weights, saved_weights
from mm.models.vit import resample
from mm.optim.paths import flatten, map_paths, match_any
from mm.program import Program
from mm.recipe import SAME_FUNCTION
from mm.runtime.checkpoint import Checkpointer

WHERE = "config.model_init"
TEXT_EMBEDDING = "model/text/embedding"  # whoever takes it takes the meaning of the token ids
_IMAGE_POSITIONS = "model/image/position_embedding"
_TEXT_POSITIONS = "model/text/position_embedding"
_SHOWN = 6


class Origin(NamedTuple):
    """Where parameters come from: what there is, by our paths, before any is read.

    read(name -> ShapeDtypeStruct with a sharding) gives these arrays, so placed. unused: weights of
    a foreign file that are none of ours, by its names.
    """

    says: str
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[Mapping[str, jax.ShapeDtypeStruct]], Mapping[str, jax.Array]]
    unused: tuple[str, ...]
    model: Mapping
    objectives: Mapping
    tokenizer: Mapping | None
    foreign: bool
    adapt: Mapping


def spec_of(init: str | Mapping) -> dict[str, Any]:
    """The keys of `read_parameters`: a text is its path."""
    return {"path": init} if isinstance(init, str) else dict(init)


def read_parameters(
    *,
    path: str | None = None,
    soup: tuple[str, ...] = (),
    weights: tuple[float, ...] = (),
    parameters: tuple[str, ...] = (".*",),
    allow_missing: tuple[str, ...] = (),
    allow_unused: tuple[str, ...] = (),
    step: int | None = None,
    which: Literal["trained", "average"] | None = None,
    program: Program,
) -> tuple[Any, dict]:
    """config.model_init: parameters of another model, whose paths one of the regexes matches.

    path: "hf:FOLDER", "open_clip:FOLDER", "big_vision:FILE.npz", "run:WORKDIR", or as
    `mm.interop.formats` guesses it. step: of a run (None: the latest); which: of a run that keeps
    an average, that or what was trained (None: what it evaluates, as in an export). Position
    embeddings of another grid are resampled, those of a longer text cut. A parameter that the file
    does not have, or has in another shape, stays as it is drawn, if one of `allow_missing` matches
    it or config.adapt adds it; what the file has beside ours must be matched by `allow_unused`, by
    our path or its name. What an objective owns (the scale) comes along under another name, too, if
    the other model has one objective alone and ours has one of its kind.

    soup: several paths instead of one, whose parameters are averaged, by `weights` that sum to 1
    (default: all alike): a model soup of runs that began alike (Wortsman et al. 2022a), or, of the
    zero-shot model and what was fine-tuned from it, WiSE-FT (2022b, eq. 1).

    Returns (a tree as the program's parameters, None where nothing was taken; what of the manifest
    the data must fit: the tokenizer, if the text's embedding is taken). Raises BadInput when there
    is no such model, or something differs that no pattern allows.
    """
    params, found, saved = program.state.params, {}, {}
    names = match_any(params, parameters, "parameters")
    for number, (text, weight) in enumerate(_shares(path, soup, weights, step)):
        with _opened(formats.parse_place(text, "path"), step, which) as origin:
            _check_adapt(origin, program.recipe.adapt or {}, bool(soup))
            taken = _take(origin, program, names, parameters, allow_missing, allow_unused)
        tokenizer = {"tokenizer": origin.tokenizer} if TEXT_EMBEDDING in taken else {}
        if soup:
            taken = {name: weight * x for name, x in taken.items()}
        if number:
            if taken.keys() != found.keys() or tokenizer != saved:
                raise BadInput(f"soup: {text} has other parameters, or another tokenizer")
            taken = {name: found[name] + x for name, x in taken.items()}
        found, saved = taken, tokenizer
    return map_paths(lambda name, _: found.get(name), params), saved


def _shares(
    path: str | None, soup: tuple[str, ...], weights: tuple[float, ...], step: int | None
) -> list[tuple[str, float]]:
    """Each path and its weight. Raises BadInput for weights that are no average."""
    if (path is None) == (not soup):
        raise BadInput(f"path={path!r}, soup={list(soup)}: expected one of them")
    if path is not None and not weights:
        return [(path, 1.0)]
    if path is not None or step is not None:
        raise BadInput(f"weights={list(weights)}, step={step}: weights are of soup, step of path")
    weights = weights or (1 / len(soup),) * len(soup)
    if len(weights) != len(soup) or not math.isclose(sum(weights), 1, abs_tol=1e-6):
        raise BadInput(
            f"weights={list(weights)}: expected {len(soup)}, one for each of soup, that sum to 1"
        )
    return list(zip(soup, weights, strict=True))


def _take(
    origin: Origin,
    program: Program,
    names: frozenset[str],
    parameters: tuple[str, ...],
    allow_missing: tuple[str, ...],
    allow_unused: tuple[str, ...],
) -> dict[str, jax.Array]:
    """The arrays of one model by our paths; says what was taken and what was not."""
    params = flatten(program.state.params)
    origin = _renamed(origin, program.recipe.objectives)
    taken, resized, fresh = _compare(origin, params, names)
    unused = sorted(origin.shapes.keys() - taken - resized.keys())
    unused = [x for x in unused if _matches(x, parameters) and x not in fresh]
    new = {name for name in fresh if name in program.added and name not in origin.shapes}
    fresh = {name: said for name, said in fresh.items() if name not in new}
    _check(origin, fresh, unused, allow_missing, allow_unused)
    found = _read(origin, params, taken, resized, program.recipe.model)
    _say(origin, len(params), found, resized, new, fresh, unused, program)
    return found


@contextlib.contextmanager
def _opened(place: formats.Place, step: int | None, which: str | None):
    if place.format == "run":
        with open_run(place.path) as checkpointer:
            yield _of_run(checkpointer, place.path, step, which)
        return
    for key, value in (("step", step), ("which", which)):
        if value is not None:
            raise BadInput(f"{key}={value}: is of a run, path={str(place)!r} is none")
    bundle = formats.read(str(place), "path", partial=True)

    def read(wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        return {
            name: placed(bundle.params[name].astype(x.dtype), x.sharding)
            for name, x in wanted.items()
        }

    shapes = {name: x.shape for name, x in bundle.params.items()}
    unused = tuple(bundle.manifest.get("unused", ()))
    text = bundle.manifest.get("text")
    yield Origin(
        str(place), shapes, read, unused, bundle.model, bundle.objectives, text, True, bundle.adapt
    )


def placed(x: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """Each device gets its part; every process has the whole."""
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def open_run(workdir: str) -> contextlib.closing[Checkpointer]:
    """The checkpoints of another run."""
    return contextlib.closing(Checkpointer(epath.Path(workdir) / "checkpoints", read_only=True))


def _of_run(
    checkpointer: Checkpointer, workdir: str, step: int | None, which: str | None
) -> Origin:
    """Its arrays are read straight to where they belong."""
    manifest = checkpointer.manifest(step)
    step, config = manifest["step"], manifest["config"]
    weights = find_weights(config, which, workdir)

    def read(wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        if not wanted:
            return {}
        tree: dict = {}
        for name, leaf in wanted.items():
            *parents, last = name.split("/")
            node = tree
            for key in parents:
                node = node.setdefault(key, {})
            node[last] = leaf
        found, _ = checkpointer.restore(at_weights(tree, weights), step, partial=True)
        return flatten(saved_weights(found, weights))

    arrays = flatten(saved_weights(checkpointer.arrays(step), weights))
    shapes = {name: tuple(x.shape) for name, x in arrays.items()}
    says = f"step {step} in {workdir}" + (" (the average)" if weights == "average" else "")
    objectives = config.get("objectives", {})
    tokenizer = manifest["tokenizer"]
    adapt = config.get("adapt") or {}
    return Origin(says, shapes, read, (), config["model"], objectives, tokenizer, False, adapt)


def _renamed(origin: Origin, objectives: Mapping) -> Origin:
    """With the scale of a contrastive objective under the name that ours has.

    Where each side has one objective of that kind.
    """
    if len(origin.objectives) != 1:
        return origin
    [(theirs, spec)] = origin.objectives.items()
    own = [name for name, other in objectives.items() if other["name"] == spec["name"]]
    if len(own) != 1 or theirs in objectives:
        return origin
    old, new = f"objectives/{theirs}/", f"objectives/{own[0]}/"
    names = {new + x.removeprefix(old) if x.startswith(old) else x: x for x in origin.shapes}

    def read(wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        found = origin.read({names[name]: leaf for name, leaf in wanted.items()})
        return {name: found[names[name]] for name in wanted}

    shapes = {name: origin.shapes[old] for name, old in names.items()}
    return origin._replace(shapes=shapes, read=read)


def _compare(
    origin: Origin, params: Mapping[str, Any], names: frozenset[str]
) -> tuple[set[str], dict[str, str], dict[str, str]]:
    """(those that fit, those to resize and how it is said, those that cannot be and why)."""
    taken: set[str] = set()
    resized: dict[str, str] = {}
    fresh: dict[str, str] = {}
    for name in params:
        if name not in names:
            continue
        old, new = origin.shapes.get(name), tuple(params[name].shape)
        if old is None:
            fresh[name] = f"{name} (missing)"
        elif old == new:
            taken.add(name)
        elif name == _IMAGE_POSITIONS and old[1:] == new[1:]:
            resized[name] = f"{name} {list(old)} resampled to {list(new)}"
        elif name == _TEXT_POSITIONS and old[1:] == new[1:] and old[0] > new[0]:
            resized[name] = f"{name} {list(old)} cut to {list(new)}"
        else:
            fresh[name] = f"{name} (is {list(old)}, expected {list(new)})"
    return taken, resized, fresh


def _check_adapt(origin: Origin, adapt: Mapping, soup: bool) -> None:
    """Raises BadInput for weights that are not all of the function that they were trained for."""
    if origin.adapt and soup:
        raise BadInput(
            f"soup: {origin.says} was trained with config.adapt, and products are not averaged by "
            "their factors; take its export (--mode=export --format=npz), in which they are merged"
        )
    if origin.adapt and (changed := differences(plain(adapt), plain(origin.adapt))):
        raise BadInput(
            f"{origin.says} was trained with another config.adapt: {changed}; use the same, or its "
            "export (--mode=export --format=npz), in which what can be is merged"
        )


def _check(
    origin: Origin,
    fresh: Mapping[str, str],
    unused: list[str],
    allow_missing: tuple[str, ...],
    allow_unused: tuple[str, ...],
) -> None:
    refused = [said for name, said in fresh.items() if not _matches(name, allow_missing)]
    left = [x for x in (*unused, *origin.unused) if not _matches(x, allow_unused)]
    parts = []
    if refused:
        parts.append(
            f"does not have {listed(refused, _SHOWN)}; allow_missing=[...] leaves them fresh"
        )
    if left:
        parts.append(
            f"has more than ours: {listed(left, _SHOWN)}; allow_unused=[...] leaves them out"
        )
    if max(len(refused), len(left)) > _SHOWN:  # the error is one line
        lines = [f"  cannot be filled: {said}" for said in refused]
        _print([*lines, *(f"  in no place of ours: {name}" for name in left)])
    if parts:
        raise BadInput(f"{origin.says} {', and '.join(parts)} (regexes of whole names)")


def _read(
    origin: Origin,
    params: Mapping[str, jax.ShapeDtypeStruct],
    taken: set[str],
    resized: Mapping[str, str],
    model: Mapping,
) -> dict[str, jax.Array]:
    """The arrays by name, as the program has them placed."""
    wanted = {name: params[name] for name in params if name in taken}
    for name in resized:
        own = params[name]
        everywhere = jax.sharding.NamedSharding(own.sharding.mesh, jax.sharding.PartitionSpec())
        shape = origin.shapes[name]
        wanted[name] = jax.ShapeDtypeStruct(shape, own.dtype, sharding=everywhere)
    found = dict(origin.read(wanted))
    for name in resized:
        own = params[name]
        if name == _TEXT_POSITIONS:
            change = lambda table, count=own.shape[0]: table[:count]  # noqa: E731
        else:
            old, new = _grid(origin.model["image"]), _grid(model["image"])
            if math.prod(old) != found[name].shape[0]:
                raise BadInput(f"{origin.says}: {name} is not of a grid of {old} patches")
            change = lambda table, old=old, new=new: resample(table, old, new)  # noqa: E731
        found[name] = jax.jit(change, out_shardings=own.sharding)(found[name])
    return found


def _grid(image: Mapping) -> tuple[int, ...]:
    """Of the position embeddings of a ViT."""
    size = image.get("position_size") or image["image_size"]
    sides = (size, size) if isinstance(size, int) else tuple(size)
    grid = tuple(side // image["patch_size"] for side in sides)
    frames = image.get("frames")
    return grid if frames is None else (frames // image.get("tubelet_size", 1), *grid)


def _say(
    origin: Origin,
    count: int,
    found: Mapping[str, Any],
    resized: Mapping[str, str],
    new: set[str],
    fresh: Mapping[str, str],
    unused: list[str],
    program: Program,
) -> None:
    left = [*unused, *origin.unused]
    lines = [f"{len(found)} of {count} parameters are those of {origin.says}"]
    lines[0] += f", {len(new)} are new, as config.adapt says" if new else ""
    if changed := _changed(origin, program, found):
        lines[0] += f"; note that its config.model was another: {changed}"
    for what, items in (
        ("of another size", list(resized.values())),
        ("fresh, as allow_missing says", list(fresh.values())),
        ("left out, as allow_unused says", left),
    ):
        lines += [f"  {what}: {item}" for item in items]
    _print(lines)


def _print(lines: list[str]) -> None:
    if jax.process_index() == 0:
        print("\n".join(lines), flush=True)


def _changed(origin: Origin, program: Program, found: Mapping[str, Any]) -> str:
    """The options of the towers that were taken which are not the same function now."""
    towers = {name.split("/")[1] for name in found if name.startswith("model/")}
    recipe = program.recipe
    if not origin.foreign:  # both are written as recipes are, and an old one need not build
        models = plain(recipe.model), plain(origin.model)
        own = ({key: m[key] for key in sorted(towers & m.keys())} for m in models)
        return differences(*own, SAME_FUNCTION)
    own = (
        options.find(plain(model), plain(objectives)).keys
        for model, objectives in (
            (recipe.model, recipe.objectives),
            (origin.model, origin.objectives),
        )
    )
    return differences(
        *({k: v for k, v in keys.items() if k.split(".")[0] in towers} for keys in own)
    )


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    try:
        return any(re.fullmatch(pattern, name) for pattern in patterns)
    except re.error as error:
        raise BadInput(f"{list(patterns)}: is no list of regular expressions: {error}") from error
