"""CLIPModel and SiglipModel of transformers."""

from collections.abc import Mapping

from mm.config import BadInput
from mm.interop.hf.blocks import CLIP as BLOCK
from mm.interop.hf.family import (
    Family,
    Spec,
    need,
    only,
    pad_id,
    picture,
    stack,
    their_picture,
    their_stack,
    their_words,
    words,
)
from mm.interop.options import Options
from mm.interop.tables import (
    FLAT,
    Table,
    Target,
    attention_out,
    blocks,
    fused,
    linear,
    norm,
    patches,
    same,
    under,
)

# What a config leaves out (transformers 5.23).
_CLIP = dict(hidden_act="quick_gelu", layer_norm_eps=1e-5, patch_size=32, image_size=224)
_CLIP_IMAGE = _CLIP | dict(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
)
_CLIP_TEXT = _CLIP | dict(
    hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8,
    vocab_size=49_408, max_position_embeddings=77, pad_token_id=1, bos_token_id=49_406,
    eos_token_id=49_407,
)  # fmt: skip
_SIGLIP = _CLIP_IMAGE | dict(hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6, patch_size=16)
_SIGLIP_TEXT = _SIGLIP | dict(
    vocab_size=32_000, max_position_embeddings=64, pad_token_id=1, eos_token_id=49_407
)
_LEGACY_END = 2  # with this end mark in its config a CLIP pools at the largest id


def text_table(depth: int) -> Table:
    """The text tower of both."""
    return (
        same("text_model.embeddings.token_embedding.weight", "embedding")
        | same("text_model.embeddings.position_embedding.weight", "position_embedding")
        | blocks("text_model.encoder.layers", "encoder/blocks", depth, BLOCK)
        | norm("text_model.final_layer_norm", "encoder/final_norm")
    )


def clip_towers(image_depth: int, text_depth: int, patch_size: int, channels: int = 3) -> Table:
    """CLIP, but for its scale."""
    image = (
        patches(
            "vision_model.embeddings.patch_embedding",
            "vision_model.embeddings.position_embedding.weight",
            "vision_model.embeddings.class_embedding",
            size=patch_size,
            channels=channels,
            bias=False,
        )
        | norm("vision_model.pre_layrnorm", "pre_norm")  # spelled so
        | blocks("vision_model.encoder.layers", "encoder/blocks", image_depth, BLOCK)
        | norm("vision_model.post_layernorm", "encoder/final_norm")
    )
    return (
        under("image", image)
        | under("text", text_table(text_depth))
        | linear("visual_projection", "image_projection", bias=False)
        | linear("text_projection", "text_projection", bias=False)
    )


def siglip_towers(image_depth: int, text_depth: int, patch_size: int, channels: int = 3) -> Table:
    """SigLIP, but for its scale and bias."""
    head = "vision_model.head"
    image = (
        patches(
            "vision_model.embeddings.patch_embedding",
            "vision_model.embeddings.position_embedding.weight",
            size=patch_size,
            channels=channels,
        )
        | blocks("vision_model.encoder.layers", "encoder/blocks", image_depth, BLOCK)
        | norm("vision_model.post_layernorm", "encoder/final_norm")
        | same(f"{head}.probe", "attention_pool/probe", lead=1)
        | fused(f"{head}.attention.in_proj", "attention_pool/attention", None, "_weight", "_bias")
        | attention_out(f"{head}.attention.out_proj", "attention_pool/attention/out")
        | norm(f"{head}.layernorm", "attention_pool/norm")
        | linear(f"{head}.mlp.fc1", "attention_pool/mlp/up")
        | linear(f"{head}.mlp.fc2", "attention_pool/mlp/down")
    )
    return (
        under("image", image)
        | under("text", text_table(text_depth))
        | linear("text_model.head", "text_projection")
    )


def scalars(options: Options, kind: str, **names: str) -> Table:
    """Scale and bias, which an objective of ours has; ours are scalars, SigLIP's of one element."""
    name = options.objective("contrastive", kind=kind)
    if name is None:
        raise BadInput(f"needs an objective dict(name='contrastive', kind={kind!r}) for its scale")
    shape = FLAT if kind == "sigmoid" else Target("").transform
    return {theirs: [Target(f"objectives/{name}/{ours}", shape)] for ours, theirs in names.items()}


