import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mm.config import BadInput
from mm.runtime.checkpoint import Checkpointer, state_to_tree, tree_to_state


class State(NamedTuple):
    step: Any
    params: Any
    opt_state: Any
    extras: Any


@jax.tree_util.register_pytree_with_keys_class
class Twins:
    """Two children of one name."""

    def __init__(self, *children):
        self.children = children

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.SequenceKey(0), child) for child in self.children], None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def _state(step=0, width=16, sharded=True):
    kernel = jnp.arange(8.0 * width).reshape(8, width) + step
    params = {"image": {"kernel": kernel, "bias": jnp.ones(width) * step}, "scale": jnp.float32(2)}
    state = State(jnp.int32(step), params, optax.adamw(1e-3).init(params), {})
    if not sharded:
        return state
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))

    def spread(x):
        spec = PartitionSpec("fsdp") if x.ndim == 2 else PartitionSpec()
        return jax.device_put(x, NamedSharding(mesh, spec))

    return jax.tree.map(spread, state)


def _abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def _same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.fixture
def filled(tmp_path):
    """A directory with checkpoints of steps 1, 2 and 3."""
    with_three = Checkpointer(tmp_path, keep_last=3)
    for step in (1, 2, 3):
        with_three.save(step, _state(step), {"config": {"seed": step}})
    with_three.close()
    return tmp_path


def test_a_state_comes_back_bit_identical_with_shardings_and_manifest(filled):
    state = _state(3)
    restored, manifest = Checkpointer(filled).restore(_abstract(state))
    _same(restored, state)
    for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert x.sharding == y.sharding
    assert manifest == {"format_version": 1, "step": 3, "config": {"seed": 3}}


def test_another_sharding_is_read_straight_into(filled):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec(*[None, "x"][: x.ndim]))
        ),
        _state(2),
    )
    restored, _ = Checkpointer(filled).restore(wanted, step=2)
    kernel = restored.params["image"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (8, 8)
    np.testing.assert_array_equal(kernel, _state(2).params["image"]["kernel"])


def test_the_tree_holds_names_and_no_python_classes():
    tree = state_to_tree(_state(1, sharded=False))
    assert set(tree) == {"step", "params", "opt_state"}
    assert set(tree["opt_state"]["0"]) == {"count", "mu", "nu"}
    assert tree["opt_state"]["0"]["mu"]["image"]["kernel"].shape == (8, 16)


def test_tree_to_state_inverts_state_to_tree():
    state = _state(4, sharded=False)
    _same(tree_to_state(state_to_tree(state), state), state)


def test_two_arrays_of_one_path_are_refused():
    with pytest.raises(ValueError, match="two arrays at a/0"):
        state_to_tree({"a": Twins(np.ones(1), np.ones(1))})


def test_the_newest_and_the_best_are_kept(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep_last=2, keep_best="recall")
    values = {1: 0.1, 2: 0.7, 3: float("nan"), 4: 0.3, 6: 0.2}
    for step in range(1, 8):
        metrics = {"recall": values[step], "other": 9} if step in values else None
        checkpointer.save(step, _state(step), {}, metrics)
    checkpointer.wait()
    assert checkpointer.steps() == [2, 6, 7]
    checkpointer.close()
    reopened = Checkpointer(tmp_path, keep_last=2, keep_best="recall")
    assert (reopened.best_step(), reopened.latest_step()) == (2, 7)
    reopened.save(8, _state(8), {}, {"recall": 0.8})
    reopened.close()
    assert reopened.steps() == [7, 8]
    assert {name for name in os.listdir(tmp_path) if name.isdigit()} == {"7", "8"}
    assert os.listdir(tmp_path / "deleted") == []


def test_without_the_metric_there_is_no_best(filled):
    assert Checkpointer(filled, keep_best="recall").best_step() is None


def test_a_step_is_saved_once(filled):
    checkpointer = Checkpointer(filled, keep_last=3)
    assert not checkpointer.save(3, _state(9), {})
    restored, _ = checkpointer.restore(_abstract(_state(3)))
    assert restored.step == 3


@pytest.mark.parametrize("key", ["every_steps", "keep_last"])
def test_numbers_below_one_are_refused(tmp_path, key):
    with pytest.raises(BadInput, match=f"{key}=0 must be at least 1"):
        Checkpointer(tmp_path, **{key: 0})


def test_regular_steps_are_due(tmp_path):
    checkpointer = Checkpointer(tmp_path, every_steps=50)
    assert [s for s in range(1, 201) if checkpointer.due(s)] == [50, 100, 150, 200]


def test_donated_buffers_were_copied_before_save_returns(tmp_path):
    step = jax.jit(partial(jax.tree.map, lambda x: x + 1), donate_argnums=0)
    checkpointer = Checkpointer(tmp_path, keep_last=10)
    state = _state(0, width=4096)
    expected = {}
    for number in range(1, 6):
        state = step(state)
        expected[number] = jax.tree.map(lambda x: np.array(x, copy=True), state)
        checkpointer.save(number, state, {})
    state = step(state)
    checkpointer.wait()
    for number, value in expected.items():
        _same(checkpointer.restore(_abstract(state), number)[0], value)
    checkpointer.close()


def _refusal(checkpointer, state, step=None):
    with pytest.raises(BadInput) as error:
        checkpointer.restore(_abstract(state), step)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_nothing_to_restore_is_said(tmp_path):
    assert "no checkpoint in" in _refusal(Checkpointer(tmp_path), _state())


def test_an_unknown_step_is_answered_with_the_known_ones(filled):
    assert "it has [1, 2, 3]" in _refusal(Checkpointer(filled), _state(), step=7)


def _cut_arrays(checkpoint):
    for file in (checkpoint / "state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:-10])


def _cut_manifest(checkpoint):
    (checkpoint / "manifest" / "metadata").write_text('{"format_ver')


def _remove_names(checkpoint):
    (checkpoint / "state" / "_METADATA").unlink()


def _remove_arrays(checkpoint):
    for file in (checkpoint / "state").rglob("d/*"):
        file.unlink()


def _cut_metrics(checkpoint):
    (checkpoint / "metrics" / "metrics").write_text('{"rec')


@pytest.mark.parametrize(
    "damage", [_cut_arrays, _remove_arrays, _cut_manifest, _remove_names, _cut_metrics]
)
def test_a_damaged_checkpoint_is_named_with_the_way_back(filled, damage, capfd):
    damage(filled / "3")
    with pytest.raises(BadInput) as error:
        Checkpointer(filled).restore(_abstract(_state()))
    message = str(error.value)
    time.sleep(0.1)  # orbax's other threads would print tracebacks about now
    assert "\n" not in message and "Traceback" not in capfd.readouterr().err
    assert f"checkpoint {filled / '3'} cannot be read" in message
    assert message.endswith("delete that directory to go back to step 2")


def test_a_damaged_only_checkpoint_says_to_start_again(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, _state(), {})
    checkpointer.close()
    _cut_arrays(tmp_path / "1")
    assert "delete that directory to start again" in _refusal(Checkpointer(tmp_path), _state())


def test_after_deleting_the_damaged_one_the_previous_is_restored(filled):
    (filled / "3").rename(filled / "elsewhere")
    restored, _ = Checkpointer(filled).restore(_abstract(_state(2)))
    _same(restored, _state(2))


def test_a_newer_format_is_refused(filled):
    file = filled / "3" / "manifest" / "metadata"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 99}))
    assert "format version 99, this program reads 1" in _refusal(Checkpointer(filled), _state())


