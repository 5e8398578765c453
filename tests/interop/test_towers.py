"""The towers alone, of every kind of model, as they are and as programs of any batch size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from mm import registry
from mm.config import BadInput
from mm.interop.bundle import Bundle
from mm.interop.stablehlo import PLATFORMS, signatures
from mm.interop.towers import build_towers
from mm.models.multimodal import Multimodal
from mm.optim.paths import flatten
from tests.tiny import IMAGE, TEXT, TOWER

VIT = {**IMAGE, "depth": 2}
MODELS = {
    "plain": dict(image=IMAGE, text=TEXT, embed_dim=16),
    "rotary": dict(image=IMAGE | dict(position="rotary", pool="cls"), text=TEXT, embed_dim=16),
    "causal": dict(image=IMAGE, text=TEXT | dict(causal=True, pool="map"), embed_dim=16),
    "bag of words": dict(image=IMAGE, text=TEXT | dict(depth=0, pool="mean"), embed_dim=16),
    "resnet": dict(
        image=dict(name="resnet", image_size=32, depth=18, base_width=8, groups=4),
        text=TEXT,
        embed_dim=16,
    ),
    "shared": dict(image=IMAGE, text=TEXT, embed_dim=16, share="encoder"),
    "fused": dict(image=IMAGE, text=TEXT, embed_dim=16, fusion=dict(name="cross", **TOWER)),
    "read at two depths": dict(
        image=VIT,
        text={**TEXT, "depth": 2},
        embed_dim=16,
        fusion=dict(
            name="hierarchical",
            **TOWER,
        ),
    ),
    "TPU's kernel and remat": dict(
        image=VIT | dict(attention="short", remat="full"), text=TEXT, embed_dim=16
    ),
    "bfloat16": dict(image=IMAGE, text=TEXT, embed_dim=16, dtype="bfloat16"),
    "pictures alone": dict(image=IMAGE),
    "texts alone": dict(text=TEXT),
}


def bundled(spec) -> tuple[Multimodal, Bundle]:
    model = registry.call(Multimodal, spec, "config.model", rngs=nnx.Rngs(0))
    params = flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    arrays = {f"model/{name}": np.asarray(x) for name, x in params.items()}
    return model, Bundle(spec, arrays, {}, None, {})


def inputs(model):
    rng = np.random.default_rng(0)
    text = jnp.asarray(rng.integers(1, 60, (3, 8)), jnp.int32)
    mask = jnp.asarray(np.arange(8) < np.array([[8], [2], [5]]))
    shape = (3, *(model.image.image_shape if model.image is not None else (1,)))
    return jnp.asarray(rng.integers(0, 256, shape), jnp.uint8), text, mask


@pytest.mark.parametrize("name", MODELS)
def test_a_program_of_any_batch_size_says_what_the_model_says(name):
    spec = MODELS[name]
    model, bundle = bundled(spec)
    picture, text, mask = inputs(model)
    towers, want = build_towers(bundle), {}
    # On a CPU the model itself would refuse a kernel of TPUs.
    if "TPU" not in name and model.image is not None:
        want["image"] = model.project("image", model.encode_image(picture)).z
    if model.text is not None:
        want["text"] = model.project("text", model.encode_text(text, mask=mask)).z
    params = bundle.params
    given = {"image": (picture,), "text": (text, mask)}
    exact = 1e-2 if name == "bfloat16" else 1e-5
    for side, (function, arguments) in signatures(bundle, towers).items():
        shapes = {key: jax.ShapeDtypeStruct(x.shape, x.dtype) for key, x in params.items()}
        exported = export.export(jax.jit(function), platforms=PLATFORMS)(shapes, *arguments)
        for rows in (3, 1) if name == "plain" else (3,):
            got = exported.call(params, *(x[:rows] for x in given[side]))
            assert got.shape[0] == rows and got.dtype == jnp.float32
            np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, rtol=1e-5)
            if side in want:
                np.testing.assert_allclose(got, want[side][:rows], atol=exact)


def test_parameters_that_are_missing_or_of_another_shape_are_named():
    _, bundle = bundled(MODELS["plain"])
    name = "model/text/embedding"
    less = {key: x for key, x in bundle.params.items() if key != name}
    with pytest.raises(BadInput, match=r"1 parameters of the towers are missing \(model/text/emb"):
        build_towers(bundle._replace(params=less))
    other = bundle.params | {name: np.zeros((3, 16), np.float32)}
    with pytest.raises(
        BadInput, match=r"have another shape \(model/text/embedding: \[3, 16\], the"
    ):
        build_towers(bundle._replace(params=other))
