"""BlipForImageTextRetrieval of transformers."""

from collections.abc import Mapping

from mm.config import BadInput
from mm.interop.hf.bert import embeddings
from mm.interop.hf.blocks import BERT as BERT_BLOCK
from mm.interop.hf.blocks import BLIP_CROSS, BLIP_IMAGE
from mm.interop.hf.family import (
    Family,
    Spec,
    integer,
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
from mm.interop.tables import Table, blocks, linear, norm, patches, under

_IMAGE = dict(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
    image_size=384, patch_size=16, hidden_act="gelu", layer_norm_eps=1e-5,
)  # fmt: skip
_TEXT = dict(
    vocab_size=30_524, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
    num_attention_heads=8, max_position_embeddings=512, hidden_act="gelu", layer_norm_eps=1e-12,
    pad_token_id=0,
)  # fmt: skip


def blip_image(depth: int, patch_size: int) -> Table:
    """The image tower of BLIP."""
    return (
        patches(
            "vision_model.embeddings.patch_embedding",
            "vision_model.embeddings.position_embedding",
            "vision_model.embeddings.class_embedding",
            size=patch_size,
            lead=1,
            cls_axes=3,
        )
        | blocks("vision_model.encoder.layers", "encoder/blocks", depth, BLIP_IMAGE)
        | norm("vision_model.post_layernorm", "encoder/final_norm")
    )


def _table(options: Options) -> Table:
    image, text = options.part("image"), options.part("text")
    name = options.objective("matching")
    if name is None:
        raise BadInput("BlipForImageTextRetrieval: needs an objective dict(name='matching')")
    theirs = "text_encoder.encoder.layer"
    own = blocks(theirs, "encoder/blocks", text["depth"], BERT_BLOCK | BLIP_CROSS)
    # One stack, which text tower and fusion share; its parameters go by the fusion's name.
    return (
        under("model/image", blip_image(image["depth"], image["patch_size"]))
        | under("model/text", embeddings("text_encoder.embeddings", segments=False))
        | under("model/fusion", own)
        | linear("vision_proj", "model/image_projection")
        | linear("text_proj", "model/text_projection")
        | linear("itm_head", f"objectives/{name}/head")
    )


def _read(config: Mapping, names: frozenset[str]) -> Spec:
    image, text = _IMAGE | config["vision_config"], _TEXT | config["text_config"]
    only(image, "BlipForImageTextRetrieval", num_channels=3)
    only(text, "BlipForImageTextRetrieval", encoder_hidden_size=image["hidden_size"])
    tower = stack(text) | dict(pool="first", norm_placement="post")
    model = dict(
        image=picture(image) | dict(pool="cls") | stack(image),
        text=words(text) | dict(pre_norm=True) | tower,
        fusion=dict(name="cross", start="embeddings") | tower,
        embed_dim=integer({"image_text_hidden_size": 256} | config, "image_text_hidden_size"),
        image_projection="affine",
        text_projection="affine",
    )
    facts = dict(pad_id=text["pad_token_id"], length=model["text"]["length"])
    return Spec(model, dict(matching=dict(name="matching", temperature=None)), facts)


def _write(options: Options, text: Mapping) -> dict:
    need(options, "BlipForImageTextRetrieval", "image", "text")
    image, own = options.part("image"), options.part("text")
    if not options.has("fusion"):
        raise BadInput("BlipForImageTextRetrieval: is of a model with a fusion")
    their_image = their_picture(image) | their_stack(image)
    del their_image["num_channels"]
    return dict(
        image_text_hidden_size=options.keys["embed_dim"],
        vision_config=their_image | dict(model_type="blip_vision_model"),
        text_config=their_words(own)
        | their_stack(own)
        | dict(
            model_type="blip_text_model", encoder_hidden_size=image["width"],
            pad_token_id=pad_id(text), bos_token_id=None, eos_token_id=None, sep_token_id=None,
            is_decoder=True,
        ),
    )  # fmt: skip


BLIP = Family("BlipForImageTextRetrieval", "blip", _table, _read, _write)
