"""Models of others as folders, and bundles of tiny models of ours."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from mm.interop import options
from mm.interop.bundle import Bundle
from tests.models.golden import FILES, read

TOWER = dict(width=16, depth=2, num_heads=2, mlp_dim=20, norm_epsilon=1e-3)
IMAGE = dict(name="vit", image_size=12, patch_size=4, **TOWER)
TEXT = dict(name="transformer", vocab_size=24, length=6, **TOWER)
SOFTMAX = dict(contrastive=dict(name="contrastive", kind="softmax"))
SIGMOID = dict(contrastive=dict(name="contrastive", kind="sigmoid"))
FACTS = dict(ids_before=[1], ids_after=[23], pad_id=0, length=6, truncation="right")

# Models that a class of transformers expresses: config.model, config.objectives, the class.
EXPRESSED = {
    "clip": (
        dict(
            image=IMAGE
            | dict(
                pool="cls", pre_norm=True, stem=dict(name="linear", bias=False),
                activation="quick_gelu",
            ),
            text=TEXT | dict(causal=True, pool="last", activation="gelu"),
            embed_dim=8,
        ),
        SOFTMAX,
        "CLIPModel",
    ),
    "siglip": (
        dict(
            image=IMAGE | dict(pool="map", activation="gelu_tanh"),
            text=TEXT | dict(pool="last", padding="read", activation="gelu_tanh"),
            embed_dim=16,
            image_projection="none",
            text_projection="affine",
        ),
        SIGMOID,
        "SiglipModel",
    ),
    "blip": (
        dict(
            image=IMAGE | dict(depth=1, pool="cls"),
            text=TEXT | dict(pool="first", pre_norm=True, norm_placement="post"),
            fusion=TOWER
            | dict(name="cross", start="embeddings", pool="first", norm_placement="post"),
            embed_dim=8,
            image_projection="affine",
            text_projection="affine",
        ),
        dict(matching=dict(name="matching", temperature=None)),
        "BlipForImageTextRetrieval",
    ),
    "vit": (dict(image=IMAGE | dict(pool="cls", activation="relu")), {}, "ViTModel"),
    "vit_pooler": (dict(image=IMAGE | dict(pool="cls", pooler=True)), {}, "ViTModel"),
    "mae_encoder": (dict(image=IMAGE | dict(pool="cls", position="sincos2d")), {}, "ViTMAEModel"),
    "mae": (
        dict(image=IMAGE | dict(pool="cls", position="sincos2d")),
        dict(mae=dict(name="mae", decoder=TOWER | dict(width=8, depth=1))),
        "ViTMAEForPreTraining",
    ),
    "bert": (
        dict(text=TEXT | dict(pool="first", pre_norm=True, norm_placement="post", segments=2)),
        dict(masked_text=dict(name="masked_text", mask_id=3, norm_epsilon=1e-3)),
        "BertForMaskedLM",
    ),
    "bert_pooler": (
        dict(
            text=TEXT
            | dict(pool="first", pooler=True, pre_norm=True, norm_placement="post", segments=2)
        ),
        {},
        "BertModel",
    ),
}  # fmt: skip


_BIASLESS = dict(stem=dict(name="linear", bias=False))
# Models that open_clip's own towers express.
OPEN_CLIP = {
    "clip": (
        dict(
            image=IMAGE | _BIASLESS | dict(pool="cls", pre_norm=True, activation="quick_gelu"),
            text=TEXT | dict(causal=True, pool="last", activation="quick_gelu"),
            embed_dim=8,
        ),
        SOFTMAX,
    ),
    "siglip_text": (
        dict(
            image=IMAGE | _BIASLESS | dict(image_size=(12, 8), pool="cls", layer_scale=0.1),
            text=TEXT | dict(pool="last", padding="read", activation="gelu_tanh"),
            embed_dim=8,
            text_projection="affine",
        ),
        SIGMOID,
    ),
    "end_mark": (
        dict(
            image=IMAGE | _BIASLESS | dict(pool="cls", activation="gelu_tanh"),
            text=TEXT | dict(vocab_size=30, causal=True, pool="last", layer_scale=0.2),
            embed_dim=8,
        ),
        SOFTMAX,
    ),
}
_FIXED = dict(activation="gelu_tanh", norm_epsilon=1e-6)
_SIGLIP = dict(
    image=IMAGE | dict(pool="map") | _FIXED,
    text=TEXT | dict(pool="last", padding="read") | _FIXED,
    embed_dim=16,
    image_projection="none",
    text_projection="affine",
)
# Models that big_vision expresses.
BIG_VISION = {
    "siglip": (_SIGLIP, SIGMOID),
    "lit": (
        _SIGLIP | dict(image_projection="linear", text_projection="linear", embed_dim=8),
        SOFTMAX,
    ),
    "vit_map": (dict(image=IMAGE | dict(pool="map") | _FIXED), {}),
    "vit_gap": (dict(image=IMAGE | dict(pool="mean") | _FIXED), {}),
    "vit_cls": (dict(image=IMAGE | dict(pool="cls") | _FIXED), {}),
}
_CELLS = dict(name="cells", cell_size=2, cell_width=6, hidden=10)
# Dual encoders that none expresses: written with code of their own.
DUAL_ENCODERS = {
    "quickstart": (
        dict(
            image=IMAGE
            | dict(
                stem=_CELLS,
                norm="rms_norm",
                activation="relu_squared",
                pool="flatten",
                pool_dim=14,
                pool_dropout=0.2,
            ),
            text=TEXT | dict(depth=0, pool="mean", position="none"),
            embed_dim=8,
        ),
        SOFTMAX,
    ),
    "siglip": (
        dict(
            image=IMAGE | dict(image_size=(12, 8), pool="map", qk_norm=True, registers=2),
            text=TEXT | dict(pool="map", activation="silu", norm="rms_norm"),
            embed_dim=16,
            image_projection="none",
            text_projection="affine",
        ),
        SIGMOID,
    ),
    "flip": (
        dict(
            image=IMAGE | dict(pool="mean", position="sincos2d", activation="gelu_tanh"),
            text=TEXT | dict(pool="last", activation="quick_gelu", layer_scale=0.1),
            embed_dim=8,
        ),
        SOFTMAX,
    ),
    "bert": (
        dict(
            image=IMAGE | dict(pool="cls", pooler=True, norm_placement="post", activation="relu"),
            text=TEXT
            | dict(pool="first", pooler=True, pre_norm=True, norm_placement="post", segments=2),
            embed_dim=8,
        ),
        SOFTMAX,
    ),
}


def bundle(model: dict, objectives: dict, seed: int = 0, **manifest) -> Bundle:
    """With random parameters, big enough to matter, and facts of a text."""
    rng = np.random.default_rng(seed)
    params = {}
    for path, shape in options.find(model, objectives).shapes.items():
        x = rng.standard_normal(shape) * 0.3 + ("scale" in path and "log" not in path)
        params[path] = np.asarray(x, np.float32)
    return Bundle(model, params, {"text": FACTS} | manifest, None, objectives)


def golden_folder(name: str, folder: Path) -> Path:
    """A golden file's model as `save_pretrained` writes it, in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((FILES / f"{name}.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    weights = {key: x.astype(np.float16) for key, x in read(name).weight.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def open_clip_folder(name: str, folder: Path) -> Path:
    """A golden file's model as open_clip writes it, in half precision."""
    (folder / "open_clip_config.json").write_text((FILES / f"open_clip_{name}.json").read_text())
    weights = {key: x.astype(np.float16) for key, x in read(f"open_clip_{name}").weight.items()}
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    return folder
