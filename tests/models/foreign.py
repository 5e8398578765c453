"""Weights of others by our names: tables, theirs -> where it goes in ours, and what is done to it.

A table is {their name: [Target, ...]}. One weight of theirs may fill several of ours (a fused
query-key-value), and several one (the class token and its position: they are added up). The other
direction of derivatives is free: `convert` is differentiable, so gradients compare by their names.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from mm.models.resnet import STAGES


class Target(NamedTuple):
    """A parameter of ours, one layer of it if it is a stack; a reshape to its shape comes last."""

    path: str
    transform: Callable[[Array], Array] = lambda x: x
    layer: int | None = None


Table = dict[str, list[Target]]


def convert(
    weights: Mapping[str, Array], table: Table, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Array]:
    """Our parameters, by path. Raises ValueError unless each weight and each of ours is used."""
    if weights.keys() != table.keys():
        raise ValueError(f"weights and table differ in {sorted(weights.keys() ^ table.keys())}")
    parts: dict[str, dict[int | None, Array]] = {}
    for name, targets in table.items():
        for path, transform, layer in targets:
            shape = shapes[path] if layer is None else shapes[path][1:]
            value, layers = transform(weights[name]).reshape(shape), parts.setdefault(path, {})
            layers[layer] = layers[layer] + value if layer in layers else value
    if parts.keys() != shapes.keys():
        raise ValueError(f"nothing fills {sorted(shapes.keys() - parts.keys())}")
    for path, layers in parts.items():
        if None not in layers and set(layers) != set(range(shapes[path][0])):
            raise ValueError(f"{path}: of {shapes[path][0]} layers has {sorted(layers)}")
    return {
        path: layers[None] if None in layers else jnp.stack([layers[i] for i in sorted(layers)])
        for path, layers in parts.items()
    }


def join(*tables: Table) -> Table:
    """All of them; a weight that is in several goes to the targets of each."""
    joined: Table = {}
    for table in tables:
        for name, targets in table.items():
            joined[name] = joined.get(name, []) + targets
    return joined


def under(prefix: str, table: Table) -> Table:
    """The same weights for a model that is a part of another."""
    return {
        name: [target._replace(path=f"{prefix}/{target.path}") for target in targets]
        for name, targets in table.items()
    }


def transposed(x: Array) -> Array:
    """[out, in] to [in, out]; of a patch or convolution [o, i, h, w] to [h, w, i, o]."""
    return x.T if x.ndim == 2 else x.transpose(2, 3, 1, 0)


def third(i: int) -> Callable[[Array], Array]:
    """A third of the outputs of a fused query-key-value."""
    return lambda x: transposed(jnp.split(x, 3)[i]) if x.ndim == 2 else jnp.split(x, 3)[i]


def same(theirs: str, ours: str) -> Table:
    """One array."""
    return {theirs: [Target(ours)]}


def linear(theirs: str, ours: str, layer: int | None = None, bias: bool = True) -> Table:
    """A linear layer, or a convolution; their weight [out, in] is our kernel [in, out]."""
    table = {f"{theirs}.weight": [Target(f"{ours}/kernel", transposed, layer)]}
    if bias:
        table[f"{theirs}.bias"] = [Target(f"{ours}/bias", layer=layer)]
    return table


def norm(theirs: str, ours: str, layer: int | None = None) -> Table:
    """Layer norm or group norm."""
    return {
        f"{theirs}.weight": [Target(f"{ours}/scale", layer=layer)],
        f"{theirs}.bias": [Target(f"{ours}/bias", layer=layer)],
    }


def fused(
    theirs: str, ours: str, layer: int | None = None, weight: str = ".weight", bias: str = ".bias"
) -> Table:
    """Query, key and value in one matrix, one below the other."""
    parts = list(enumerate(("query", "key", "value")))
    return {
        theirs + weight: [Target(f"{ours}/{part}/kernel", third(i), layer) for i, part in parts],
        theirs + bias: [Target(f"{ours}/{part}/bias", third(i), layer) for i, part in parts],
    }


# Our parts of a block, and theirs.
VIT = {
    "attention_branch/norm": "layernorm_before",
    "attention/query": "attention.attention.query",
    "attention/key": "attention.attention.key",
    "attention/value": "attention.attention.value",
    "attention/out": "attention.output.dense",
    "mlp_branch/norm": "layernorm_after",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
}
CLIP = {
    "attention_branch/norm": "layer_norm1",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.out_proj",
    "mlp_branch/norm": "layer_norm2",
    "mlp/up": "mlp.fc1",
    "mlp/down": "mlp.fc2",
}
BERT = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/out": "attention.output.dense",
    "attention_branch/norm": "attention.output.LayerNorm",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
    "mlp_branch/norm": "output.LayerNorm",
}
BLIP_IMAGE = {
    "attention_branch/norm": "layer_norm1",
    "attention": "self_attn.qkv",  # fused
    "attention/out": "self_attn.projection",
    "mlp_branch/norm": "layer_norm2",
    "mlp/up": "mlp.fc1",
    "mlp/down": "mlp.fc2",
}
BLIP_CROSS = {
    "cross/query": "crossattention.self.query",
    "cross/key": "crossattention.self.key",
    "cross/value": "crossattention.self.value",
    "cross/out": "crossattention.output.dense",
    "cross_branch/norm": "crossattention.output.LayerNorm",
}


def blocks(theirs: str, ours: str, depth: int, parts: Mapping[str, str]) -> Table:
    """A stack of blocks, `theirs.0`, `theirs.1`, ..."""
    tables = []
    for layer in range(depth):
        for part, name in parts.items():
            kind = norm if part.endswith("norm") else fused if part == "attention" else linear
            tables.append(kind(f"{theirs}.{layer}.{name}", f"{ours}/{part}", layer))
    return join(*tables)


def lxmert(ours: str) -> Table:
    """A layer of LXMERT's cross-modality encoder, the only one of a stack of ours."""
    parts = {
        "crosses/shared/query": "visual_attention.att.query",
        "crosses/shared/key": "visual_attention.att.key",
        "crosses/shared/value": "visual_attention.att.value",
        "crosses/shared/out": "visual_attention.output.dense",
        "cross_branches/shared/norm": "visual_attention.output.LayerNorm",
    }
    for stream, theirs in (("image", "visn"), ("text", "lang")):
        parts |= {
            f"blocks/{stream}/attention/query": f"{theirs}_self_att.self.query",
            f"blocks/{stream}/attention/key": f"{theirs}_self_att.self.key",
            f"blocks/{stream}/attention/value": f"{theirs}_self_att.self.value",
            f"blocks/{stream}/attention/out": f"{theirs}_self_att.output.dense",
            f"blocks/{stream}/attention_branch/norm": f"{theirs}_self_att.output.LayerNorm",
            f"blocks/{stream}/mlp/up": f"{theirs}_inter.dense",
            f"blocks/{stream}/mlp/down": f"{theirs}_output.dense",
            f"blocks/{stream}/mlp_branch/norm": f"{theirs}_output.LayerNorm",
        }
    return join(
        *(
            (norm if part.endswith("norm") else linear)(name, f"{ours}/{part}", 0)
            for part, name in parts.items()
        )
    )


