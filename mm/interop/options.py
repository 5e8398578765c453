"""What a config says of a model with every default filled in, and the shapes of its parameters."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flax import nnx

import mm.objectives  # noqa: F401  (registers them)
from mm import registry
from mm.config import BadInput, listed
from mm.objectives.combine import System
from mm.optim.paths import flatten
from mm.recipe import NO_FUNCTION


class Options(NamedTuple):
    """keys: {"image.width": 192, "embed_dim": 256, ...}; settings: likewise of the objectives,
    {"mae.ratio": 0.75, ...}; shapes: by the paths of parameters."""

    keys: dict[str, Any]
    settings: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    objectives: Mapping[str, Mapping]

    def part(self, name: str) -> dict[str, Any]:
        """The keys of "image" or "text", without that name."""
        start = f"{name}."
        return {k.removeprefix(start): v for k, v in self.keys.items() if k.startswith(start)}

    def has(self, name: str) -> bool:
        """Whether the model has such a part."""
        return any(key.startswith(f"{name}.") for key in self.keys)

    def objective(self, name: str, **keys: Any) -> str | None:
        """What the first objective of that kind is called, None without one."""
        for key, spec in self.objectives.items():
            if spec["name"] == name and all(spec.get(k, v) == v for k, v in keys.items()):
                return key
        return None


def find(model: Mapping, objectives: Mapping) -> Options:
    """Of config.model and config.objectives. Raises BadInput for what cannot be built."""
    with registry.recording() as values:
        system = nnx.eval_shape(lambda: System(model, objectives, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(system, nnx.Param))
    keys = {
        key.removeprefix("config.model."): list(value) if isinstance(value, tuple) else value
        for key, value in values.items()
        if key.startswith("config.model.") and not isinstance(value, Mapping)
    }
    keys = {k: v for k, v in keys.items() if k.split(".")[-1] not in NO_FUNCTION}
    for part in ("image", "text"):
        for key, default in (("mlp_dim", 4 * keys.get(f"{part}.width", 0)), ("stem", None)):
            if keys.get(name := f"{part}.{key}", 0) is None:
                keys[name] = default
    if "image.patch_size" in keys:
        size = keys["image.image_size"]
        keys["image.image_size"] = [size, size] if isinstance(size, int) else size
        position = keys["image.position_size"] or size
        keys["image.position_size"] = [position] * 2 if isinstance(position, int) else position
        keys.pop("image.stem", None)  # its own keys tell
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(params).items()}
    settings = {
        key.removeprefix("config.objectives."): value
        for key, value in values.items()
        if key.startswith("config.objectives.")
    }
    return Options(keys, settings, shapes, objectives)


def refuse_others(given: Options, expressed: Options, what: str) -> None:
    """Raises BadInput that lists the keys of a model that `what` does not express."""
    names = sorted(given.keys.keys() | expressed.keys.keys())
    missing = object()
    wrong = []
    for name in names:
        own, theirs = given.keys.get(name, missing), expressed.keys.get(name, missing)
        if own is missing and theirs is None or theirs is missing and own is None:
            continue
        if own != theirs:
            shown = "nothing" if own is missing else repr(own)
            can = "nothing" if theirs is missing else repr(theirs)
            wrong.append(f"{name}={shown} ({what}: {can})")
    if wrong:
        raise BadInput(f"{what} has no counterpart of config.model.{listed(wrong, 8)}")
