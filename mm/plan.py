"""Compiles the step of a config for TPUs that are not here, and says what it will cost.

  python main.py --mode=plan --config=configs/siglip.py:variant=B/16 --topology=v5e:16x16

It is the very step that training would run (but that a SparseCore does not look embeddings up):
memory is what the compiler reserves, FLOPs are counted in what is traced, collectives in what is
compiled. The time is the compiler's own estimate, which
knows nothing of waiting for the network: a bound to compare variants by, not a promise.
"""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from mm.config import BadInput
from mm.optim.paths import flatten
from mm.optim.trained import trained
from mm.planning import hlo, sweep
from mm.planning.flops import count_flops, kernel_costs
from mm.planning.topology import GIB, Chip, Topology, open_topology
from mm.program import Program, build_program
from mm.runtime import table, workdir
from mm.runtime.memory import reserved
from mm.sharding.mesh import BATCH_AXES, count_slices
from mm.sharding.rules import axes_of, axis_size

COSTLIEST = 10  # operations that are shown
# jaxlib cannot read back a text in which a SparseCore looks embeddings up.
COMPILER_OPTIONS = {"xla_tpu_offload_gather_to_sparsecore": "false"}


def plan(config: ConfigDict, directory: str, topology: str | None = None) -> int:
    """Writes `plan.json` and the compiled text into `directory`, and prints; 1 if it does not fit.

    topology: "v5e:16x16", "2*v5e:16x16" or "h100:64"; by default the config's own `pod`. Raises
    BadInput when there is no such topology or libtpu is missing.
    """
    found, text = make_plan(config, find_topology(config, topology))
    path = epath.Path(directory) / "plan.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_json(path, found)
    compiled = path.parent / "step.hlo.txt"
    if text:
        workdir.write_atomic(compiled, text)
    else:
        compiled.unlink(missing_ok=True)  # that of a plan before
    print(show(found), flush=True)
    print(f"plan: {path}")
    return 1 if found["fits"] is False else 0


def plan_variants(
    config: ConfigDict, directory: str, topology: str | None, vary: Sequence[str]
) -> int:
    """Plans variants of the config, `sweep.json`, and prints a table; 1 if none of them fits.

    vary: what of "batch", "remat" and "mesh". Raises BadInput as `plan`, and for GPUs, for which
    there is nothing to compare by.
    """
    opened = find_topology(config, topology)
    if opened.chip.compiler_hertz is None:
        raise BadInput(
            f"--sweep needs the compiler's estimates; {opened.name} has no compiler here"
        )
    sweep.check(vary)
    path = epath.Path(directory) / "sweep.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    plans = sweep.sweep(
        config,
        len(opened.devices),
        count_slices(opened.devices),
        vary,
        lambda config: make_plan(config, opened)[0],
        lambda plans: workdir.write_json(path, plans),
    )
    print(sweep.show(plans))
    print(f"sweep: {path}")
    return 0 if any(found["fits"] for found in plans) else 1


def find_topology(config: Mapping, name: str | None) -> Topology:
    """The topology of that name, or of the config's pod."""
    name = name or config.get("pod")
    if not name:
        raise BadInput("--mode=plan needs --topology=KIND:SHAPE, as v5e:16x16: the config has none")
    return open_topology(name)


def make_plan(config: Mapping, topology: Topology) -> tuple[dict[str, Any], str]:
    """Everything that `plan.json` holds, and the compiled text, empty if there is none.

    Bytes and FLOPs are those of one chip and step. What a compiled step tells is left out when the
    compiler refuses it (`bytes_per_chip` are then those that it wanted), and for GPUs, for which
    there is none here (those of the state and its gradients; `fits` is None unless they are too
    many).
    """
    program = build_program(config, topology.devices)
    chips, chip = len(topology.devices), topology.chip
    traced = program.train_step.trace(program.state, program.batch_spec)
    model_flops = program.training_flops() / chips
    found: dict[str, Any] = {
        "topology": topology.name,
        "chips": chips,
        "mesh": {axis: int(size) for axis, size in program.mesh.shape.items()},
        "global_batch_size": program.recipe.global_batch_size,
        "memory_per_chip": chip.bytes_of_memory,
        **state_bytes(program),
        "model_flops_per_chip": model_flops,
        "hardware_flops_per_chip": count_flops(traced.jaxpr) / chips,
        "minimal_collective_bytes_per_chip": minimal_collective_bytes(program),
        "total_examples": program.recipe.total_steps * program.recipe.global_batch_size,
    }
    if chip.compiler_hertz is None:
        state = sum(found[f"{part}_bytes_per_chip"] for part in ("parameter", "moment", "gradient"))
        fits = None if state <= chip.bytes_of_memory else False
        return found | {"fits": fits, "bytes_per_chip": state}, ""
    compiled, found["compile_seconds"], wanted = compile_step(traced)
    if compiled is None:
        return found | {"fits": False, "bytes_per_chip": wanted}, ""
    text = read_text(compiled)
    found |= fit(compiled.memory_analysis(), chip)
    found |= estimates(hlo.parse(text, kernel_costs(traced.jaxpr)), chip, model_flops)
    seconds, examples = found["estimated_step_seconds"], program.recipe.global_batch_size
    return found | {
        "estimated_examples_per_second_per_chip": examples / chips / seconds,
        "chip_hours": program.recipe.total_steps * seconds * chips / 3600,
    }, text


