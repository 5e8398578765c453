"""Our models against those of others: the same weights, outputs and gradients.

The files, and the script that makes them, are in tests/golden/models.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm import registry
from mm.config import BadInput
from mm.interop.hf.bert import bert_tower, embeddings, masked_head
from mm.interop.hf.blip import blip_image
from mm.interop.hf.blocks import BERT as BERT_BLOCK
from mm.interop.hf.blocks import BLIP_CROSS
from mm.interop.hf.clip import clip_towers, siglip_towers
from mm.interop.hf.vit import mae_decoder, mae_tower, vit_tower
from mm.interop.tables import Table, blocks, join, linear, same, to_ours, under
from mm.models import vit
from mm.models.encoder import Encoded
from mm.models.keys import example_keys
from mm.models.multimodal import Multimodal
from mm.models.resnet import STAGES, ResNet
from mm.models.vit import ViT, sincos2d
from mm.objectives import Views, masked_image
from mm.objectives.matching import Matching
from mm.optim.paths import flatten, map_paths
from tests.models import foreign
from tests.models.golden import read
from tests.tiny import Sizes

TOWER = dict(width=16, depth=2, num_heads=2, mlp_dim=20, norm_epsilon=1e-3)
SHALLOW = dict(TOWER, depth=1)
IMAGE = dict(image_size=12, patch_size=4)
TEXT = dict(vocab_size=24, length=6)
BERT = dict(TEXT, pool="first", pre_norm=True)


def check(name: str, make, table: Table, run, tolerance: float = 1e-5) -> None:
    """Outputs to `tolerance` and gradients to 1e-4 of the largest element of each array.

    run(module, inputs) -> outputs, with the "loss" or without, see the script. A gradient that is
    zero but for rounding (of the bias of attention's keys) may be 1e-6 of the largest of all.
    """
    golden = read(name)
    graphdef, like = nnx.split(nnx.eval_shape(make))
    like = nnx.to_pure_dict(like)
    shapes = {path: x.shape for path, x in flatten(like).items()}

    @partial(jax.value_and_grad, has_aux=True)
    def differentiated(weights):
        params = to_ours(weights, table, shapes)
        module = nnx.merge(graphdef, map_paths(lambda path, _: params[path], like))
        outputs = run(module, {key: jnp.asarray(x) for key, x in golden.input.items()})
        if "loss" in outputs:
            return outputs["loss"], outputs
        return sum((x * golden.input[f"slope_{key}"]).sum() for key, x in outputs.items()), outputs

    with jax.default_matmul_precision("highest"):
        (_, outputs), gradients = jax.jit(differentiated)(golden.weight)
    assert outputs.keys() == golden.output.keys()
    for key, want in golden.output.items():
        error = np.abs(outputs[key] - want).max()
        assert error <= tolerance * np.abs(want).max(), (key, error)
    assert golden.gradient.keys() <= gradients.keys()
    largest = max(np.abs(x).max() for x in golden.gradient.values())
    for key, want in golden.gradient.items():
        error = np.abs(gradients[key] - want).max()
        assert error <= max(1e-4 * np.abs(want).max(), 1e-6 * largest), (key, error)


def pixels(inputs):
    """[b, 3, h, w] to [b, h, w, 3]."""
    return inputs["image"].transpose(0, 2, 3, 1)


def test_vit():
    def run(model, inputs):
        return {"tokens": model(pixels(inputs)).tokens}

    check("vit", lambda: ViT(pool="cls", **IMAGE, **TOWER, rngs=nnx.Rngs(0)), vit_tower(2, 4), run)


class Trained(nnx.Module):
    """A model and an objective of it."""

    def __init__(self, objective: dict, **model):
        rngs = nnx.Rngs(0)
        self.model = Multimodal(**model, rngs=rngs)
        given = dict(model=self.model, rngs=rngs)
        self.objective = registry.build("objective", objective, "objective", **given)


def contrasted(trained: Trained, inputs, text_mask):
    batch = dict(image=pixels(inputs), text=inputs["text"], text_mask=text_mask)
    views = Views(trained.model, batch | {"group": jnp.arange(len(text_mask))}, None)
    image, text = views.image_embedding().z, views.text_embedding().z
    objective = trained.objective
    logits = jnp.exp(objective.log_scale[...]) * image @ text.T
    if objective.bias is not None:
        logits = logits + objective.bias[...]
    loss = objective(views, jax.random.key(0)).value
    return dict(image=image, text=text, logits=logits, loss=loss)


def test_clip():
    more = dict(activation="quick_gelu")
    stem = dict(name="linear", bias=False)
    image = dict(name="vit", pool="cls", pre_norm=True, stem=stem, **IMAGE) | SHALLOW | more
    text = dict(name="transformer", causal=True, pool="last", **TEXT) | TOWER | more
    objective = dict(name="contrastive", kind="softmax")
    check(
        "clip",
        lambda: Trained(objective, image=image, text=text, embed_dim=8),
        under("model", clip_towers(1, 2, 4)) | same("logit_scale", "objective/log_scale"),
        lambda trained, inputs: contrasted(trained, inputs, inputs["text_mask"]),
    )


def test_siglip():
    more = dict(activation="gelu_tanh")
    image = dict(name="vit", pool="map", **IMAGE) | SHALLOW | more
    text = dict(name="transformer", pool="last", **TEXT) | TOWER | more
    spec = dict(embed_dim=16, image_projection="none", text_projection="affine")
    objective = dict(name="contrastive", kind="sigmoid")
    scalars = same("logit_scale", "objective/log_scale") | same("logit_bias", "objective/bias")
    check(
        "siglip",
        lambda: Trained(objective, image=image, text=text, **spec),
        under("model", siglip_towers(1, 2, 4)) | scalars,
        lambda trained, inputs: contrasted(trained, inputs, jnp.ones_like(inputs["text"], bool)),
    )


def test_bert():
    """The masks are the file's, in the place of those that the objective would draw."""

    ratio = 0.5  # there is room for 3 of 6 words; the file has 2 at most

    def run(trained, inputs):
        model, objective = trained.model, trained.objective
        mask, name = inputs["text_mask"], f"text_{objective.mask.name}"
        batch = {
            "text": inputs["targets"],  # what the words were; -100 where none is masked
            "text_words": jnp.where(mask, jnp.arange(6), -1),
            name: inputs["text"],
            f"{name}_mask": mask,
            f"{name}_segments": inputs["segments"],
            f"{name}_chosen": inputs["masked"],
        }
        views = Views(model, batch, None)
        loss = objective(views, jax.random.key(0)).value
        tokens = views.encode(objective.mask.view(views)).tokens
        logits = objective.head(tokens, model.text.embedding[...]).whole()
        return dict(tokens=tokens, logits=logits, loss=loss)

    objective = dict(name="masked_text", ratio=ratio, mask_id=0, norm_epsilon=1e-3)
    text = dict(name="transformer", segments=2, norm_placement="post", **BERT, **TOWER)
    head = under("objective/head", masked_head())
    table = under("model/text", bert_tower(2)) | head
    check("bert", lambda: Trained(objective, text=text), table, run)


def test_vit_mae(monkeypatch):
    """The noise is the file's; the fixed positions are ours, rounded to the file's float16."""

    def rounded(*given):
        return sincos2d(*given).astype(np.float16)

    def run(trained, inputs):
        keys = example_keys(jax.random.key(0), 3)
        views = Views(trained.model, {"image": pixels(inputs)}, keys, training=False)
        loss = trained.objective(views, jax.random.key(0)).value
        seen = views.image(keep=0.25)
        found = trained.objective.decode(seen.tokens, seen.kept, (4, 4))
        masked = jnp.ones((3, 16)).at[jnp.arange(3)[:, None], seen.kept].set(0.0)
        return dict(tokens=seen.tokens, pixels=found, masked=masked, loss=loss)

    golden = read("vit_mae")
    fixed = "vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"
    for name in fixed:  # zeros at the class token
        want = np.concatenate([np.zeros((1, 16)), rounded((4, 4), 16)])
        np.testing.assert_array_equal(golden.weight[name][0], want)
    for module in (vit, masked_image):
        monkeypatch.setattr(module, "sincos2d", rounded)
    monkeypatch.setattr(vit, "uniform", lambda keys, shape: jnp.asarray(golden.input["noise"]))
    objective = dict(name="mae", ratio=0.75, decoder=dict(TOWER, depth=1, num_heads=4))
    image = dict(name="vit", pool="cls", position="sincos2d", image_size=16, patch_size=4, **TOWER)
    table = (
        under("model/image", mae_tower(2, 4, prefix="vit."))
        | under("objective", mae_decoder(1))
        | {name: [] for name in fixed}
    )
    check("vit_mae", lambda: Trained(objective, image=image), table, run)


class Retrieval(nnx.Module):
    """BLIP: one text tower reads the text alone for cosines, and with the image for matches.

    Ours has a fusion for the second, with layers of its own; so there are two models around one
    image tower, and the weights that BLIP's two uses of its text tower share fill both.
    """

    def __init__(self):
        rngs = nnx.Rngs(0)
        image = dict(name="vit", pool="cls", **IMAGE, **SHALLOW)
        text = dict(name="transformer", norm_placement="post", **BERT, **TOWER)
        bias = dict(image_projection="affine", text_projection="affine")
        fusion = dict(name="cross", pool="first", norm_placement="post", **TOWER)
        self.towers = Multimodal(image=image, text=text, embed_dim=8, **bias, rngs=rngs)
        self.fused = Multimodal(image=image, text=text | dict(depth=0), fusion=fusion, rngs=rngs)
        self.fused.image = self.towers.image
        self.matching = Matching(temperature=None, model=self.fused, rngs=rngs)

    def __call__(self, inputs):
        text, mask = inputs["text"], inputs["text_mask"]
        views = Views(self.towers, dict(image=pixels(inputs), text=text, text_mask=mask), None)
        cosines = views.image_embedding().z @ views.text_embedding().z.T
        fused = self.fused.fuse(views.image(), self.fused.encode_text(text, mask=mask))
        return dict(cosines=cosines, matches=self.matching.head(fused.pooled))


def test_blip():
    theirs = "text_encoder.encoder.layer"
    words = embeddings("text_encoder.embeddings", segments=False)
    table = join(
        under("fused/image", blip_image(1, 4)),  # and towers/image, which it is
        under("towers/text", words),
        blocks(theirs, "towers/text/encoder/blocks", 2, BERT_BLOCK),
        linear("vision_proj", "towers/image_projection"),
        linear("text_proj", "towers/text_projection"),
        under("fused/text", words),
        blocks(theirs, "fused/fusion/encoder/blocks", 2, BERT_BLOCK | BLIP_CROSS),
        linear("itm_head", "matching/head"),
    )
    check("blip", Retrieval, table, lambda model, inputs: model(inputs))


def test_lxmert():
    """One layer of its cross-modality encoder."""

    def make():
        spec = SHALLOW | dict(norm_epsilon=1e-12, norm_placement="post")
        kind = dict(name="coattention", shared_cross=True, cross_mlp=False)
        tower = Sizes(width=16, pooled_width=16)
        towers = Sizes(image=tower, text=tower)
        return registry.build("fusion", kind | spec, "fusion", model=towers, rngs=nnx.Rngs(0))

    def run(fusion, inputs):
        masks = dict(image=None, text=inputs["text_mask"])
        sides = [Encoded(inputs[name], inputs[name][:, 0], masks[name]) for name in masks]
        fused = fusion(*sides)
        return dict(image=fused.image, text=fused.text)

    check("lxmert", make, foreign.lxmert("stack/blocks"), run)


def test_vilt():
    def run(model, inputs):
        batch = dict(image=pixels(inputs), text=inputs["text"], text_mask=inputs["text_mask"])
        fused = Views(model, batch, None).fuse()
        return dict(text=fused.text * inputs["text_mask"][..., None], image=fused.image)

    def make():
        none = TOWER | dict(depth=0)
        image = dict(name="vit", pool="cls", **IMAGE, **none)
        text = dict(name="transformer", segments=2, **BERT, **none)
        fusion = dict(name="early", **TOWER)
        return Multimodal(image=image, text=text, fusion=fusion, rngs=nnx.Rngs(0))

    check("vilt", make, foreign.vilt(2), run)


@pytest.mark.parametrize(
    "depth, sizes", [(18, dict(base_width=2, groups=2)), (50, dict(base_width=1, groups=1))]
)
def test_resnet(depth, sizes, monkeypatch):
    """With the blocks of that depth, but few of them: each takes long to compile."""

    def run(model, inputs):
        tokens = model(pixels(inputs)).tokens
        side = int(tokens.shape[1] ** 0.5)
        return {"map": tokens.swapaxes(1, 2).reshape(len(tokens), -1, side, side)}

    monkeypatch.setitem(STAGES, depth, (1, 2, 1))
    spec = dict(image_size=34, depth=depth, **sizes)
    make = lambda: ResNet(**spec, rngs=nnx.Rngs(0))  # noqa: E731
    # Of float32 alone, the bottlenecks of 50 differ by 1.1e-5 on some processors.
    tolerance = 2e-5 if depth == 50 else 1e-5
    check(f"resnet{depth}", make, foreign.resnet(depth), run, tolerance)


def test_a_pooled_vector_without_projection_must_be_as_wide_as_the_space():
    tower = dict(name="vit", **IMAGE, **TOWER)
    spec = dict(image=tower, embed_dim=8, image_projection="none")
    with pytest.raises(BadInput, match="embed_dim=8, and a pooled vector of width 16"):
        nnx.eval_shape(lambda: Multimodal(**spec, rngs=nnx.Rngs(0)))
