"""A sweep file: what is compared, on which seeds, by which metric, for how much training each.

It is a Python file with `get_sweep()` that returns a plain dict of the keys of `Sweep`:

  def get_sweep():
      return dict(
          config="configs/menu.py:objectives=contrastive+matching",
          axes=dict(grid={":fusion": ["cross", "coattention"]}),
          metric="unseen/text_to_image/recall@10",
          budget=dict(examples=20_000),
      )

docs/ablations.md says how to choose. Nothing of JAX, TensorFlow or numpy is loaded.
"""

import dataclasses
import importlib.util
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mm.config import BadInput, suggest

AXES = ("grid", "zip", "list")
BUDGETS = ("examples", "flops", "seconds")
BETTER = ("higher", "lower")
# What the sweep itself sets.
_OURS = {"seed": "seeds", "total_steps": "budget"}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One variant. config: as --config takes it; overrides: dotted keys of it and their values."""

    name: str
    config: str
    overrides: Mapping[str, Any]

    def on(self, seed: int) -> "Arm":
        """With the number of a seed for "{seed}"."""
        config, overrides = filled(self.config, seed), filled(self.overrides, seed)
        return dataclasses.replace(self, config=config, overrides=overrides)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """What `get_sweep` returns, checked.

    config: "configs/X.py" or "configs/X.py:ARG", the recipe of all arms. overrides: keys of it that
    are set in all arms. axes: {"grid": {key: values}} for all combinations, {"zip": {key: values}}
    for the first values together, then the second..., {"list": {arm: {key: value}}} for arms by
    name; of several of these, all combinations. A key is a dotted one of the config, or ":NAME", an
    argument of the recipe; "{seed}" in a text becomes the run's seed. base: the arm that the others
    are compared with (default: the first). seeds: how many (0, 1, ...), or which. metric: a key of
    results.json; better: whether "higher" or "lower" values of it are. budget: {"examples": N},
    {"flops": N} (of the matmuls of training steps) or {"seconds": N} (of training steps, by a
    probe), the same for each arm.
    """

    name: str
    config: str
    axes: Mapping[str, Any]
    metric: str
    budget: Mapping[str, float]
    better: str = "higher"
    base: str | None = None
    seeds: int | Sequence[int] = 3
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, wanted = getattr(self, field.name), _TYPES[field.name]
            if not isinstance(value, wanted) or isinstance(value, bool):
                raise BadInput(f"{field.name}={value!r}: expected {_DESCRIBED[field.name]}")
        _one_of("better", self.better, BETTER)
        if len(self.budget) != 1:
            raise BadInput(f"budget={dict(self.budget)}: expected one of {list(BUDGETS)}")
        [(kind, amount)] = self.budget.items()
        _one_of("budget", kind, BUDGETS)
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not amount > 0:
            raise BadInput(f"budget {kind}={amount!r}: expected a number above 0")
        if not self.seed_list or len(set(self.seed_list)) < len(self.seed_list):
            raise BadInput(f"seeds={self.seeds!r}: expected {_DESCRIBED['seeds']}, each once")
        if any(type(seed) is not int for seed in self.seed_list):
            raise BadInput(f"seeds={self.seeds!r}: expected {_DESCRIBED['seeds']}")
        names = [arm.name for arm in self.arms]
        if twice := {name for name in names if names.count(name) > 1}:
            raise BadInput(f"axes: two arms are called {sorted(twice)[0]!r}; name them by a list")
        if len(names) < 2:
            raise BadInput(f"axes: {len(names)} arm; a comparison takes 2 or more")
        _one_of("base", self.base_name, names)

    @property
    def seed_list(self) -> list[int]:
        """Each seed."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    @property
    def base_name(self) -> str:
        """The arm that the others are compared with."""
        return self.base if self.base is not None else self.arms[0].name

    @property
    def arms(self) -> list[Arm]:
        """In the order of the axes, the first key slowest."""
        kinds = [list(_variants(kind, self.axes[kind])) for kind in self.axes]
        found = []
        for parts in itertools.product(*kinds):
            changes = dict(self.overrides)
            for _, values in parts:
                changes |= values
            found.append(_arm(",".join(name for name, _ in parts), self.config, changes))
        return found


_TYPES: dict[str, Any] = {
    "name": str, "config": str, "axes": Mapping, "metric": str, "budget": Mapping, "better": str,
    "base": str | None, "seeds": int | list | tuple, "overrides": Mapping,
}  # fmt: skip
_DESCRIBED = {
    "name": "a text", "config": '"configs/X.py:ARG"', "axes": f"a dict of {list(AXES)}",
    "metric": "a key of results.json", "budget": f"a dict of one of {list(BUDGETS)}",
    "better": f"one of {list(BETTER)}", "base": "the name of an arm",
    "seeds": "a number of at least 1, or a list of whole numbers", "overrides": "a dict",
}  # fmt: skip


