"""How a run begins: on other devices than it was saved on, and from another run's parameters."""

import functools

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mm.config import BadInput
from mm.optim.paths import flatten
from mm.program import build_program
from mm.runtime import table
from mm.runtime.checkpoint import Checkpointer
from mm.start import first_state, layout
from tests import tiny

LAYOUTS = {
    "4 devices": (4, "fsdp", {"fsdp": 4}),
    "2 devices": (2, "fsdp", {"fsdp": 2}),
    "1 device": (1, "fsdp", {}),
    "fsdp x tensor": (8, "fsdp_tp", {"fsdp": 4, "tensor": 2}),
    "replica x fsdp": (8, "hsdp", {"replica": 2, "fsdp": 4}),
}


def program(devices=8, rules="fsdp", mesh=None, seed=0, init=None, width=128, **optimizer):
    """Of two towers that are wide enough to be split."""
    config = tiny.get_config()
    config.seed = seed
    config.sharding = dict(mesh=mesh or {"fsdp": devices}, rules=rules)
    for tower in ("image", "text"):
        config.model[tower].update(width=width, num_heads=4)
    config.optimizer.update(**optimizer)
    if init is not None:
        config.model_init = init
    return build_program(config, jax.devices()[:devices])


@functools.cache
def on(name):
    """The program on one of LAYOUTS."""
    return program(*LAYOUTS[name])


