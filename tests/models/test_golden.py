"""Our models against those of others: the same weights, outputs and gradients.

The files, and the script that makes them, are in tests/golden/models.
"""

import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm.config import BadInput
from mm.models import vit as vit_module
from mm.models.encoder import Block, Branch, Encoder, EncoderSpec, Reads
from mm.models.keys import example_keys
from mm.models.layers import ACTIVATIONS, LayerNorm, Linear, param
from mm.models.multimodal import Multimodal
from mm.models.resnet import ResNet
from mm.models.stem import cut
from mm.models.text import TextTransformer
from mm.models.vit import ViT
from mm.objectives import Views
from mm.objectives.contrastive import Contrastive
from mm.optim.paths import flatten, map_paths
from tests.models import foreign
from tests.models.foreign import Table, linear, norm, same, under

FILES = Path(__file__).parents[1] / "golden" / "models"
TOWER = dict(width=16, depth=2, num_heads=2, mlp_dim=20, norm_epsilon=1e-3)
SHALLOW = dict(TOWER, depth=1)
IMAGE = dict(image_size=12, patch_size=4)
TEXT = dict(vocab_size=24, length=6)
BERT = dict(TEXT, pool="first", pre_norm=True)


class Golden(NamedTuple):
    """A file's arrays by their names, in float32 where they are floats."""

    weight: dict[str, np.ndarray]
    input: dict[str, np.ndarray]
    output: dict[str, np.ndarray]
    gradient: dict[str, np.ndarray]


