"""What the compiler sets aside for the contrastive losses, on more and more devices."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mm.objectives.contrastive import nt_xent, sigmoid_loss, softmax_loss
from mm.sharding.mesh import BATCH_AXES, make_mesh
from mm.sharding.rules import find_rules, use_sharding
from tests.runs import ROOT, environment


def temporaries(kind: str, devices: int, pairs: int, width: int) -> int:
    """Bytes on a device for the loss and its gradients, with so many pairs on each."""
    mesh = make_mesh(dict(fsdp=devices), jax.devices()[:devices])
    batch = pairs * devices
    split, same = NamedSharding(mesh, P(BATCH_AXES)), NamedSharding(mesh, P())
    embeddings = jax.ShapeDtypeStruct((batch, width), jnp.float32, sharding=split)
    group = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=split)
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=same)
    arguments = [embeddings, embeddings, group, scalar]
    function, differentiable = softmax_loss, (0, 1, 3)
    if kind == "sigmoid":
        arguments, function, differentiable = [*arguments, scalar], sigmoid_loss, (0, 1, 3, 4)
    if kind == "nt_xent":
        arguments, function, differentiable = arguments[1:], nt_xent, (0, 2)
    with use_sharding(mesh, find_rules("dp")):
        compute = jax.jit(jax.value_and_grad(function, differentiable, has_aux=True))
        return compute.lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def assert_bounded(kind: str, counts: tuple[int, ...], pairs: int = 256, width: int = 64) -> None:
    found = [temporaries(kind, devices, pairs, width) for devices in counts]
    assert max(found) <= 4 * (3 * pairs**2 + 8 * pairs * width), found
    assert max(found) <= 1.02 * min(found), found


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "nt_xent"])
def test_memory_does_not_grow_from_two_devices_to_eight(kind):
    assert_bounded(kind, (2, 4, 8))


@pytest.mark.slow
def test_memory_does_not_grow_from_two_devices_to_sixty_four():
    program = "import mm\nfrom tests.objectives.test_ring_memory import assert_bounded\n"
    program += "for kind in ('softmax', 'sigmoid'): assert_bounded(kind, (2, 16, 64))\n"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment(64), check=True)
