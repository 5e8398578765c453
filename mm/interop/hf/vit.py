"""ViTModel, ViTMAEModel and ViTMAEForPreTraining of transformers."""

import math
from collections.abc import Mapping

import numpy as np

from mm.config import BadInput
from mm.interop.hf.blocks import VIT as BLOCK
from mm.interop.hf.family import (
    Family,
    Spec,
    integer,
    need,
    only,
    picture,
    stack,
    their_picture,
    their_stack,
)
from mm.interop.options import Options
from mm.interop.tables import Table, blocks, linear, norm, patches, same, under
from mm.models.vit import sincos2d

_VIT = dict(
    hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
    hidden_act="gelu", layer_norm_eps=1e-12, image_size=224, patch_size=16, num_channels=3,
    qkv_bias=True, pooler_act="tanh",
)  # fmt: skip
_MAE = _VIT | dict(
    decoder_hidden_size=512, decoder_num_hidden_layers=8, decoder_num_attention_heads=16,
    decoder_intermediate_size=2048, mask_ratio=0.75, norm_pix_loss=False,
)  # fmt: skip
_POOLER = "pooler.dense"
# As `fixed` positions are stored: in half precision, too.
FIXED_TOLERANCE = 1e-3


def vit_tower(depth: int, patch_size: int, channels: int = 3, prefix: str = "") -> Table:
    """ViT and the encoder of ViTMAE."""
    embeddings = f"{prefix}embeddings."
    return (
        patches(
            f"{embeddings}patch_embeddings.projection",
            f"{embeddings}position_embeddings",
            f"{embeddings}cls_token",
            size=patch_size,
            channels=channels,
            lead=1,
            cls_axes=3,
        )
        | blocks(f"{prefix}encoder.layer", "encoder/blocks", depth, BLOCK)
        | norm(f"{prefix}layernorm", "encoder/final_norm")
    )


def mae_tower(depth: int, patch_size: int, channels: int = 3, prefix: str = "") -> Table:
    """The encoder of ViTMAE, whose positions are fixed."""
    embeddings = f"{prefix}embeddings."
    table = vit_tower(depth, patch_size, channels, prefix)
    del table[f"{embeddings}position_embeddings"]
    return table


def mae_decoder(depth: int) -> Table:
    """The decoder of ViTMAE, but for its fixed positions."""
    return (
        linear("decoder.decoder_embed", "embed")
        | same("decoder.mask_token", "mask_token", lead=1)
        | blocks("decoder.decoder_encoder.layer", "decoder/blocks", depth, BLOCK)
        | norm("decoder.decoder_norm", "decoder/final_norm")
        | linear("decoder.decoder_pred", "out")
    )


def _vit_table(options: Options) -> Table:
    keys = options.part("image")
    table = vit_tower(keys["depth"], keys["patch_size"], keys["channels"])
    if keys["pooler"]:
        table |= linear(_POOLER, "pooler/layer")
    return under("model/image", table)


def _vit_fixed(options: Options) -> dict[str, np.ndarray]:
    """Without a pooler of ours theirs returns the class token: an identity, and no activation."""
    if options.part("image")["pooler"]:
        return {}
    width = options.part("image")["width"]
    return {
        f"{_POOLER}.weight": np.eye(width, dtype=np.float32),
        f"{_POOLER}.bias": np.zeros(width, np.float32),
    }


def _read_vit(config: Mapping, names: frozenset[str]) -> Spec:
    config = _VIT | config
    only(config, "ViTModel", qkv_bias=True)
    pooler = False
    if f"{_POOLER}.weight" in names and config["pooler_act"] != "linear":
        only(config, "ViTModel", pooler_act="tanh")
        if config.get("pooler_output_size") not in (None, config["hidden_size"]):
            raise BadInput(
                f"ViTModel: pooler_output_size={config['pooler_output_size']} has no counterpart "
                f"here; expected the width"
            )
        pooler = True
    image = picture(config) | dict(pool="cls", pooler=pooler) | stack(config)
    return Spec(dict(image=image), {}, {})