def fit(memory: Any, chip: Chip) -> dict[str, Any]:
    """Whether a compiled step fits, by its `memory_analysis`."""
    total = reserved(memory)
    return {
        "fits": total <= chip.bytes_of_memory,
        "bytes_per_chip": total,
        "temporary_bytes_per_chip": memory.temp_size_in_bytes,
    }


def estimates(module: hlo.Module, chip: Chip, model_flops: float) -> dict[str, Any]:
    """What the text of a compiled step tells."""
    operations, collectives = hlo.operations(module, chip), hlo.collectives(module)
    seconds = sum(operation.seconds for operation in operations)
    return {
        "compiled_flops_per_chip": hlo.matmul_flops(module) + hlo.kernel_flops(module),
        "estimated_step_seconds": seconds,
        "estimated_kernel_seconds": sum(o.seconds for o in operations if o.kernel),
        "estimated_mfu": model_flops / seconds / chip.flops,
        "collective_bytes_per_chip": {kind: c["bytes"] for kind, c in collectives.items()},
        "collective_count": {kind: c["count"] for kind, c in collectives.items()},
        "costliest_operations": [o._asdict() for o in operations[:COSTLIEST]],
    }


def compile_step(traced: Any) -> tuple[Any, float, float | None]:
    """(the compiled step or None where it does not fit, seconds, the bytes that it wanted then).

    Raises BadInput where a kernel does not fit the chip's vector memory, and with the compiler's
    first line when it refuses for another reason.
    """
    begin = time.perf_counter()
    try:
        compiled = traced.lower().compile(COMPILER_OPTIONS)
    except jax.errors.JaxRuntimeError as error:
        if scoped := re.search(r"Used [\d.]+[KMG] of [\d.]+[KMG] vmem", str(error)):
            raise BadInput(
                f"a kernel does not fit the chip's vector memory ({scoped[0]}); use "
                "attention='einsum' in that stack, which needs none, or fewer tokens"
            ) from error
        # Two wordings; the second, of programs that are far too large, counts temporaries alone.
        wanted = re.search(
            r"(?:Used |temporaries \()([\d.]+)([KMG])(?: of |\) exceeds )", str(error)
        )
        if wanted is None:
            raise BadInput(f"the compiler refuses: {str(error).splitlines()[0]}") from error
        size = float(wanted[1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[wanted[2]]
        return None, time.perf_counter() - begin, size
    return compiled, time.perf_counter() - begin, None


def read_text(compiled: Any) -> str:
    """What the compiler wrote; raises BadInput where jaxlib cannot read it."""
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        raise BadInput(
            "libtpu compiles this step, but jaxlib cannot read what it wrote (newer than itself: "
            f"{str(error).splitlines()[0]}); plan it for v5e, which has no SparseCore"
        ) from error


def state_bytes(program: Program) -> dict[str, int]:
    """What parameters, moments and gradients take on a chip.

    Gradients are in float32 and laid out as the parameters that are trained; a compiled step has
    them among its temporaries.
    """
    rows = table.rows(program.state.params, program.state.opt_state, program.frozen)
    own = flatten(trained(program.state.params, program.frozen)).values()
    return {
        "parameters": table.parameter_count(rows),
        "trained_parameters": sum(leaf.size for leaf in own),
        "parameter_bytes_per_chip": sum(row.bytes_per_device for row in rows),
        "frozen_bytes_per_chip": sum(row.bytes_per_device for row in rows if row.frozen),
        "moment_bytes_per_chip": sum(row.moment_bytes_per_device for row in rows),
        "gradient_bytes_per_chip": sum(map(table.device_bytes, own)),
    }


def minimal_collective_bytes(program: Program) -> float:
    """The least that has to go over the wire, counted as `hlo.collectives` does.

    Gradients in float32 once (all-reduced, or reduce-scattered where the parameter is split, then
    all-reduced over the replicas); split parameters gathered in the computing dtype, matrices for
    each pass, tables for one, frozen ones for the forward pass; embeddings around the ring, forward
    with nothing, backward with their gradients. Activations split over `tensor` are not in it.
    """
    mesh, model = program.mesh, program.recipe.model
    computing = jnp.dtype(model.get("dtype", "float32")).itemsize
    parts = axis_size(mesh, BATCH_AXES)
    if parts == 1:
        return 0.0
    total = 3 * 4.0 * program.recipe.global_batch_size * (model.get("embed_dim") or 0)
    for name, leaf in flatten(program.state.params).items():
        passes = 2 if name.endswith("/kernel") and name not in program.frozen else 1
        axes = {axis for entry in leaf.sharding.spec for axis in axes_of(entry)}
        local = leaf.size / axis_size(mesh, sorted(axes & {"tensor"}))
        split = axis_size(mesh, sorted(axes & set(BATCH_AXES)))
        if split > 1:
            total += passes * computing * local
        if name in program.frozen:
            continue
        if split > 1:
            total += 4 * local
        if split < parts:
            total += 2 * 4 * local / split
    return total


def significant(number: float) -> str:
    """Whole, or with two digits where that would be little or nothing."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def show(found: Mapping[str, Any]) -> str:
    """The plan as people read it."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    shown = {"parameters": "parameter", "moments": "moment"}
    if for_gpus := "compile_seconds" not in found:
        shown["gradients"] = "gradient"
    if "temporary_bytes_per_chip" in found:
        shown["temporaries"] = "temporary"
    parts = [f"{part} {found[f'{key}_bytes_per_chip'] / GIB:.2f}" for part, key in shown.items()]
    verdict = {True: "fits", False: "DOES NOT FIT", None: "state and gradients"}[found["fits"]]
    lines = [
        f"{found['topology']}: {found['chips']} chips as {mesh}, "
        f"{found['global_batch_size']:,} examples a step, {found['parameters'] / 1e6:,.1f} M "
        "parameters",
        f"{verdict}: {found['bytes_per_chip'] / GIB:.2f} of {found['memory_per_chip'] / GIB:.2f} "
        f"GiB a chip ({', '.join(parts)})",
        f"FLOPs a chip and step: {found['model_flops_per_chip'] / 1e12:.2f} T of the model, "
        f"{found['hardware_flops_per_chip'] / 1e12:.2f} T with recompute",
    ]
    if found["frozen_bytes_per_chip"]:
        frozen, moments, gradients = (
            f"{found[f'{key}_bytes_per_chip'] / 2**20:,.1f} MiB"
            for key in ("frozen", "moment", "gradient")
        )
        lines.insert(
            2,
            f"trained: {found['trained_parameters'] / 1e6:,.2f} M parameters, with {gradients} of "
            f"gradients and {moments} of moments a chip; frozen: {frozen}, with neither",
        )
    least = f"at least {found['minimal_collective_bytes_per_chip'] / 2**20:,.0f} MiB"
    if for_gpus:
        lines += [
            f"over the wire: {least} a chip",
            f"{found['total_examples']:,} examples a run. For GPUs this is all, from shapes alone: "
            "what activations take, and time, would need their compiler",
        ]
        return "\n".join(lines)
    if "estimated_step_seconds" not in found:
        return "\n".join([*lines, f"compiled for {found['compile_seconds']:.0f} s"])
    wire = sum(found["collective_bytes_per_chip"].values())
    kinds = ", ".join(
        f"{kind} {found['collective_count'][kind]} x, {size / 2**20:,.0f} MiB"
        for kind, size in found["collective_bytes_per_chip"].items()
    )
    lines += [
        f"estimated step: {found['estimated_step_seconds'] * 1e3:.0f} ms (of which kernels, not "
        f"estimated by the compiler: {found['estimated_kernel_seconds'] * 1e3:.1f} ms), "
        f"{found['estimated_mfu']:.1%} MFU, "
        f"{found['estimated_examples_per_second_per_chip']:,.0f} examples/s/chip",
        f"over the wire: {wire / 2**20:,.0f} MiB a chip ({kinds or 'nothing'}), {least}",
        f"{found['total_examples']:,} examples: {significant(found['chip_hours'])} chip-hours at "
        f"that estimate; compiled for {found['compile_seconds']:.0f} s",
        "the costliest operations:",
    ]
    lines += [
        f"  {o['seconds'] * 1e3:7.2f} ms, {o['times']:3d} x  {o['name']}  {o['source'][-80:]}"
        for o in found["costliest_operations"]
    ]
    return "\n".join(lines)
