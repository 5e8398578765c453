"""Compiles the step of a config for TPUs that are not here, and says what it will cost.

  python main.py --mode=plan --config=configs/siglip.py:variant=B/16 --topology=v5e:16x16

It is the very step that training would run: memory is what the compiler reserves, FLOPs are counted
in what is traced, collectives in what is compiled. The time is the compiler's own estimate, which
knows nothing of waiting for the network: a bound to compare variants by, not a promise.
"""

import math
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax import ShapeDtypeStruct
from ml_collections import ConfigDict

from mm.config import BadInput
from mm.planning import hlo
from mm.planning.flops import count_flops
from mm.planning.topology import GIB, Topology, open_topology
from mm.program import Program, build_program
from mm.runtime import table, workdir
from mm.sharding.mesh import BATCH_AXES
from mm.sharding.rules import axis_size

COSTLIEST = 10  # operations that are shown


def plan(config: ConfigDict, directory: str, topology: str | None = None) -> int:
    """Writes `plan.json` and the compiled text into `directory`, and prints; 0 if it fits, else 1.

    topology: "v5e:16x16" or "2*v5e:16x16"; by default the config's own `pod`. Raises BadInput when
    there is no such topology or libtpu is missing.
    """
    name = topology or config.get("pod")
    if not name:
        raise BadInput("--mode=plan needs --topology=KIND:SHAPE, as v5e:16x16: the config has none")
    found, text = make_plan(config, open_topology(name))
    path = epath.Path(directory) / "plan.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_json(path, found)
    if text:
        workdir.write_atomic(path.parent / "step.hlo.txt", text)
    print(show(found), flush=True)
    print(f"plan: {path}")
    return 0 if found["fits"] else 1


def make_plan(config: Mapping, topology: Topology) -> tuple[dict[str, Any], str]:
    """Everything that `plan.json` holds, and the compiled text, empty if the compiler refused it.

    Bytes and FLOPs are those of one chip and step. What a compiled step tells is then left out, and
    `bytes_per_chip` are those that the compiler wanted.
    """
    program = build_program(config, topology.devices)
    chips, chip = len(topology.devices), topology.chip
    traced = program.train_step.trace(program.state, batch(program))
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
    }
    compiled, found["compile_seconds"], wanted = compile_step(traced)
    if compiled is None:
        return found | {"fits": False, "bytes_per_chip": wanted}, ""
    memory = compiled.memory_analysis()
    text = compiled.as_text()
    module = hlo.parse(text)
    operations = hlo.operations(module, chip)
    seconds = sum(operation.seconds for operation in operations)
    collectives = hlo.collectives(module)
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    total += memory.output_size_in_bytes - memory.alias_size_in_bytes
    examples = program.recipe.total_steps * program.recipe.global_batch_size
    return found | {
        "fits": total <= chip.bytes_of_memory,
        "bytes_per_chip": total,
        "temporary_bytes_per_chip": memory.temp_size_in_bytes,
        "compiled_flops_per_chip": hlo.matmul_flops(module) + hlo.kernel_flops(module),
        "estimated_step_seconds": seconds,
        "estimated_kernel_seconds": sum(o.seconds for o in operations if o.kernel),
        "estimated_mfu": model_flops / seconds / chip.flops,
        "estimated_examples_per_second_per_chip": program.recipe.global_batch_size
        / chips
        / seconds,
        "collective_bytes_per_chip": {kind: c["bytes"] for kind, c in collectives.items()},
        "collective_count": {kind: c["count"] for kind, c in collectives.items()},
        "costliest_operations": [o._asdict() for o in operations[:COSTLIEST]],
        "total_examples": examples,
        "chip_hours": program.recipe.total_steps * seconds * chips / 3600,
    }, text


def batch(program: Program) -> dict[str, ShapeDtypeStruct]:
    """The batch of a step, without its contents."""
    return {
        key: ShapeDtypeStruct(spec.shape, spec.dtype, sharding=program.batch_sharding)
        for key, spec in program.batch_spec.items()
    }


