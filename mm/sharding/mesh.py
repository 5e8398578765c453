"""The device mesh: axes `replica` (across slices), `fsdp`, `tensor`."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from mm.config import BadInput, suggest

AXES = ("replica", "fsdp", "tensor")
BATCH_AXES = ("replica", "fsdp")  # a batch is split over both


def check_batch_size(where: str, size: int, mesh: Mesh, steps: int = 1) -> None:
    """Raises BadInput unless `steps` micro-batches of a batch split evenly over the mesh."""
    parts = batch_parts(mesh) * steps
    if size < 1 or size % parts:
        times = f" times config.accumulation_steps={steps}" if steps > 1 else ""
        raise BadInput(
            f"{where}={size}: must be a positive multiple of {parts}, the replica x fsdp size of "
            f"mesh {dict(mesh.shape)}{times}"
        )


def batch_parts(mesh: Mesh) -> int:
    """Over how many devices a batch is split."""
    return mesh.shape["replica"] * mesh.shape["fsdp"]


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `devices` (default: all); one axis may be -1, which takes what is left.

    TPUs of several slices: `replica` goes over the slices, since the network between them is slow;
    fsdp and tensor stay inside of one. Raises BadInput on an unknown axis, when the sizes do not
    multiply to the device count, and when `replica` is no multiple of the number of slices.
    """
    devices = jax.devices() if devices is None else devices
    check_axes(shape)
    sizes = [shape.get(axis, 1) for axis in AXES]
    fixed = int(np.prod([size for size in sizes if size != -1]))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise BadInput(f"config.sharding.mesh={dict(shape)}: sizes are positive, one may be -1")
    if sizes.count(-1):
        sizes[sizes.index(-1)] = len(devices) // fixed
    if int(np.prod(sizes)) != len(devices):
        raise BadInput(
            f"config.sharding.mesh={dict(shape)}: its sizes, {fixed} in all, do not divide into "
            f"{len(devices)} devices; set smaller ones, as --config.sharding.mesh.replica=1, and "
            "one to -1, which takes what is left"
        )
    slices = count_slices(devices)
    replica, *inner = sizes
    if replica % slices:
        raise BadInput(
            f"config.sharding.mesh={dict(shape)}: the devices are in {slices} slices, so replica "
            f"must be a multiple of {slices}, not {replica}; set replica={slices} and fsdp=-1"
        )
    # Split: an axis of the mesh may take a part of an axis of the torus.
    if slices == 1:
        array = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        array = mesh_utils.create_hybrid_device_mesh(
            (replica // slices, *inner), (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_axes(shape: Mapping[str, int]) -> None:
    """Raises BadInput on an axis that no mesh has."""
    for axis in shape:
        if axis not in AXES:
            hint = suggest(axis, AXES)
            raise BadInput(f"config.sharding.mesh: unknown axis {axis!r}{hint} (have {AXES})")


def count_slices(devices: Sequence[jax.Device]) -> int:
    """Of how many TPU slices they are; GPUs and CPUs are one, whatever host they are on."""
    return len(
        {getattr(device, "slice_index", 0) if device.platform == "tpu" else 0 for device in devices}
    )
