import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mm.runtime import table


@pytest.fixture
def mesh():
    return jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)


def _abstract(mesh, shape, *spec, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))


@pytest.fixture
def state(mesh):
    params = {
        "image": {"kernel": _abstract(mesh, (8, 6), "fsdp", "tensor")},
        "kernel": _abstract(mesh, (8,), "fsdp"),
        "scale": _abstract(mesh, ()),
    }
    mu = {**params, "kernel": _abstract(mesh, (8,), "fsdp", dtype=jnp.bfloat16)}
    adam = optax.ScaleByAdamState(count=_abstract(mesh, (), dtype=jnp.int32), mu=mu, nu=params)
    return params, (optax.EmptyState(), adam)


def test_rows_count_bytes_on_one_device_with_moments(state):
    rows = {row.path: row for row in table.rows(*state)}
    assert rows["image/kernel"].bytes_per_device == 8 * 6 * 4 // 8
    assert rows["image/kernel"].moment_bytes_per_device == 2 * (8 * 6 * 4 // 8)
    assert rows["kernel"].moment_bytes_per_device == 2 * 2 + 2 * 4
    assert rows["scale"].bytes_per_device == 4
    assert rows["image/kernel"].spec == "P('fsdp', 'tensor')"


def test_a_moment_split_unlike_its_parameter_shows(state, mesh):
    params, (empty, adam) = state
    moved = {**adam.mu, "kernel": _abstract(mesh, (8,), "tensor")}
    rows = {row.path: row for row in table.rows(params, (empty, adam._replace(mu=moved)))}
    assert rows["kernel"].spec == "P('fsdp',) != moments P('tensor',)"


def test_frozen_parameters_are_marked_and_counted(state):
    params, _ = state
    rows = table.rows(params, (), frozen={"image/kernel"})
    assert table.text(rows).splitlines()[2].split()[-1] == "frozen"
    assert "57 parameters in 3 arrays, 48 of them frozen; a device" in table.summary(rows)


def test_the_text_has_every_row_and_totals(state):
    lines = table.text(table.rows(*state)).splitlines()
    assert len(lines) == 3 + 4
    assert lines[2].split()[:3] == ["image/kernel", "8x6", "float32"]
    assert lines[2].split()[-2:] == ["24", "48"]
    assert lines[-1].split() == ["total", "(3", "arrays)", "57", "36", "68"]


def test_the_summary_is_one_line(state):
    assert table.summary(table.rows(*state)).startswith("57 parameters in 3 arrays; a device holds")


def test_real_arrays_on_one_device_work():
    (row,) = table.rows({"w": jnp.zeros((3, 2))})
    assert (row.shape, row.bytes_per_device, row.spec) == ((3, 2), 24, "one device")
