"""Models of open_clip, both ways: open_clip_config.json and open_clip_model.safetensors.

`open_clip.create_model_and_transforms("local-dir:FOLDER")` opens what is written. Its own ViT and
text tower are read, with the text at the root or, with `custom_text`, under "text."; towers of timm
and of transformers are refused by name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mm import registry
from mm.config import BadInput, listed
from mm.interop import options, weight_files
from mm.interop.bundle import Bundle
from mm.interop.hf import clamped, processors, read_weights, tokenizer_files
from mm.interop.hf.family import Spec, integer, need, only
from mm.interop.json_files import read_json
from mm.interop.options import Options
from mm.interop.tables import (
    FLAT,
    Table,
    Target,
    blocks,
    linear,
    norm,
    patches,
    paths,
    same,
    to_theirs,
    under,
)
from mm.runtime.workdir import write_json

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model"
_BLOCK = {
    "attention_branch/norm": "ln_1",
    "attention": "attn.in_proj_",  # fused
    "attention/out": "attn.out_proj",
    "mlp_branch/norm": "ln_2",
    "mlp/up": "mlp.c_fc",
    "mlp/down": "mlp.c_proj",
}
# What a config leaves out (open_clip 3.3), and keys that have to stay as they are.
_VISION = dict(
    layers=12, width=768, head_width=64, mlp_ratio=4.0, patch_size=16, image_size=224,
    ls_init_value=None, no_ln_pre=False, act_kwargs=None, norm_kwargs=None,
)  # fmt: skip
_TEXT = dict(
    context_length=77, vocab_size=49_408, width=512, heads=8, layers=12, mlp_ratio=4.0,
    ls_init_value=None, pad_id=0, eos_id=2, no_causal_mask=False, pool_type="argmax",
    proj_bias=False, act_kwargs=None, norm_kwargs=None,
)  # fmt: skip
_PLAIN = dict(
    qk_norm=False, scaled_cosine_attn=False, scale_heads=False, scale_attn_inner=False,
    scale_attn=False, scale_fc=False, block_type=None, final_ln_after_pool=False,
)  # fmt: skip
_PLAIN_VISION = _PLAIN | dict(
    timm_model_name=None, attentional_pool=False, pos_embed_type="learnable", pool_type="tok"
)
_PLAIN_TEXT = _PLAIN | dict(hf_model_name=None, embed_cls=False, proj_type="linear")
_EPSILON = 1e-5  # torch's
_RESIZE = {"shortest": "shortest", "squash": "squash"}


@registry.register("import_format", "open_clip")
def read(path: str) -> Bundle:
    """The model of a folder. Raises BadInput for what has no counterpart here."""
    file = Path(path) / CONFIG
    config = read_json(file)
    cfg = config.get("model_cfg", config)
    there = [n for n in (WEIGHTS, "open_clip_pytorch_model", "model") if _has(path, n)]
    entries = weight_files.open_safetensors(path, there[0] if there else WEIGHTS)
    text = any(name.startswith("text.") for name in entries)
    try:
        spec = _read_config(cfg, "logit_bias" in entries)
    except (KeyError, TypeError) as error:
        raise BadInput(f"{file}: lacks {error}") from error
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from error
    found = options.find(spec.model, spec.objectives)
    weights, said = read_weights(entries, table(found, "text." if text else ""), {}, found, path)
    said["unused"] = [name for name in said["unused"] if not name.endswith("attn_mask")]
    tokenizer = tokenizer_files.read_tokenizer(path, spec.text)
    manifest: dict[str, Any] = {"format": "open_clip", "custom_text": text} | said
    # Hubs often have transformers' files beside these; open_clip's own say what open_clip does.
    image = _read_image(config.get("preprocess_cfg"), spec.model["image"]["image_size"])
    manifest |= processors.read_facts(path, spec, tokenizer, image)
    return Bundle(spec.model, weights, manifest, tokenizer, spec.objectives)


def _has(path: str, name: str) -> bool:
    folder = Path(path)
    files = (f"{name}.safetensors", f"{name}.safetensors.index.json")
    return any((folder / file).is_file() for file in files)


@registry.register("export_format", "open_clip")
def write(bundle: Bundle, folder: str) -> str:
    """Writes config, weights and the tokenizer's files; returns how to open them.

    Raises BadInput that lists the options without a counterpart.
    """
    found = options.find(bundle.model, bundle.objectives)
    need(found, "open_clip", "image", "text")
    text = bundle.manifest.get("text") or {}
    cfg = _write_config(found, text)
    spec = _read_config(cfg, found.objective("contrastive", kind="sigmoid") is not None)
    options.refuse_others(found, options.find(spec.model, spec.objectives), "open_clip")
    names = table(found, "")
    used = paths(names)
    if missing := sorted(used - bundle.params.keys()):
        raise BadInput(f"open_clip: the model has no {listed(missing)}")
    params = clamped({path: bundle.params[path] for path in used}, found)
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"model_cfg": cfg}
    if image := bundle.manifest.get("image"):
        config["preprocess_cfg"] = _write_image(image)
    tokenizer = ""
    if bundle.tokenizer_json:
        tokenizer_files.write_tokenizer(path, bundle, None)
        cfg["text_cfg"]["hf_tokenizer_name"] = "."  # of this folder, as "local-dir:" has it
        tokenizer = '\ntokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")'
    write_json(path / CONFIG, config)
    weight_files.write_safetensors(to_theirs(params, names), path / f"{WEIGHTS}.safetensors")
    opened = 'open_clip.create_model_and_transforms(f"local-dir:{folder}")'
    return f'import open_clip\n\nfolder = "."\nmodel, _, images = {opened}{tokenizer}'


def table(found: Options, text_start: str) -> Table:
    """Their names, and where ours are."""
    image, text = found.part("image"), found.part("text")
    own = patches(
        "visual.conv1",
        "visual.positional_embedding",
        "visual.class_embedding",
        size=image["patch_size"],
        channels=image["channels"],
        bias=False,
    )
    if image["pre_norm"]:
        own |= norm("visual.ln_pre", "pre_norm")
    own |= _encoder("visual.", "visual.ln_post", image)
    whole = under("model/image", own) | same("visual.proj", "model/image_projection/kernel")
    own = (
        same(f"{text_start}token_embedding.weight", "embedding")
        | same(f"{text_start}positional_embedding", "position_embedding")
        | _encoder(text_start, f"{text_start}ln_final", text)
    )
    whole |= under("model/text", own)
    if found.keys["text_projection"] == "affine":
        whole |= linear(f"{text_start}text_projection", "model/text_projection")
    else:
        whole |= same(f"{text_start}text_projection", "model/text_projection/kernel")
    name = found.objective("contrastive")
    if name is None:
        raise BadInput("open_clip: needs an objective 'contrastive', for its scale")
    whole["logit_scale"] = [Target(f"objectives/{name}/log_scale", lead=0)]
    if found.objectives[name]["kind"] == "sigmoid":
        whole["logit_bias"] = [Target(f"objectives/{name}/bias")]
    return whole


def _encoder(start: str, final_norm: str, keys: Mapping) -> Table:
    stacked = f"{start}transformer.resblocks"
    found = blocks(stacked, "encoder/blocks", keys["depth"], _BLOCK)
    # The fused matrix is `in_proj_weight`, without a point.
    found = {name.replace("in_proj_.", "in_proj_"): targets for name, targets in found.items()}
    for layer in range(keys["depth"]) if keys["layer_scale"] is not None else ():
        for theirs, ours in (("ls_1", "attention_branch"), ("ls_2", "mlp_branch")):
            target = Target(f"encoder/blocks/{ours}/scale", FLAT, layer)
            found[f"{stacked}.{layer}.{theirs}.gamma"] = [target]
    return found | norm(final_norm, "encoder/final_norm")


def _read_config(cfg: Mapping, has_bias: bool) -> Spec:
    vision, text = _VISION | cfg["vision_cfg"], _TEXT | cfg["text_cfg"]
    only(vision, "open_clip's vision_cfg", **_PLAIN_VISION)
    only(text, "open_clip's text_cfg", **_PLAIN_TEXT)
    quick = cfg.get("quick_gelu", False)
    width = integer(vision, "width")
    image = dict(
        name="vit",
        image_size=_side(vision["image_size"]),
        patch_size=integer(vision, "patch_size"),
        pool="cls",
        pre_norm=not vision["no_ln_pre"],
        stem=dict(name="linear", bias=False),
        num_heads=width // integer(vision, "head_width"),
        **_stack(vision, quick),
    )
    end, pool = text["eos_id"], text["pool_type"]
    if pool not in ("argmax", "eos", "last"):
        raise BadInput(f"pool_type={pool!r} of a text has no counterpart here")
    if pool == "argmax":
        end = text["vocab_size"] - 1
    causal = not text["no_causal_mask"]
    if not causal and pool != "last":
        raise BadInput(f"no_causal_mask=True with pool_type={pool!r} has no counterpart here")
    words = dict(
        name="transformer",
        vocab_size=integer(text, "vocab_size"),
        length=integer(text, "context_length"),
        causal=causal,
        pool="last",
        padding="read" if pool == "last" else "masked",
        num_heads=integer(text, "heads"),
        **_stack(text, quick),
    )
    model = dict(
        image=image,
        text=words,
        embed_dim=integer(cfg, "embed_dim"),
        text_projection="affine" if text["proj_bias"] else "linear",
    )
    facts = dict(pad_id=text["pad_id"], length=words["length"])
    if pool != "last":
        facts["ids_after"] = [end]
    kind = "sigmoid" if has_bias else "softmax"
    return Spec(model, dict(contrastive=dict(name="contrastive", kind=kind)), facts)


def _side(size: Any) -> Any:
    return size if isinstance(size, int) else tuple(size)


def _stack(cfg: Mapping, quick: bool) -> dict:
    activation = "quick_gelu" if quick else "gelu"
    if kwargs := cfg["act_kwargs"]:
        if quick or kwargs != {"approximate": "tanh"}:
            raise BadInput(f"act_kwargs={kwargs} has no counterpart here")
        activation = "gelu_tanh"
    width = integer(cfg, "width")
    if scale := cfg["ls_init_value"]:
        scale = float(scale)
    return dict(
        width=width,
        depth=integer({"num_hidden_layers": cfg["layers"]}, "num_hidden_layers"),
        mlp_dim=int(width * cfg["mlp_ratio"]),
        activation=activation,
        norm_epsilon=float((cfg["norm_kwargs"] or {}).get("eps", _EPSILON)),
        layer_scale=scale,
    )


def _write_config(found: Options, text: Mapping) -> dict:
    image, words = found.part("image"), found.part("text")
    quick = {image["activation"], words["activation"]} == {"quick_gelu"}
    ends = text.get("ids_after") or []
    if words["padding"] == "read" or not words["causal"]:
        pool = dict(pool_type="last")
    elif len(ends) != 1 or "marks too" in text.get("truncation", ""):
        raise BadInput(
            f"open_clip pools at the end mark of a text, and the tokenizer ends a text with {ends}"
            f" ({text.get('truncation', 'unknown truncation')}); it needs one that is always there"
        )
    elif ends[0] == words["vocab_size"] - 1:
        pool = dict(pool_type="argmax")
    else:
        pool = dict(pool_type="eos", eos_id=ends[0])
    height, width = image["image_size"]
    vision = dict(
        image_size=height if height == width else [height, width],
        patch_size=image["patch_size"],
        head_width=image["width"] // image["num_heads"],
        no_ln_pre=not image["pre_norm"],
        **_their_stack(image),
    )
    their_text = dict(
        context_length=words["length"],
        vocab_size=words["vocab_size"],
        heads=words["num_heads"],
        no_causal_mask=not words["causal"],
        proj_bias=found.keys["text_projection"] == "affine",
        pad_id=text.get("pad_id") or 0,
        **pool,
        **_their_stack(words),
    )
    cfg = dict(embed_dim=found.keys["embed_dim"], quick_gelu=quick)
    if found.objective("contrastive", kind="sigmoid") is not None:
        cfg["init_logit_bias"] = -10.0
    return cfg | dict(vision_cfg=vision, text_cfg=their_text)


def _their_stack(keys: Mapping) -> dict:
    tanh = {"approximate": "tanh"} if keys["activation"] == "gelu_tanh" else None
    return dict(
        width=keys["width"],
        layers=max(keys["depth"], 1),  # it has no tower of 0: who compares says so
        mlp_ratio=keys["mlp_dim"] / keys["width"],
        ls_init_value=keys["layer_scale"],
        act_kwargs=tanh,
        norm_kwargs={"eps": keys["norm_epsilon"]},
    )


def _read_image(cfg: Mapping | None, image_size: Any) -> dict | None:
    """preprocess_cfg in the fields of a manifest."""
    if not cfg:
        return None
    size = cfg.get("size", image_size)
    size = [size, size] if isinstance(size, int) else list(size)
    mode, method = cfg.get("resize_mode", "shortest"), cfg.get("interpolation", "bicubic")
    if mode not in _RESIZE or method not in ("bilinear", "bicubic"):
        raise BadInput(f"preprocess_cfg: resize_mode={mode!r}, interpolation={method!r}: unknown")
    resize = dict(mode=mode, size=size[0] if mode == "shortest" else size, method=method)
    crop = size if mode == "shortest" else None
    own = dict(size=size, resize=resize | dict(antialias=True), crop=crop)
    return own | dict(mean=list(cfg["mean"]), std=list(cfg["std"]))


def _write_image(image: Mapping) -> dict:
    resize, crop = image.get("resize"), image.get("crop")
    what = f"resize={resize}, crop={crop}, pad={image.get('pad')}, also={image.get('also')}"
    mode = (resize or {}).get("mode")
    squash = mode == "squash" and not crop
    shortest = mode == "shortest" and crop and crop == [resize["size"]] * 2
    if not (squash or shortest) or image.get("pad") or image.get("also"):
        raise BadInput(f"--format=open_clip: its transforms do not do {what}")
    if not resize.get("antialias", True):
        raise BadInput("--format=open_clip: its transforms resize with antialiasing only")
    return dict(
        size=image["size"], mode="RGB", mean=list(image["mean"]), std=list(image["std"]),
        interpolation=resize["method"], resize_mode=mode,
    )  # fmt: skip