def read_sweep(path: str) -> Sweep:
    """The sweep of a file, called by the file's name. Raises BadInput."""
    file = Path(path)
    if not file.is_file() or file.suffix != ".py":
        near = suggest(str(file), [str(p) for p in file.parent.glob("*.py")])
        raise BadInput(f"sweep {path!r}: no such Python file{near}")
    spec = importlib.util.spec_from_file_location(f"sweep_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise BadInput(f"sweep {path!r}: line {error.lineno}: {error.msg}") from error
    if not hasattr(module, "get_sweep"):
        raise BadInput(
            f"sweep {path!r}: has no function get_sweep()"
            + ("; it is a config: main.py --config= runs it" * hasattr(module, "get_config"))
        )
    try:
        return make_sweep(file.stem, module.get_sweep())
    except BadInput as error:
        raise BadInput(f"sweep {path!r}: {error}") from error


def make_sweep(name: str, given: Any) -> Sweep:
    """Of what `get_sweep` returned. Raises BadInput on an unknown, missing or wrong key."""
    if not isinstance(given, Mapping):
        raise BadInput(f"get_sweep returned {type(given).__name__}, expected a dict")
    fields = [field for field in dataclasses.fields(Sweep) if field.name != "name"]
    for key in given:
        _one_of("key", key, [field.name for field in fields])
    optional = (dataclasses.MISSING, dataclasses.MISSING)
    for field in fields:
        if field.name not in given and (field.default, field.default_factory) == optional:
            raise BadInput(f"{field.name} is missing: expected {_DESCRIBED[field.name]}")
    return Sweep(name=name, **given)


def as_text(value: Any) -> str:
    """As `--config.KEY=` takes it."""
    return value if isinstance(value, str) else repr(value)


def filled(value: Any, seed: int) -> Any:
    """The value with the number of a seed for each "{seed}" in its texts."""
    if isinstance(value, Mapping):
        return {key: filled(part, seed) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(filled(part, seed) for part in value)
    return value.replace("{seed}", str(seed)) if isinstance(value, str) else value


def _variants(kind: str, given: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, overrides) of each arm of an axis."""
    _one_of("axes", kind, AXES)
    if not isinstance(given, Mapping) or not given:
        raise BadInput(f"axes.{kind}={given!r}: expected a dict that is not empty")
    if kind == "list":
        for name, changes in given.items():
            if not isinstance(changes, Mapping):
                raise BadInput(f"axes.list.{name}={changes!r}: expected a dict of keys and values")
            yield name, dict(changes)
        return
    for key, values in given.items():
        if not isinstance(values, list | tuple) or not values:
            raise BadInput(f"axes.{kind}.{key}={values!r}: expected a list that is not empty")
    lengths = {key: len(values) for key, values in given.items()}
    if kind == "zip" and len(set(lengths.values())) > 1:
        raise BadInput(f"axes.zip: the lists differ in length: {lengths}")
    together = zip if kind == "zip" else itertools.product
    for values in together(*given.values()):
        changes = dict(zip(given, values, strict=True))
        for key, value in changes.items():
            if isinstance(value, Mapping | list | tuple):
                raise BadInput(f"axes.{kind}.{key}: a group has no name; give arms as a list")
        yield ",".join(f"{_short(key)}={value}" for key, value in changes.items()), changes


def _arm(name: str, config: str, changes: Mapping[str, Any]) -> Arm:
    name = name.replace("/", "-")
    if not re.fullmatch(r"[\w.=,+-]+", name) or name.startswith("."):
        raise BadInput(f"arm {name!r}: is no name of a folder; name it by a list")
    overrides = {}
    for key, value in changes.items():
        if key in _OURS:
            raise BadInput(f"arm {name!r} sets {key}: {_OURS[key]} does")
        if key.startswith(":"):
            config = with_argument(config, key[1:], value)
        else:
            overrides[key] = value
    return Arm(name, config, overrides)


def with_argument(config: str, name: str, value: Any) -> str:
    """ "configs/x.py:a=1" and b, 2 -> "configs/x.py:a=1,b=2"; one that is there is replaced."""
    path, _, argument = config.partition(":")
    items = [item for item in argument.split(",") if item and item.partition("=")[0] != name]
    return f"{path}:{','.join([*items, f'{name}={value}'])}"


def _short(key: str) -> str:
    return key.removeprefix(":").rpartition(".")[2]


def _one_of(what: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise BadInput(
            f"{what} {value!r}: expected one of {list(known)}{suggest(str(value), known)}"
        )