def compile_step(traced: Any) -> tuple[Any, float, float | None]:
    """(the compiled step or None where it does not fit, seconds, the bytes that it wanted then).

    Raises BadInput with the compiler's first line when it refuses for another reason.
    """
    begin = time.perf_counter()
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        # Two wordings; the second, of programs that are far too large, counts temporaries alone.
        wanted = re.search(
            r"(?:Used |temporaries \()([\d.]+)([KMG])(?: of |\) exceeds )", str(error)
        )
        if wanted is None:
            raise BadInput(f"the compiler refuses: {str(error).splitlines()[0]}") from error
        size = float(wanted[1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[wanted[2]]
        return None, time.perf_counter() - begin, size
    return compiled, time.perf_counter() - begin, None


def state_bytes(program: Program) -> dict[str, int]:
    """What parameters and moments take on a chip."""
    rows = table.rows(program.state.params, program.state.opt_state)
    return {
        "parameters": sum(math.prod(row.shape) for row in rows),
        "parameter_bytes_per_chip": sum(row.bytes_per_device for row in rows),
        "moment_bytes_per_chip": sum(row.moment_bytes_per_device for row in rows),
    }


def minimal_collective_bytes(program: Program) -> float:
    """The least that has to go over the wire, counted as `hlo.collectives` does.

    Gradients in float32 once (all-reduced, or reduce-scattered where the parameter is split, then
    all-reduced over the replicas); split parameters gathered in the computing dtype for each pass;
    embeddings around the ring, forward with nothing, backward with their gradients. Activations
    split over `tensor` are not in it.
    """
    mesh = program.mesh
    embeddings = jax.eval_shape(program.embed, program.state.params, batch(program))[0]
    computing = jnp.dtype(program.recipe.model.get("dtype", "float32")).itemsize
    parts = axis_size(mesh, BATCH_AXES)
    if parts == 1:
        return 0.0
    total = 0.0
    for leaf in jax.tree.leaves(program.state.params):
        axes = {axis for entry in leaf.sharding.spec for axis in _axes(entry)}
        local = leaf.size / axis_size(mesh, sorted(axes & {"tensor"}))
        split = axis_size(mesh, sorted(axes & set(BATCH_AXES)))
        if split > 1:
            total += (2 * computing + 4) * local
        if split < parts:
            total += 2 * 4 * local / split
    return total + 3 * embeddings.size * embeddings.dtype.itemsize


def _axes(entry: Any) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def show(found: Mapping[str, Any]) -> str:
    """The plan as people read it."""
    gib, mesh = GIB, " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    lines = [
        f"{found['topology']}: {found['chips']} chips as {mesh}, "
        f"{found['global_batch_size']:,} examples a step, {found['parameters'] / 1e6:,.1f} M "
        "parameters",
        f"{'fits' if found['fits'] else 'DOES NOT FIT'}: {found['bytes_per_chip'] / gib:.2f} of "
        f"{found['memory_per_chip'] / gib:.2f} GiB a chip (parameters "
        f"{found['parameter_bytes_per_chip'] / gib:.2f}, moments "
        f"{found['moment_bytes_per_chip'] / gib:.2f}"
        + (
            f", temporaries {found['temporary_bytes_per_chip'] / gib:.2f})"
            if "temporary_bytes_per_chip" in found
            else ")"
        ),
        f"FLOPs a chip and step: {found['model_flops_per_chip'] / 1e12:.2f} T of the model, "
        f"{found['hardware_flops_per_chip'] / 1e12:.2f} T with recompute",
    ]
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
        f"over the wire: {wire / 2**20:,.0f} MiB a chip ({kinds or 'nothing'}), at least "
        f"{found['minimal_collective_bytes_per_chip'] / 2**20:,.0f} MiB",
        f"{found['total_examples']:,} examples: {found['chip_hours']:,.0f} chip-hours at that "
        f"estimate; compiled for {found['compile_seconds']:.0f} s",
        "the costliest operations:",
    ]
    lines += [
        f"  {o['seconds'] * 1e3:7.2f} ms, {o['times']:3d} x  {o['name']}  {o['source'][-80:]}"
        for o in found["costliest_operations"]
    ]
    return "\n".join(lines)
