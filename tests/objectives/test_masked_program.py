"""Masked objectives in a step of several devices."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mm.optim.paths import flatten
from mm.program import build_program
from tests.tiny import get_config

TEXT_MASK = dict(ratio=0.4, whole_word=True)
DECODER = dict(width=64, depth=1, num_heads=4)
OBJECTIVES = {
    "text": dict(name="masked_text", **TEXT_MASK),
    "mae": dict(name="mae", decoder=DECODER, context="fused", text_mask=TEXT_MASK),
    "codes": dict(name="beit", targets="learned", num_codes=256),
    "frozen": dict(name="beit", num_codes=512),
}


def program(rules, mesh, devices=None):
    """Wide enough that fsdp and tensor really split something."""
    config = get_config()
    config.sharding = dict(mesh=mesh, rules=rules)
    for tower in ("image", "text"):
        config.model[tower].update(width=64, num_heads=4, depth=1, mask_token=True)
    config.model.image.patch_size = 4
    config.model.text.vocab_size = 256
    config.model.embed_dim = None
    cross = dict(name="cross", queries="image", width=64, depth=1, num_heads=4)
    config.model.fusion = cross
    config.objectives = OBJECTIVES
    return build_program(config, devices)


def batch(a_program):
    rng, size = np.random.default_rng(0), a_program.recipe.global_batch_size
    values = {
        "image": rng.standard_normal((size, 16, 16, 3)).astype(np.float32),
        "text": rng.integers(1, 256, (size, 8)).astype(np.int32),
        "text_mask": np.ones((size, 8), bool),
        "text_words": np.tile(np.array([-1, 0, 1, 1, 2, 3, -1, -1], np.int32), (size, 1)),
        "id": np.arange(size, dtype=np.uint32),
    }
    assert values.keys() == a_program.batch_spec.keys()
    return jax.device_put(values, a_program.batch_sharding)


def found(a_program):
    state = a_program.init(0)
    (loss, (metrics, buffers)), gradients = a_program.gradients(state, batch(a_program))
    return jax.device_get((loss, metrics, flatten(buffers), flatten(gradients)))


@pytest.mark.slow
def test_losses_gradients_and_buffers_agree_with_one_device():
    want = found(program("dp", dict(fsdp=1), jax.devices()[:1]))
    sharded = program("fsdp_tp", dict(fsdp=4, tensor=2))
    table = sharded.state.params["model"]["text"]["embedding"]
    assert table.sharding.spec == P("tensor", "fsdp")  # that of the tied head
    got = found(sharded)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    for name, value in want[1].items():
        np.testing.assert_allclose(got[1][name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    for name, value in want[2].items():
        np.testing.assert_allclose(got[2][name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    for name, value in want[3].items():
        error = np.linalg.norm(got[3][name] - value)
        assert error < max(1e-5 * np.linalg.norm(value), 1e-7), name
    moved = [name for name, gradient in want[3].items() if np.abs(gradient).max() > 0]
    tokens = ("model/text/mask_token", "model/image/mask_token", "objectives/mae/mask_token")
    assert set(tokens) <= set(moved)
