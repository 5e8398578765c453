"""What an adaptation is: new parameters beside those of a model, whose own keep their paths.

A kind is a function, registered as ("adaptation", name), of its keys of the config and of `model`,
`rngs` and `whole`: it gives modules of the model more to compute. One whose parameters can go into
the model's own has another, ("fold", name), of (parameters, spec).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from mm import registry
from mm.config import BadInput
from mm.models.multimodal import Multimodal
from mm.optim.paths import match_any

Arrays = Mapping[str, np.ndarray]


def adapt(
    model: Multimodal, specs: Mapping[str, Mapping], rngs: nnx.Rngs, *, whole: bool = True
) -> None:
    """Adds all that config.adapt says to the model, in its order; the new parameters are marked.

    whole: False for a model of which parts were left out, so that a regex may match nothing. Raises
    BadInput for what the model has no place for.
    """
    own = {id(variable) for variable in _parameters(model)}
    for name, spec in specs.items():
        where = f"config.adapt.{name}"
        registry.build("adaptation", spec, where, model=model, rngs=rngs, whole=whole)
    for variable in _parameters(model):
        if id(variable) not in own:
            variable.set_metadata(added=True)


def fold(params: Arrays, specs: Mapping[str, Mapping]) -> tuple[dict[str, np.ndarray], dict]:
    """(parameters by path, config.adapt) with everything folded in that can be.

    What is left of config.adapt are the adaptations that change what a model computes in ways that
    its own parameters cannot.
    """
    params, left = dict(params), {}
    for name, spec in specs.items():
        if spec["name"] in registry.names("fold"):
            params, spec = registry.find("fold", spec["name"], "config.adapt")(params, spec)
        if spec is not None:
            left[name] = spec
    return params, left


def find_modules(
    model: Multimodal, kind: type, at: Sequence[str], whole: bool
) -> dict[str, nnx.Module]:
    """Modules of a kind by path, "model/image/...", that one of the regexes matches as a whole.

    Raises BadInput for a regex that matches none.
    """
    modules = {
        "/".join(("model", *map(str, path))): module
        for path, module in nnx.iter_graph(model)
        if isinstance(module, kind)
    }
    found = set()
    for pattern in at:
        try:
            found |= match_any(dict.fromkeys(modules, 0), (pattern,), "at")
        except BadInput as error:
            if whole:
                what = str(error).replace("no parameter", f"no {kind.__name__}")
                raise BadInput(what) from error
    return {path: modules[path] for path in sorted(found)}


def _parameters(model: nnx.Module) -> list[Any]:
    return [node for _, node in nnx.iter_graph(model) if isinstance(node, nnx.Param)]
