import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from mm.config import BadInput
from mm.sharding.mesh import AXES, make_mesh
from mm.sharding.rules import (
    LARGE,
    PARAMETER_AXES,
    PRESETS,
    SMALL,
    ShardingRules,
    find_rules,
    shard_tree,
)


def mesh(**shape):
    return make_mesh({"fsdp": -1, **shape})


def test_an_axis_of_minus_one_takes_what_is_left():
    assert dict(mesh(tensor=2).shape) == {"replica": 1, "fsdp": 4, "tensor": 2}


@pytest.mark.parametrize(
    "shape, message",
    [
        ({"fsd": 8}, "unknown axis 'fsd'; did you mean 'fsdp'"),
        ({"fsdp": 3}, "its sizes, 3 in all, do not divide into 8 devices"),
        ({"fsdp": -1, "tensor": -1}, "one may be -1"),
        ({"fsdp": -1, "tensor": 3}, "do not divide into 8 devices"),
        ({"fsdp": 0}, "positive"),
    ],
)
def test_meshes_that_cannot_be_are_refused(shape, message):
    with pytest.raises(BadInput, match=message):
        make_mesh(shape)


def test_fsdp_splits_the_embed_dimension():
    spec = PRESETS["fsdp"].parameter_spec("k", (512, 2048), ("embed", "mlp"), mesh())
    assert spec == P("fsdp")


def test_fsdp_tp_splits_both_dimensions():
    rules, axes = PRESETS["fsdp_tp"], ("layers", "embed", "heads", "kv")
    spec = rules.parameter_spec("k", (2, 512, 8, 64), axes, mesh(tensor=2))
    assert spec == P(None, "fsdp", "tensor")


def test_fsdp_splits_over_slices_and_hsdp_copies_across_them():
    a_mesh, shape = mesh(replica=2), (512, 2048)
    fsdp, hsdp = (
        PRESETS[name].parameter_spec("k", shape, ("embed", "mlp"), a_mesh)
        for name in ("fsdp", "hsdp")
    )
    assert fsdp == P(("replica", "fsdp")) and hsdp == P("fsdp")


def test_a_config_can_state_its_own_rules():
    rules = find_rules({"parameters": {"mlp": "fsdp", "embed": ["tensor"]}})
    spec = rules.parameter_spec("k", (512, 2048), ("embed", "mlp"), mesh(tensor=2))
    assert spec == P("tensor", "fsdp") and rules.activations["batch"] == ("replica", "fsdp")
    with pytest.raises(BadInput, match="config.sharding.rules: unknown key 'parametres'"):
        find_rules({"parametres": {}})


def test_small_arrays_stay_whole():
    spec = PRESETS["fsdp"].parameter_spec("b", (512,), ("embed",), mesh())
    assert 512 < SMALL and spec == P()


def test_a_dimension_that_does_not_divide_stays_whole():
    spec = PRESETS["fsdp"].parameter_spec("k", (510, 2048), ("embed", "mlp"), mesh())
    assert spec == P()


def test_a_large_replicated_array_is_refused():
    with pytest.raises(BadInput, match=r"big: .* would be replicated .* add replicate=True"):
        PRESETS["fsdp"].parameter_spec("big", (LARGE, 1), ("patch", "mlp"), mesh())


def test_dp_replicates_on_purpose():
    assert PRESETS["dp"].parameter_spec("big", (LARGE, 8), ("embed", "mlp"), mesh()) == P()


def test_two_dimensions_on_one_mesh_axis_collide():
    rules = ShardingRules(parameters={"embed": "fsdp", "mlp": "fsdp"}, activations={})
    with pytest.raises(BadInput, match="two dimensions on mesh axis 'fsdp'"):
        rules.parameter_spec("k", (512, 2048), ("embed", "mlp"), mesh())


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"embd": "fsdp"}, "unknown axis 'embd'; did you mean 'embed'"),
        ({"embed": "fsdq"}, "no such mesh axis; did you mean 'fsdp'"),
    ],
)
def test_rules_for_unknown_axes_are_refused(parameters, message):
    with pytest.raises(BadInput, match=message):
        ShardingRules(parameters=parameters, activations={})


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(BadInput, match="did you mean 'fsdp'"):
        find_rules("fsdpp")


def test_a_layer_of_a_stack_is_split_as_it_is_in_the_stack():
    rules, width = PRESETS["fsdp"], 2**10
    stacked = rules.parameter_spec("s", (32, width), ("layers", "embed"), mesh())
    assert width < SMALL < 32 * width
    assert stacked == rules.parameter_spec("s", (width,), ("embed",), mesh()) == P()


@given(
    shape=st.lists(st.integers(1, 4096), min_size=1, max_size=4),
    axes=st.permutations(PARAMETER_AXES),
    preset=st.sampled_from(sorted(PRESETS)),
    tensor=st.sampled_from([1, 2, 4]),
)
def test_every_spec_divides_its_array(shape, axes, preset, tensor):
    a_mesh = mesh(tensor=tensor)
    try:
        spec = PRESETS[preset].parameter_spec("x", tuple(shape), axes[: len(shape)], a_mesh)
    except BadInput:
        return
    split = [((axis,) if isinstance(axis, str) else axis or ()) for axis in spec]
    used = [axis for axes in split for axis in axes]
    assert len(used) == len(set(used)) and set(used) <= set(AXES)
    for length, axes in zip(shape, split, strict=False):
        assert length % int(np.prod([a_mesh.shape[axis] for axis in axes])) == 0


def test_shard_tree_places_arrays_by_their_path():
    tree = {"a": {"kernel": jnp.zeros((512, 512))}}
    shardings = shard_tree(tree, {"a/kernel": ("embed", "mlp")}, mesh(), PRESETS["fsdp"])
    placed = jax.device_put(tree, shardings)
    assert placed["a"]["kernel"].sharding.shard_shape((512, 512)) == (64, 512)