def patches(
    patch: str, position: str, cls: str | None = None, ours: str = "", bias: bool = True
) -> Table:
    """What comes before the blocks of a ViT. Our class token has no position: theirs is added."""
    table = linear(patch, f"{ours}stem/embedding", bias=bias)
    if cls is None:
        return table | same(position, f"{ours}position_embedding")
    return table | {
        cls: [Target(f"{ours}cls")],
        position: [
            Target(f"{ours}cls", lambda x: x.reshape(-1, x.shape[-1])[:1]),
            Target(f"{ours}position_embedding", lambda x: x.reshape(-1, x.shape[-1])[1:]),
        ],
    }


def words(theirs: str, ours: str = "", segments: bool = True) -> Table:
    """The embeddings of BERT and their norm."""
    table = (
        same(f"{theirs}.word_embeddings.weight", f"{ours}embedding")
        | same(f"{theirs}.position_embeddings.weight", f"{ours}position_embedding")
        | norm(f"{theirs}.LayerNorm", f"{ours}pre_norm")
    )
    if segments:
        table |= same(f"{theirs}.token_type_embeddings.weight", f"{ours}segment_embedding")
    return table


def vit(depth: int, prefix: str = "") -> Table:
    """transformers' ViT and the encoder of its ViTMAE."""
    embeddings = f"{prefix}embeddings."
    return (
        patches(
            f"{embeddings}patch_embeddings.projection",
            f"{embeddings}position_embeddings",
            f"{embeddings}cls_token",
        )
        | blocks(f"{prefix}encoder.layer", "encoder/blocks", depth, VIT)
        | norm(f"{prefix}layernorm", "encoder/final_norm")
    )


def mae_decoder(depth: int) -> Table:
    """The decoder of transformers' ViTMAE, but for its fixed positions."""
    return (
        linear("decoder.decoder_embed", "embed")
        | same("decoder.mask_token", "mask_token")
        | blocks("decoder.decoder_encoder.layer", "decoder/blocks", depth, VIT)
        | norm("decoder.decoder_norm", "decoder/final_norm")
        | linear("decoder.decoder_pred", "out")
    )