def save(a_program, directory, step=3):
    """A checkpoint whose arrays, moments too, are all different. Returns its state."""
    state = a_program.init(a_program.recipe.seed)
    rng = np.random.default_rng(step)
    state = jax.tree.map(
        lambda x: jax.device_put(rng.standard_normal(x.shape).astype(x.dtype), x.sharding), state
    )
    manifest = {
        "config": {"model": tiny.get_config().model.to_dict()},
        "tokenizer": {"sha256": "a"},
    }
    checkpointer = Checkpointer(directory / "checkpoints")
    checkpointer.save(step, state, manifest | layout(a_program))
    checkpointer.close()
    return state


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(workdir, state) of a run on 8 devices."""
    workdir = tmp_path_factory.mktemp("saved")
    return workdir, save(program(), workdir)


def begin(a_program, workdir):
    with_checkpoints = Checkpointer(workdir / "checkpoints")
    try:
        return first_state(a_program, with_checkpoints)
    finally:
        with_checkpoints.close()


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for name, leaf in flatten(got).items():
        np.testing.assert_array_equal(leaf, flatten(want)[name], err_msg=name)


def held_by(device):
    """Buffer -> bytes of all the arrays on a device."""
    shards = [
        shard.data
        for x in jax.live_arrays()
        for shard in x.addressable_shards
        if shard.device == device
    ]
    return {data.unsafe_buffer_pointer(): data.nbytes for data in shards}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_checkpoint_of_8_devices_is_the_same_on_others(name, saved):
    other = on(name)
    state, step, _ = begin(other, saved[0])
    assert step == 3
    assert_same(state, saved[1])
    wanted = flatten(other.state)
    assert all(leaf.sharding == wanted[name].sharding for name, leaf in flatten(state).items())


def test_no_device_is_given_more_than_its_part(saved, monkeypatch):
    other, asked = program(4), []
    restore_args = ocp.checkpoint_utils.construct_restore_args
    monkeypatch.setattr(
        ocp.checkpoint_utils,
        "construct_restore_args",
        lambda *args: asked.append(restore_args(*args)) or asked[0],
    )
    before = held_by(jax.devices()[0])
    state, _, _ = begin(other, saved[0])
    for arguments, leaf in zip(
        jax.tree.leaves(asked[0]["params"]), jax.tree.leaves(other.state.params), strict=True
    ):
        assert arguments.sharding == leaf.sharding
    after = held_by(jax.devices()[0])
    held = sum(size for buffer, size in after.items() if buffer not in before)
    part = sum(table.device_bytes(leaf) for leaf in jax.tree.leaves(other.state))
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert held == part
    assert part < 0.3 * whole  # a quarter, and what is too small to be split
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            assert shard.data.shape == leaf.sharding.shard_shape(leaf.shape)


@pytest.mark.parametrize(
    "name, said",
    [
        ("4 devices", "; the mesh was {fsdp: 8}, is {fsdp: 4}; the devices were 8, are 4"),
        ("1 device", "; the mesh was {fsdp: 8}, is {}; the devices were 8, are 1"),
        ("fsdp x tensor", "; the mesh was {fsdp: 8}, is {fsdp: 4, tensor: 2}"),
    ],
)
def test_what_changed_is_said_in_one_line(name, said, saved, capsys):
    begin(on(name), saved[0])
    assert capsys.readouterr().out == f"continuing from the checkpoint of step 3{said}\n"


def test_nothing_is_said_of_an_old_checkpoint_without_a_layout(saved, tmp_path, capsys):
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    checkpointer.save(1, saved[1], {})
    checkpointer.close()
    begin(program(), tmp_path)
    assert capsys.readouterr().out == "continuing from the checkpoint of step 1\n"


def test_a_state_with_frozen_parameters_comes_back(tmp_path):
    want = save(program(frozen=("model/image/.*",)), tmp_path)
    other = program(8, "fsdp_tp", {"fsdp": 4, "tensor": 2}, frozen=("model/image/.*",))
    assert_same(begin(other, tmp_path)[0], want)


def from_run(saved, *parameters, step=None):
    return dict(path=f"run:{saved[0]}", parameters=parameters, step=step)


def test_a_fresh_run_takes_the_parameters_that_match(saved, tmp_path, capsys):
    other = program(4, seed=1, init=from_run(saved, "model/image/.*", "model/image_projection/.*"))
    state, step, manifest = begin(other, tmp_path)
    fresh, source = flatten(other.init(1)), flatten(saved[1])
    for name, leaf in flatten(state).items():
        want = source if name.startswith("params/model/image") else fresh
        np.testing.assert_array_equal(leaf, want[name], err_msg=name)
    assert step == 0 and manifest == {}
    assert f"parameters are those of step 3 in {saved[0]}" in capsys.readouterr().out


def test_another_function_of_the_same_shapes_is_said(saved, tmp_path, capsys):
    begin(program(init=from_run(saved, "model/image/.*")), tmp_path)
    said = capsys.readouterr().out
    assert "note that its config.model was another: image.num_heads (given 4, found 2)" in said
    assert "text." not in said


def test_the_tokenizer_must_fit_the_embedding_that_is_taken(saved, tmp_path):
    manifest = begin(program(init=from_run(saved, "model/text/.*")), tmp_path)[2]
    assert manifest == {"tokenizer": {"sha256": "a"}}


def test_a_run_that_has_a_checkpoint_does_not_look_elsewhere(saved, tmp_path):
    elsewhere = program(init="run:/nowhere")
    assert begin(elsewhere, saved[0])[1] == 3


@pytest.mark.parametrize(
    "change, message",
    [
        (
            dict(path="run:/nowhere"),
            "config.model_init: no checkpoints: /nowhere/checkpoints does not",
        ),
        (dict(step=7), r"config.model_init: no checkpoint of step 7 in .*; it has \[3\]"),
        (
            dict(parameters=("model/imag/.*",)),
            "config.model_init: parameters: 'model/imag/.*' matches no",
        ),
        (
            dict(parametres=()),
            "config.model_init: unknown key 'parametres'; did you mean 'parameters'",
        ),
    ],
)
def test_an_init_that_cannot_be_is_refused(change, message, saved, tmp_path):
    with pytest.raises(BadInput, match=message) as error:
        begin(program(init=from_run(saved, "model/image/.*") | change), tmp_path)
    assert "\n" not in str(error.value)


def test_an_init_of_other_shapes_is_refused(saved, tmp_path):
    sizes = r"bias \(is \[4, 32\], expected \[4, 16\]\)"
    with pytest.raises(BadInput, match=f"config.model_init: step 3 in .* does not have .*{sizes}"):
        begin(program(width=64, init=from_run(saved, ".*")), tmp_path)


def test_a_parameter_that_the_other_run_does_not_have_is_refused(saved, tmp_path):
    other = program(init=from_run(saved, ".*"))
    state = other.state
    state.params["model"]["extra"] = {"kernel": state.params["model"]["image_projection"]["kernel"]}
    with pytest.raises(
        BadInput, match=r"does not have model/extra/kernel \(missing\); allow_missing="
    ):
        begin(other, tmp_path)


def soup(*places, **keys):
    return dict(soup=[f"run:{place}" for place in places], parameters=("model/image/.*",), **keys)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """(workdir, state) of another run, whose parameters are others."""
    workdir = tmp_path_factory.mktemp("other")
    return workdir, save(program(), workdir, step=4)


@pytest.mark.parametrize("shares, keys", [((0.3, 0.7), dict(weights=(0.3, 0.7))), ((0.5, 0.5), {})])
def test_a_soup_is_the_weighted_mean_of_runs_bit_for_bit(shares, keys, saved, other, tmp_path):
    init = soup(saved[0], other[0], **keys)
    found = flatten(begin(program(4, init=init), tmp_path)[0].params)
    one, two = (flatten(jax.device_get(state.params)) for state in (saved[1], other[1]))
    names = [name for name in one if name.startswith("model/image/")]
    assert any((one[name] != two[name]).all() for name in names)
    for name in names:
        want = np.float32(shares[0]) * one[name] + np.float32(shares[1]) * two[name]
        np.testing.assert_array_equal(found[name], want, err_msg=name)


@pytest.mark.parametrize(
    "keys, message",
    [
        (dict(weights=(0.5, 0.6)), r"weights=\[0.5, 0.6\]: expected 2, one for each of soup, that"),
        (dict(weights=(1.0,)), r"weights=\[1.0\]: expected 2, one for each of soup"),
        (dict(path="run:/nowhere"), "path='run:/nowhere', soup=.*: expected one of them"),
        (dict(step=3), r"weights=\[\], step=3: weights are of soup, step of path"),
    ],
)
def test_a_soup_that_is_no_mean_is_refused(keys, message, saved, tmp_path):
    with pytest.raises(BadInput, match=f"config.model_init: {message}"):
        begin(program(init=soup(saved[0], saved[0]) | keys), tmp_path)
