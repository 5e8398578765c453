import numpy as np
import pytest

from mm.config import BadInput
from mm.sharding.mesh import make_mesh
from tests import pods


def slices_of(mesh):
    """The slice of each device, [replica, fsdp, tensor]."""
    return np.vectorize(lambda chip: chip.slice_index)(mesh.devices)


@pytest.mark.parametrize("replica", [2, 4])
def test_replica_goes_over_slices_and_the_rest_stays_inside(replica):
    chips = pods.devices("v5e:4x4", slices=2)
    mesh = make_mesh({"replica": replica, "fsdp": -1, "tensor": 2}, chips)
    assert dict(mesh.shape) == {"replica": replica, "fsdp": 16 // replica, "tensor": 2}
    assert set(mesh.devices.flat) == set(chips)
    found = slices_of(mesh)
    for i in range(replica):
        assert set(found[i].flat) == {i // (replica // 2)}


def test_the_order_of_the_devices_does_not_matter():
    chips = pods.devices("v5e:4x4", slices=2)
    mesh = make_mesh({"replica": 2, "fsdp": -1}, chips[::2] + chips[1::2])
    assert [set(part.flat) for part in slices_of(mesh)] == [{0}, {1}]


@pytest.mark.parametrize("shape", [{"fsdp": -1}, {"replica": 3, "fsdp": -1}])
def test_a_replica_that_does_not_go_over_the_slices_is_refused(shape):
    with pytest.raises(
        BadInput, match="2 slices, so replica must be a multiple of 2, not"
    ) as error:
        make_mesh(shape, pods.devices("v5e:2x3", slices=2))
    assert "\n" not in str(error.value)


def test_hosts_of_one_slice_are_one_mesh():
    mesh = make_mesh({"fsdp": -1}, pods.devices("v5p:2x2x2"))
    assert dict(mesh.shape) == {"replica": 1, "fsdp": 8, "tensor": 1}


def test_processes_without_slices_may_be_one_fsdp_axis():
    from dataclasses import replace

    chips = [replace(chip, platform="gpu") for chip in pods.devices("v5e:2x2", slices=2)]
    assert make_mesh({"fsdp": -1}, chips).shape["fsdp"] == 8