def test_another_program_is_refused_with_names_and_shapes(filled):
    other = _state(3, width=32)
    other.params["head"] = other.params.pop("scale")
    message = _refusal(Checkpointer(filled), other)
    assert "1 missing in the checkpoint (params/head)" in message
    assert "1 unknown to the program (params/scale)" in message
    assert "params/image/bias: checkpoint float32[16], program float32[32]" in message
    assert "6 of another shape" in message and ", ...)" in message


def test_another_dtype_is_refused(filled):
    state = _state(3)
    state = state._replace(step=state.step.astype(jnp.float32))
    message = _refusal(Checkpointer(filled), state)
    assert "step: checkpoint int32[], program float32[]" in message


_SAVE_FOREVER = """
import sys
import jax.numpy as jnp
from mm.runtime.checkpoint import Checkpointer
checkpointer = Checkpointer(sys.argv[1], keep_last=2)
for step in range(checkpointer.latest_step() or 0, 10**6):
    checkpointer.save(step + 1, {"w": jnp.full((1000, 1000), step + 1.0)}, {})
"""


@pytest.mark.parametrize("moment", [0, 1])
def test_kill_9_during_a_save_leaves_only_whole_checkpoints(tmp_path, moment):
    rng = random.Random(moment)
    environment = {**os.environ, "XLA_FLAGS": ""}
    process = subprocess.Popen([sys.executable, "-c", _SAVE_FOREVER, tmp_path], env=environment)
    try:
        deadline = time.monotonic() + 240
        while not (tmp_path / str(4 + 3 * moment)).exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        while not any("tmp" in name for name in os.listdir(tmp_path)):
            assert process.poll() is None and time.monotonic() < deadline
        time.sleep(rng.uniform(0, 0.01))
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    checkpointer = Checkpointer(tmp_path, keep_last=2)
    assert len(checkpointer.steps()) >= 2
    wanted = _abstract({"w": jnp.zeros((1000, 1000))})
    for step in checkpointer.steps():
        restored, manifest = checkpointer.restore(wanted, step)
        assert manifest["step"] == step
        np.testing.assert_array_equal(restored["w"], step)
    checkpointer.save(10**7, {"w": jnp.zeros((1000, 1000))}, {})
    checkpointer.close()
    assert not [name for name in os.listdir(tmp_path) if "tmp" in name]


def test_a_reader_removes_nothing_of_a_run_that_goes_on(filled):
    (filled / "4.orbax-checkpoint-tmp").mkdir()
    (filled / "deleted" / "1").mkdir(parents=True)
    reader = Checkpointer(filled, read_only=True)
    assert reader.restore(_abstract(_state(3)))[0].step == 3
    with pytest.raises(ValueError, match="read-only"):
        reader.save(5, _state(5), {})
    reader.close()
    assert (filled / "4.orbax-checkpoint-tmp").is_dir() and (filled / "deleted" / "1").is_dir()


def test_a_reader_of_a_missing_directory_is_refused(tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        Checkpointer(tmp_path / "none", read_only=True)
    assert os.listdir(tmp_path) == []
