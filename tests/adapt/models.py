"""Small towers with what config.adapt adds, and what they make of a batch."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mm.adapt import adapt
from mm.optim.paths import flatten, map_paths
from tests import tiny

TOWER = dict(tiny.TOWER, depth=2)
_rng = np.random.default_rng(0)
IMAGES = jnp.asarray(_rng.standard_normal((3, 16, 16, 3)), jnp.float32)
IDS = jnp.asarray(_rng.integers(1, 64, (3, 5)), jnp.int32)
MASK = jnp.arange(5) < jnp.array([[3], [5], [4]])


def make(specs: Mapping = {}, image: Mapping = {}, text: Mapping = {}, **model):
    """Two blocks a tower; the model's own parameters are the same whatever is added."""
    sides = dict(image=tiny.IMAGE | TOWER | image, text=tiny.TEXT | TOWER | text)
    made = tiny.model(**sides, **model)
    adapt(made, specs, nnx.Rngs(1))
    return made


def arrays(model):
    """Its parameters by path, "model/image/..."."""
    found = flatten({"model": nnx.to_pure_dict(nnx.state(model, nnx.Param))})
    return {name: np.asarray(x) for name, x in found.items()}


def with_arrays(model, params):
    """The model with other parameters, of all its paths."""
    graphdef, state = nnx.split(model)
    tree = map_paths(lambda name, _: jnp.asarray(params[f"model/{name}"]), nnx.to_pure_dict(state))
    return nnx.merge(graphdef, tree)


def random(params, pattern, deviation=0.1):
    """With other values where the name has the pattern in it."""
    rng = np.random.default_rng(1)
    return {
        name: rng.normal(0, deviation, x.shape).astype(np.float32) if pattern in name else x
        for name, x in params.items()
    }


def embeddings(model, ids=IDS, mask=MASK):
    """Of pictures and of texts."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state):
        model = nnx.merge(graphdef, state)
        image, text = model.encode_image(IMAGES), model.encode_text(ids, mask=mask)
        return model.project("image", image).z, model.project("text", text).z

    return [np.asarray(z) for z in run(state)]