def read(name: str) -> Golden:
    """A safetensors file: the length of a header, the header in JSON, and the arrays."""
    data = (FILES / f"{name}.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    types = {"F16": np.float16, "F32": np.float32, "I32": np.int32, "BOOL": np.bool_}
    found = Golden({}, {}, {}, {})
    for key, entry in json.loads(data[8:start]).items():
        kind, _, name = key.partition("/")
        begin, end = entry["data_offsets"]
        x = np.frombuffer(data[start + begin : start + end], types[entry["dtype"]])
        x = x.reshape(entry["shape"])
        getattr(found, kind)[name] = x.astype(np.float32) if x.dtype == np.float16 else x
    return found


def check(name: str, make, table: Table, run) -> None:
    """Outputs to 1e-5 and gradients to 1e-4 of the largest element of each array.

    run(module, inputs) -> outputs, with the "loss" or without, see the script. A gradient that is
    zero but for rounding (of the bias of attention's keys) may be 1e-6 of the largest of all.
    """
    golden = read(name)
    graphdef, like = nnx.split(nnx.eval_shape(make))
    like = nnx.to_pure_dict(like)
    shapes = {path: x.shape for path, x in flatten(like).items()}

    @partial(jax.value_and_grad, has_aux=True)
    def differentiated(weights):
        params = foreign.convert(weights, table, shapes)
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
        assert error <= 1e-5 * np.abs(want).max(), (key, error)
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

    check("vit", lambda: ViT(pool="cls", **IMAGE, **TOWER, rngs=nnx.Rngs(0)), foreign.vit(2), run)


class Pairs(nnx.Module):
    """A model and its contrastive loss."""

    def __init__(self, kind: str, **spec):
        self.model = Multimodal(**spec, rngs=nnx.Rngs(0))
        self.loss = Contrastive(kind=kind, model=self.model, rngs=nnx.Rngs(0))

    def __call__(self, inputs, text_mask):
        batch = dict(image=pixels(inputs), text=inputs["text"], text_mask=text_mask)
        views = Views(self.model, batch | {"group": jnp.arange(len(text_mask))}, None)
        image, text = views.image_embedding().z, views.text_embedding().z
        logits = jnp.exp(self.loss.log_scale[...]) * image @ text.T
        if self.loss.bias is not None:
            logits = logits + self.loss.bias[...]
        loss = self.loss(views, jax.random.key(0)).value
        return dict(image=image, text=text, logits=logits, loss=loss)


def test_clip():
    more = dict(activation="quick_gelu")
    stem = dict(name="linear", bias=False)
    image = dict(name="vit", pool="cls", pre_norm=True, stem=stem, **IMAGE) | SHALLOW | more
    text = dict(name="transformer", causal=True, pool="last", **TEXT) | TOWER | more
    table = under("model", foreign.clip(1, 2)) | same("logit_scale", "loss/log_scale")
    check(
        "clip",
        lambda: Pairs("softmax", image=image, text=text, embed_dim=8),
        table,
        lambda pairs, inputs: pairs(inputs, inputs["text_mask"]),
    )


def test_siglip():
    more = dict(activation="gelu_tanh")
    image = dict(name="vit", pool="map", **IMAGE) | SHALLOW | more
    text = dict(name="transformer", pool="last", **TEXT) | TOWER | more
    spec = dict(embed_dim=16, image_projection="none", text_projection="affine")
    scalars = same("logit_scale", "loss/log_scale") | same("logit_bias", "loss/bias")
    check(
        "siglip",
        lambda: Pairs("sigmoid", image=image, text=text, **spec),
        under("model", foreign.siglip(1, 2)) | scalars,
        lambda pairs, inputs: pairs(inputs, jnp.ones_like(inputs["text"], bool)),
    )


class MaskedWords(nnx.Module):
    """BERT's tower and head: a layer, a norm, and the embeddings as the output's weights."""

    def __init__(self):
        rngs, width = nnx.Rngs(0), TOWER["width"]
        tower = dict(BERT, segments=2, norm_placement="post", **TOWER)
        self.text = TextTransformer(**tower, rngs=rngs)
        self.transform = Linear((width,), (width,), (None, "embed"), rngs=rngs)
        self.norm = LayerNorm(width, epsilon=1e-3, rngs=rngs)
        self.bias = param(rngs, jax.nn.initializers.zeros, (24,), ("vocab",))

    def __call__(self, inputs):
        read = inputs["text"], inputs["text_mask"]
        tokens = self.text(*read, segments=inputs["segments"]).tokens
        hidden = self.norm(ACTIVATIONS["gelu"](self.transform(tokens)))
        logits = hidden @ self.text.embedding[...].T + self.bias[...]
        masked = inputs["masked"]
        targets = jnp.where(masked, inputs["targets"], 0)
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
        loss = (losses * masked).sum() / masked.sum()
        return dict(tokens=tokens, logits=logits, loss=loss)


def test_bert():
    head = (
        linear("cls.predictions.transform.dense", "transform")
        | norm("cls.predictions.transform.LayerNorm", "norm")
        | same("cls.predictions.bias", "bias")
    )
    table = under("text", foreign.bert(2)) | head
    check("bert", MaskedWords, table, lambda model, inputs: model(inputs))


class MaskedPatches(nnx.Module):
    """The encoder of an MAE, its decoder and its loss (He et al. 2022, section 3)."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.image = ViT(pool="cls", image_size=16, patch_size=4, **TOWER, rngs=rngs)
        self.enter = Linear((16,), (16,), (None, "embed"), rngs=rngs)
        zeros = jax.nn.initializers.zeros
        self.mask_token = param(rngs, zeros, (1, 16), (None, "embed"))
        self.position = param(rngs, zeros, (17, 16), ("tokens", "embed"))
        self.decoder = Encoder(EncoderSpec(**dict(TOWER, depth=1, num_heads=4)), rngs=rngs)
        self.out = Linear((16,), (48,), ("embed", "patch"), rngs=rngs)

    def __call__(self, inputs):
        rows = jnp.arange(3)[:, None]
        seen = self.image(pixels(inputs), keep=0.25, draw=example_keys(jax.random.key(0), 3))
        x = self.enter(seen.tokens)
        places = jnp.broadcast_to(self.mask_token[...], (3, 16, 16)).at[rows, seen.kept]
        x = jnp.concatenate([x[:, :1], places.set(x[:, 1:])], 1) + self.position[...]
        drawn = self.out(self.decoder(x))[:, 1:]
        target = cut(pixels(inputs), 4).reshape(3, 16, 48)
        mean, variance = target.mean(-1, keepdims=True), target.var(-1, ddof=1, keepdims=True)
        errors = jnp.square(drawn - (target - mean) / jnp.sqrt(variance + 1e-6)).mean(-1)
        masked = jnp.ones((3, 16)).at[rows, seen.kept].set(0.0)
        loss = (errors * masked).sum() / masked.sum()
        return dict(tokens=seen.tokens, pixels=drawn, masked=masked, loss=loss)


def test_vit_mae(monkeypatch):
    noise = read("vit_mae").input["noise"]
    monkeypatch.setattr(vit_module, "uniform", lambda keys, shape: jnp.asarray(noise))
    decoder = (
        linear("decoder.decoder_embed", "enter")
        | same("decoder.mask_token", "mask_token")
        | same("decoder.decoder_pos_embed", "position")
        | foreign.blocks("decoder.decoder_encoder.layer", "decoder/blocks", 1, foreign.VIT)
        | norm("decoder.decoder_norm", "decoder/final_norm")
        | linear("decoder.decoder_pred", "out")
    )
    table = under("image", foreign.vit(2, "vit.")) | decoder
    check("vit_mae", MaskedPatches, table, lambda model, inputs: model(inputs))


class Retrieval(nnx.Module):
    """BLIP: one text tower reads the text alone for cosines, and with the image for matches.

    Ours has a fusion for the second, with layers of its own; so there are two models of one
    image tower each, and the weights that BLIP shares fill both.
    """

    def __init__(self):
        rngs = nnx.Rngs(0)
        image = dict(name="vit", pool="cls", **IMAGE, **SHALLOW)
        post = dict(norm_placement="post")
        text = dict(name="transformer", **BERT, **TOWER) | post
        bias = dict(image_projection="affine", text_projection="affine")
        self.towers = Multimodal(image=image, text=text, embed_dim=8, **bias, rngs=rngs)
        self.fused = Multimodal(
            image=image,
            text=text | dict(depth=0),
            fusion=dict(name="cross", pool="first", **TOWER) | post,
            rngs=rngs,
        )
        self.head = Linear((16,), (2,), ("embed", None), rngs=rngs)

    def __call__(self, inputs):
        batch = dict(image=pixels(inputs), text=inputs["text"], text_mask=inputs["text_mask"])
        views = Views(self.towers, batch, None)
        cosines = views.image_embedding().z @ views.text_embedding().z.T
        fused = Views(self.fused, batch, None).fuse()
        return dict(cosines=cosines, matches=self.head(fused.pooled))


def test_blip():
    theirs, image = "text_encoder.encoder.layer", foreign.blip_image(1)
    embeddings = foreign.words("text_encoder.embeddings", segments=False)
    table = foreign.join(
        under("towers/image", image),
        under("towers/text", embeddings),
        foreign.blocks(theirs, "towers/text/encoder/blocks", 2, foreign.BERT),
        linear("vision_proj", "towers/image_projection"),
        linear("text_proj", "towers/text_projection"),
        under("fused/image", image),
        under("fused/text", embeddings),
        foreign.blocks(theirs, "fused/fusion/encoder/blocks", 2, foreign.BERT | foreign.BLIP_CROSS),
        linear("itm_head", "head"),
    )
    check("blip", Retrieval, table, lambda model, inputs: model(inputs))


class TwoStreams(nnx.Module):
    """LXMERT: one cross-attention for both directions, then a block of each stream."""

    def __init__(self):
        spec = EncoderSpec(**TOWER | dict(norm_epsilon=1e-12, norm_placement="post"))
        rngs = nnx.Rngs(0)
        self.branch, self.cross = Branch(spec, rngs=rngs), spec.make_attention(rngs)
        self.image, self.text = (Block(spec, rngs=rngs) for _ in range(2))

    def __call__(self, inputs):
        masks = {"image": None, "text": inputs["text_mask"]}
        x = {name: inputs[name].reshape(-1, 16) for name in masks}
        found = {}
        for name, other in (("image", "text"), ("text", "image")):

            def attend(y, other=other):
                return self.cross(y, x[other], masks[other], batch=3)

            y = self.branch(x[name], attend, batch=3)
            y = getattr(self, name)(y, Reads(masks[name]), batch=3)
            found[name] = y.reshape(inputs[name].shape)
        return found


def test_lxmert():
    table = foreign.join(
        *(
            linear(f"visual_attention.att.{part}", f"cross/{part}")
            for part in ("query", "key", "value")
        ),
        linear("visual_attention.output.dense", "cross/out"),
        norm("visual_attention.output.LayerNorm", "branch/norm"),
        foreign.lxmert_block("visn", "image"),
        foreign.lxmert_block("lang", "text"),
    )
    check("lxmert", TwoStreams, table, lambda model, inputs: model(inputs))


class SingleStream(nnx.Module):
    """ViLT: words and patches with their types, one below the other, through one stack."""

    def __init__(self):
        rngs, post = nnx.Rngs(0), dict(depth=0, norm_placement="post")  # no norm at the end
        self.image = ViT(pool="cls", **IMAGE, **TOWER | post, rngs=rngs)
        self.text = TextTransformer(**BERT, segments=2, **TOWER | post, rngs=rngs)
        self.types = param(rngs, jax.nn.initializers.zeros, (2, 16), (None, "embed"))
        self.encoder = Encoder(EncoderSpec(**TOWER), rngs=rngs)

    def __call__(self, inputs):
        mask = inputs["text_mask"]
        text = self.text(inputs["text"], mask).tokens + self.types[0]
        image = self.image(pixels(inputs)).tokens + self.types[1]
        both = jnp.concatenate([mask, jnp.ones(image.shape[:2], bool)], 1)
        x = self.encoder(jnp.concatenate([text, image], 1), both)
        return dict(text=x[:, :6] * mask[..., None], image=x[:, 6:])


def test_vilt():
    table = (
        under("image", foreign.patches(
            "embeddings.patch_embeddings.projection",
            "embeddings.position_embeddings",
            "embeddings.cls_token",
        ))
        | under("text", foreign.words("embeddings.text_embeddings"))
        | same("embeddings.token_type_embeddings.weight", "types")
        | foreign.blocks("encoder.layer", "encoder/blocks", 2, foreign.VIT)
        | norm("layernorm", "encoder/final_norm")
    )  # fmt: skip
    check("vilt", SingleStream, table, lambda model, inputs: model(inputs))


@pytest.mark.parametrize(
    "depth, sizes", [(18, dict(base_width=2, groups=2)), (50, dict(base_width=1, groups=1))]
)
def test_resnet(depth, sizes):
    def run(model, inputs):
        tokens = model(pixels(inputs)).tokens
        side = int(tokens.shape[1] ** 0.5)
        return {"map": tokens.swapaxes(1, 2).reshape(len(tokens), -1, side, side)}

    spec = dict(image_size=34, depth=depth, **sizes)
    make = lambda: ResNet(**spec, rngs=nnx.Rngs(0))  # noqa: E731
    check(f"resnet{depth}", make, foreign.resnet(depth), run)


def test_a_weight_without_a_place_and_a_place_without_a_weight_are_refused():
    x, table = np.ones((2, 2)), linear("theirs", "ours", bias=False)
    shapes = {"ours/kernel": (2, 2)}
    with pytest.raises(ValueError, match="differ in .'more'"):
        foreign.convert({"theirs.weight": x, "more": x}, table, shapes)
    with pytest.raises(ValueError, match="nothing fills .'ours/bias'"):
        foreign.convert({"theirs.weight": x}, table, shapes | {"ours/bias": (2,)})
    with pytest.raises(ValueError, match="of 3 layers has .0, 1."):
        stacked = foreign.join(*(linear(f"x{i}", "ours", i, bias=False) for i in range(2)))
        foreign.convert({f"x{i}.weight": x for i in range(2)}, stacked, {"ours/kernel": (3, 2, 2)})


def test_a_pooled_vector_without_projection_must_be_as_wide_as_the_space():
    tower = dict(name="vit", **IMAGE, **TOWER)
    with pytest.raises(BadInput, match="embed_dim=8, and a pooled vector of width 16"):
        Multimodal(image=tower, embed_dim=8, image_projection="none", rngs=nnx.Rngs(0))
