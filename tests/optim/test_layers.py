import jax.numpy as jnp
import numpy as np
import pytest

from mm import registry
from mm.config import BadInput
from mm.optim.layers import layer_factors

BLOCKS = {"mlp": {"up": {"kernel": jnp.ones((3, 2, 2)), "bias": jnp.ones((3, 2))}}}
IMAGE = {
    "stem": {"kernel": jnp.ones(2)},
    "encoder": {"blocks": BLOCKS, "final_norm": {"scale": jnp.ones(2)}},
    "attention_pool": {"probe": jnp.ones(2)},
}
PARAMS = {
    "model": {
        "image": IMAGE,
        "text": {"embedding": jnp.ones(2)},
        "image_projection": {"kernel": jnp.ones(2)},
    }
}


def test_a_factor_falls_with_each_layer_of_a_stack_by_beits_rule():
    found = layer_factors(PARAMS, 0.5)
    path = "model/image/encoder/blocks/mlp/up"
    assert found[f"{path}/kernel"].tolist() == [[[0.125]], [[0.25]], [[0.5]]]
    assert found[f"{path}/bias"].shape == (3, 1)
    assert found["model/image/stem/kernel"] == 0.5**4
    assert found["model/text/embedding"] == 0.5  # of a tower without blocks
    assert found.keys() == {f"{path}/kernel", f"{path}/bias", "model/image/stem/kernel",
                            "model/text/embedding"}  # fmt: skip


def test_a_step_is_as_much_smaller_as_the_factor_says():
    def change(decay):
        spec = dict(name="adamw", learning_rate=0.1, schedule=dict(name="constant"))
        spec |= dict(layer_decay=decay, clip_norm=None)
        transform = registry.build("optimizer", spec, "o", params=PARAMS, total_steps=10).transform
        return transform.update(PARAMS, transform.init(PARAMS), PARAMS)[0]["model"]

    full, decayed = change(1.0), change(0.5)
    kernels = (x["image"]["encoder"]["blocks"]["mlp"]["up"]["kernel"] for x in (decayed, full))
    ratio = np.divide(*kernels)
    np.testing.assert_allclose(ratio[:, 0, 0], [0.125, 0.25, 0.5], rtol=1e-6)
    assert (decayed["image_projection"]["kernel"] == full["image_projection"]["kernel"]).all()


def test_a_tower_without_layers_is_refused():
    params = {"model": {"image": {"stages": [jnp.ones(2)]}}}
    with pytest.raises(BadInput, match="layer_decay=0.9: model/image/stages/0 has no place"):
        layer_factors(params, 0.9)
    assert layer_factors(params, 1.0) == {}


def test_a_frozen_tower_needs_no_layers():
    params = {"model": {"image": {"stages": [jnp.ones(2)]}, "text": {"embedding": jnp.ones(2)}}}
    found = layer_factors(params, 0.5, {"model/image/stages/0"})
    assert found == {"model/text/embedding": 0.5}