def _sizes(options: Options) -> tuple[int, int, int, int]:
    image, text = options.part("image"), options.part("text")
    return image["depth"], text["depth"], image["patch_size"], image["channels"]


def _clip_table(options: Options) -> Table:
    towers = under("model", clip_towers(*_sizes(options)))
    return towers | scalars(options, "softmax", log_scale="logit_scale")


def _siglip_table(options: Options) -> Table:
    towers = under("model", siglip_towers(*_sizes(options)))
    return towers | scalars(options, "sigmoid", log_scale="logit_scale", bias="logit_bias")


def _read_clip(config: Mapping, names: frozenset[str]) -> Spec:
    image, text = _CLIP_IMAGE | config["vision_config"], _CLIP_TEXT | config["text_config"]
    model = dict(
        image=picture(image)
        | dict(pool="cls", pre_norm=True, stem=dict(name="linear", bias=False))
        | stack(image),
        text=words(text) | dict(causal=True, pool="last") | stack(text),
        embed_dim=config.get("projection_dim", 512),
    )
    end = text["eos_token_id"]
    if end == _LEGACY_END:
        end = text["vocab_size"] - 1
    facts = dict(ids_after=[end], pad_id=text["pad_token_id"], length=model["text"]["length"])
    return Spec(model, dict(contrastive=dict(name="contrastive", kind="softmax")), facts)


def _write_clip(options: Options, text: Mapping) -> dict:
    need(options, "CLIPModel", "image", "text")
    ends = text.get("ids_after")
    if not ends or len(ends) != 1 or "marks too" in text.get("truncation", ""):
        raise BadInput(
            f"CLIPModel pools at the end mark of a text, and the tokenizer ends a text with {ends}"
            f" ({text.get('truncation', 'unknown truncation')}); it needs one that is always there"
        )
    if ends[0] == _LEGACY_END:
        raise BadInput(
            "CLIPModel: with 2 as the end mark it pools at the largest id of a text instead"
        )
    before = text.get("ids_before") or [None]
    dim = options.keys["embed_dim"]
    image, words = options.part("image"), options.part("text")
    return dict(
        projection_dim=dim,
        logit_scale_init_value=2.6592,
        vision_config=their_picture(image)
        | their_stack(image)
        | dict(model_type="clip_vision_model", projection_dim=dim),
        text_config=their_words(words)
        | their_stack(words)
        | dict(
            model_type="clip_text_model", projection_dim=dim, eos_token_id=ends[0],
            bos_token_id=before[0], pad_token_id=pad_id(text),
        ),
    )  # fmt: skip


def _read_siglip(config: Mapping, names: frozenset[str]) -> Spec:
    image, text = _SIGLIP | config["vision_config"], _SIGLIP_TEXT | config["text_config"]
    only(image, "SiglipModel", vision_use_head=True)
    only(text, "SiglipModel", projection_size=image["hidden_size"])
    model = dict(
        image=picture(image) | dict(pool="map") | stack(image),
        text=words(text) | dict(pool="last", padding="read") | stack(text),
        embed_dim=image["hidden_size"],
        image_projection="none",
        text_projection="affine",
    )
    facts = dict(pad_id=text["pad_token_id"], length=model["text"]["length"])
    return Spec(model, dict(contrastive=dict(name="contrastive", kind="sigmoid")), facts)


def _write_siglip(options: Options, text: Mapping) -> dict:
    need(options, "SiglipModel", "image", "text")
    image, words = options.part("image"), options.part("text")
    return dict(
        vision_config=their_picture(image)
        | their_stack(image)
        | dict(model_type="siglip_vision_model", vision_use_head=True),
        text_config=their_words(words)
        | their_stack(words)
        | dict(
            model_type="siglip_text_model", projection_size=image["width"], bos_token_id=None,
            eos_token_id=(text.get("ids_after") or [None])[-1], pad_token_id=pad_id(text),
        ),
    )  # fmt: skip


CLIP = Family("CLIPModel", "clip", _clip_table, _read_clip, _write_clip)
SIGLIP = Family("SiglipModel", "siglip", _siglip_table, _read_siglip, _write_siglip)