def clip_text(depth: int) -> Table:
    """The text tower of CLIP and SigLIP."""
    return (
        same("text_model.embeddings.token_embedding.weight", "embedding")
        | same("text_model.embeddings.position_embedding.weight", "position_embedding")
        | blocks("text_model.encoder.layers", "encoder/blocks", depth, CLIP)
        | norm("text_model.final_layer_norm", "encoder/final_norm")
    )


def clip(image_depth: int, text_depth: int) -> Table:
    """transformers' CLIP, but for its scale."""
    image = (
        patches(
            "vision_model.embeddings.patch_embedding",
            "vision_model.embeddings.position_embedding.weight",
            "vision_model.embeddings.class_embedding",
            bias=False,
        )
        | norm("vision_model.pre_layrnorm", "pre_norm")
        | blocks("vision_model.encoder.layers", "encoder/blocks", image_depth, CLIP)
        | norm("vision_model.post_layernorm", "encoder/final_norm")
    )
    return (
        under("image", image)
        | under("text", clip_text(text_depth))
        | linear("visual_projection", "image_projection", bias=False)
        | linear("text_projection", "text_projection", bias=False)
    )


def siglip(image_depth: int, text_depth: int) -> Table:
    """transformers' SigLIP, but for its scale and bias."""
    head = "vision_model.head"
    image = (
        patches(
            "vision_model.embeddings.patch_embedding",
            "vision_model.embeddings.position_embedding.weight",
        )
        | blocks("vision_model.encoder.layers", "encoder/blocks", image_depth, CLIP)
        | norm("vision_model.post_layernorm", "encoder/final_norm")
        | same(f"{head}.probe", "attention_pool/probe")
        | fused(f"{head}.attention.in_proj", "attention_pool/attention", None, "_weight", "_bias")
        | linear(f"{head}.attention.out_proj", "attention_pool/attention/out")
        | norm(f"{head}.layernorm", "attention_pool/norm")
        | linear(f"{head}.mlp.fc1", "attention_pool/mlp/up")
        | linear(f"{head}.mlp.fc2", "attention_pool/mlp/down")
    )
    return (
        under("image", image)
        | under("text", clip_text(text_depth))
        | linear("text_model.head", "text_projection")
    )


def bert(depth: int) -> Table:
    """transformers' BERT, without a head."""
    return words("bert.embeddings") | blocks("bert.encoder.layer", "encoder/blocks", depth, BERT)


def blip_image(depth: int) -> Table:
    """The image tower of BLIP."""
    return (
        patches(
            "vision_model.embeddings.patch_embedding",
            "vision_model.embeddings.position_embedding",
            "vision_model.embeddings.class_embedding",
        )
        | blocks("vision_model.encoder.layers", "encoder/blocks", depth, BLIP_IMAGE)
        | norm("vision_model.post_layernorm", "encoder/final_norm")
    )


def vilt(depth: int) -> Table:
    """transformers' ViLT; it has the type of texts first, and ours that of images."""
    image = patches(
        "embeddings.patch_embeddings.projection",
        "embeddings.position_embeddings",
        "embeddings.cls_token",
    )
    return (
        under("image", image)
        | under("text", words("embeddings.text_embeddings"))
        | {"embeddings.token_type_embeddings.weight": [Target("fusion/types", lambda x: x[::-1])]}
        | blocks("encoder.layer", "fusion/encoder/blocks", depth, VIT)
        | norm("layernorm", "fusion/encoder/final_norm")
    )


def resnet(depth: int) -> Table:
    """torchvision's ResNet, without the classifier."""
    tables = [linear("conv1", "stem", bias=False), norm("bn1", "stem/norm")]
    ours = 0
    for stage, count in enumerate(STAGES[depth]):
        for i in range(count):
            theirs, block = f"layer{stage + 1}.{i}", f"blocks/{ours}"
            for k in range(3 if depth >= 50 else 2):
                tables += [
                    linear(f"{theirs}.conv{k + 1}", f"{block}/convs/{k}", bias=False),
                    norm(f"{theirs}.bn{k + 1}", f"{block}/convs/{k}/norm"),
                ]
            if i == 0 and (stage > 0 or depth >= 50):
                tables += [
                    linear(f"{theirs}.downsample.0", f"{block}/shortcut", bias=False),
                    norm(f"{theirs}.downsample.1", f"{block}/shortcut/norm"),
                ]
            ours += 1
    return join(*tables)