def _write_vit(options: Options, text: Mapping) -> dict:
    need(options, "ViTModel", "image")
    keys = options.part("image")
    act = "tanh" if keys["pooler"] else "linear"
    more = dict(qkv_bias=True, pooler_act=act, pooler_output_size=keys["width"])
    return their_picture(keys) | their_stack(keys) | more | dict(encoder_stride=keys["patch_size"])


def _mae(options: Options) -> str | None:
    return options.objective("mae")


def _mae_table(options: Options) -> Table:
    keys, name = options.part("image"), _mae(options)
    sizes = keys["depth"], keys["patch_size"], keys["channels"]
    if name is None:
        return under("model/image", mae_tower(*sizes))
    decoder = mae_decoder(options.settings[f"{name}.decoder.depth"])
    return under("model/image", mae_tower(*sizes, "vit.")) | under(f"objectives/{name}", decoder)


def _mae_fixed(options: Options) -> dict[str, np.ndarray]:
    keys, name = options.part("image"), _mae(options)
    grid = tuple(side // keys["patch_size"] for side in keys["image_size"])

    def positions(width: int) -> np.ndarray:
        table = np.zeros((1, 1 + math.prod(grid), width), np.float32)
        table[0, 1:] = sincos2d(grid, width)
        return table

    if name is None:
        return {"embeddings.position_embeddings": positions(keys["width"])}
    width = options.settings[f"{name}.decoder.width"]
    return {
        "vit.embeddings.position_embeddings": positions(keys["width"]),
        "decoder.decoder_pos_embed": positions(width),
    }


def _read_mae(config: Mapping, names: frozenset[str]) -> Spec:
    config = _MAE | config
    only(config, "ViTMAEModel", qkv_bias=True)
    tower = stack(config)
    image = picture(config) | dict(pool="cls", position="sincos2d") | tower
    if "decoder.mask_token" not in names:
        return Spec(dict(image=image), {}, {})
    decoder = tower | dict(
        width=integer(config, "decoder_hidden_size"),
        depth=integer(config, "decoder_num_hidden_layers"),
        num_heads=integer(config, "decoder_num_attention_heads"),
        mlp_dim=integer(config, "decoder_intermediate_size"),
    )
    mae = dict(
        name="mae",
        ratio=float(config["mask_ratio"]),
        normalize=config["norm_pix_loss"],
        decoder=decoder,
    )
    return Spec(dict(image=image), dict(mae=mae), {})


def _write_mae(options: Options, text: Mapping) -> dict:
    need(options, "ViTMAEModel", "image")
    keys, name = options.part("image"), _mae(options)
    config = their_picture(keys) | their_stack(keys) | dict(qkv_bias=True)
    if name is None:
        return config
    own = {
        key.removeprefix(f"{name}.decoder."): value
        for key, value in options.settings.items()
        if key.startswith(f"{name}.decoder.")
    }
    for key in ("activation", "norm_epsilon", "norm", "norm_placement", "qk_norm", "layer_scale"):
        if own[key] != keys[key]:
            raise BadInput(
                f"ViTMAEForPreTraining: decoder.{key}={own[key]!r} has no counterpart there; "
                f"expected that of the encoder, {keys[key]!r}"
            )
    return config | dict(
        decoder_hidden_size=own["width"],
        decoder_num_hidden_layers=own["depth"],
        decoder_num_attention_heads=own["num_heads"],
        decoder_intermediate_size=own["mlp_dim"] or 4 * own["width"],
        mask_ratio=options.settings[f"{name}.ratio"],
        norm_pix_loss=options.settings[f"{name}.normalize"],
    )


VIT = Family(
    "ViTModel", "vit", _vit_table, _read_vit, _write_vit,
    ("ViTForImageClassification",), "vit.", _vit_fixed,
)  # fmt: skip
MAE = Family(
    "ViTMAEForPreTraining", "vit_mae", _mae_table, _read_mae, _write_mae,
    ("ViTMAEModel",), "", _mae_fixed,
)  # fmt: skip
