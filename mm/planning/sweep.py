"""Variants of a config, each planned: which batch, remat preset and mesh give the most examples?"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mm.config import BadInput, suggest
from mm.models.remat import REMAT_PRESETS
from mm.planning.topology import GIB

VARIED = ("batch", "remat", "mesh")
OWN = "own"  # what the config says
TOWERS = ("image", "text")
COLUMNS = ("batch", "remat", "mesh", "GiB a chip", "step", "MFU", "examples/s/chip")


class Variant(NamedTuple):
    """batch: global. remat: a preset, or OWN. mesh: a name of `meshes`."""

    batch: int
    remat: str
    mesh: str


def meshes(config: Mapping, chips: int, slices: int) -> dict[str, tuple[dict[str, int], Any]]:
    """Name -> (config.sharding.mesh, config.sharding.rules): the config's own, and other presets.

    hsdp splits parameters over 32 chips at most, fsdp_tp matmuls over 2.
    """
    split = math.gcd(32, chips // slices)
    presets = {
        "dp": dict(replica=slices, fsdp=-1, tensor=1),
        "fsdp": dict(replica=slices, fsdp=-1, tensor=1),
        "hsdp": dict(replica=-1, fsdp=split, tensor=1),
        "fsdp_tp": dict(replica=-1, fsdp=max(1, split // 2), tensor=2),
    }
    if split == chips:  # there is nothing to copy across
        del presets["hsdp"]
    own = dict(config.sharding.mesh), config.sharding.rules
    found = {OWN: own}
    for rules, mesh in presets.items():
        if (_sizes(mesh, chips), rules) != (_sizes(own[0], chips), own[1]):
            found[rules] = mesh, rules
    return found


def _sizes(mesh: Mapping[str, int], chips: int) -> dict[str, int]:
    """Without -1 and without axes of one device, so that meshes can be compared."""
    fixed = math.prod(size for size in mesh.values() if size != -1)
    sizes = {axis: chips // fixed if size == -1 else size for axis, size in mesh.items()}
    return {axis: size for axis, size in sizes.items() if size != 1}


def check(vary: Sequence[str]) -> None:
    """Raises BadInput for what cannot be varied."""
    for name in vary:
        if name not in VARIED:
            raise BadInput(f"--sweep={name}: expected some of {VARIED}{suggest(name, VARIED)}")


def variants(config: Mapping, chips: int, slices: int, vary: Sequence[str]) -> Iterator[Variant]:
    """All combinations, a small batch before a large one.

    batch: half, the config's own and twice as many; remat: all presets. What is not in `vary` stays
    as it is.
    """
    batch = config.global_batch_size
    batches = (batch // 2, batch, 2 * batch) if "batch" in vary else (batch,)
    remats = (*REMAT_PRESETS, "none") if "remat" in vary else (OWN,)
    names = tuple(meshes(config, chips, slices)) if "mesh" in vary else (OWN,)
    for mesh, remat, size in itertools.product(names, remats, batches):
        yield Variant(size, remat, mesh)


def apply(config: ConfigDict, chips: int, slices: int, variant: Variant) -> ConfigDict:
    """The config of a variant, which sees as many examples."""
    changed = copy.deepcopy(config)
    mesh, rules = meshes(config, chips, slices)[variant.mesh]
    with changed.unlocked(), changed.ignore_type():  # rules and remat may be mappings
        changed.total_steps = config.total_steps * config.global_batch_size // variant.batch
        changed.global_batch_size = variant.batch
        changed.sharding.mesh, changed.sharding.rules = mesh, rules
        for tower in TOWERS if variant.remat != OWN else ():
            changed.model[tower].remat = variant.remat
    return changed


def sweep(
    config: ConfigDict,
    chips: int,
    slices: int,
    vary: Sequence[str],
    make_plan: Callable[[ConfigDict], dict[str, Any]],
    save: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """Plans every variant, the best first: its plan, with `variant`, or with `refused` and why.

    save(plans) is called after each. A batch larger than one that did not fit is not tried.
    """
    check(vary)
    found: list[dict[str, Any]] = []
    todo, full = list(variants(config, chips, slices, vary)), set()
    for i, variant in enumerate(todo, 1):
        if (variant.mesh, variant.remat) in full:
            continue
        try:
            plan = make_plan(apply(config, chips, slices, variant))
        except (BadInput, ValueError) as error:  # what this mesh cannot split, an unread text
            plan = {"fits": False, "refused": str(error)}
        if not plan["fits"] and "refused" not in plan:
            full.add((variant.mesh, variant.remat))
        found.append(plan | {"variant": variant._asdict()})
        print(f"{i}/{len(todo)}  " + "  ".join(row(found[-1])), flush=True)
        found.sort(key=lambda plan: -plan.get("estimated_examples_per_second_per_chip", 0))
        save(found)
    return found


def row(plan: Mapping[str, Any]) -> list[str]:
    """The cells of COLUMNS."""
    cells = [str(plan["variant"][key]) for key in Variant._fields]
    if "refused" in plan:
        return [*cells, "refused: " + plan["refused"]]
    memory = f"{plan['bytes_per_chip'] / GIB:.2f}"
    if not plan["fits"]:
        return [*cells, f"{memory}: does not fit"]
    return [
        *cells,
        memory,
        f"{plan['estimated_step_seconds'] * 1e3:.0f} ms",
        f"{plan['estimated_mfu']:.1%}",
        f"{plan['estimated_examples_per_second_per_chip']:,.0f}",
    ]


def show(plans: Sequence[Mapping[str, Any]]) -> str:
    """The table, as sorted."""
    lines = [list(COLUMNS), *map(row, plans)]
    widths = [
        max(len(line[i]) for line in lines if len(line) == len(COLUMNS))
        for i in range(len(COLUMNS))
    ]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip()
        for line in lines
    )
