"""Checkpoints of big_vision, .npz, both ways: SigLIP's two towers, and a ViT alone.

Names and shapes are those of `models/vit.py` and `models/proj/image_text` there; the file has no
config, so all options are told from its shapes. What shapes do not tell is as their code has it:
gelu by tanh, layer norms with 1e-6, texts pooled at the last place with their padding.
"""

import math
import os
import re
from collections.abc import Mapping

import numpy as np

from data import files
from mm import registry
from mm.config import BadInput
from mm.interop import npz, options
from mm.interop.arrays import read_npz, write_npz
from mm.interop.bundle import Bundle
from mm.interop.json_files import read_text
from mm.interop.options import Options
from mm.interop.tables import (
    SAME,
    Table,
    Target,
    Transform,
    first,
    join,
    paths,
    rest,
    their_shapes,
    to_ours,
    to_theirs,
    under,
    without,
)

FILE = "model.npz"
_PARAMS = "params/"  # of a whole checkpoint; beside them is the optimizer's state
_STACK = dict(activation="gelu_tanh", norm_epsilon=1e-6)
_ATTENTION, _MLP = "MultiHeadDotProductAttention_0", "MlpBlock_0"
# Our parts of the head of attention and of a block, and theirs.
_HEAD = {
    "norm": "LayerNorm_0",
    "mlp/up": f"{_MLP}/Dense_0",
    "mlp/down": f"{_MLP}/Dense_1",
} | {f"attention/{part}": f"{_ATTENTION}/{part}" for part in ("query", "key", "value", "out")}
_NORMS = {"attention_branch/norm": "LayerNorm_0", "mlp_branch/norm": "LayerNorm_1"}
_BLOCK = _NORMS | {part: name for part, name in _HEAD.items() if part != "norm"}
# Names of before 2022, as their loader reads them.
_OLD = (
    (r"MultiHeadDotProductAttention_1/", f"{_ATTENTION}/"),
    (r"LayerNorm_2/", "LayerNorm_1/"),
    (r"MlpBlock_3/", f"{_MLP}/"),
    (r"Transformer/posembed_input/pos_embedding$", "pos_embedding"),
    (r"Transformer/pos_embedding$", "pos_embedding"),
)
_ONE = Transform(lambda x: x, lambda x: x.reshape(1))

Shapes = Mapping[str, tuple[int, ...]]


@registry.register("import_format", "big_vision")
def read(path: str) -> Bundle:
    """The model in an .npz, or in `model.npz` of a folder.

    With the tokenizer.json beside it. What ours has not (a classifier, pre_logits) is listed in
    manifest["unused"], what the file lacks in manifest["missing"]. Raises BadInput for a file that
    is damaged, or is no such model.
    """
    path = path if path.endswith(".npz") else files.join(path, FILE)
    weights = _named(read_npz(path, under=_PARAMS))
    shapes = {name: x.shape for name, x in weights.items()}
    try:
        model, objectives = infer(shapes)
    except (KeyError, IndexError, ValueError) as error:
        raise BadInput(f"{path}: is no model of big_vision that we know ({error})") from error
    found = options.find(model, objectives)
    names = table(found, _scanned(shapes), positions=_positions(shapes))
    expected = their_shapes({name: found.shapes[name] for name in paths(names)}, names)
    missing = [name for name in expected if name not in weights]
    for name, shape in expected.items():
        if shapes.get(name, shape) != shape:
            raise BadInput(f"{path}: {name} is {shapes[name]}, expected {shape}")
    unused = sorted(weights.keys() - names.keys())
    manifest = {"format": "big_vision", "unused": unused, "missing": missing}
    names = without(names, missing)
    own = {name: np.asarray(weights[name], np.float32) for name in names}
    wanted = {name: found.shapes[name] for name in paths(names)}
    beside = files.join(files.parent(path), npz.TOKENIZER)  # where we wrote it
    tokenizer = read_text(beside) if files.exists(beside) else None
    return Bundle(model, to_ours(own, names, wanted), manifest, tokenizer, objectives)


@registry.register("export_format", "big_vision")
def write(bundle: Bundle, folder: str) -> str:
    """Writes model.npz, and tokenizer.json for others; returns how to read it.

    Raises BadInput that lists what has no counterpart.
    """
    found = options.find(bundle.model, bundle.objectives)
    for part, key in (("image", "patch_size"), ("text", "vocab_size")):
        if found.has(part) and key not in found.part(part):
            raise BadInput(f"--format=big_vision: needs a Transformer in config.model.{part}")
    if not found.has("image") or found.part("image")["position"] != "learned":
        raise BadInput("--format=big_vision: needs an image tower with position='learned'")
    options.refuse_others(found, options.find(_expressed(found), {}), "big_vision")
    names = table(found, scanned=False)
    used = paths(names)
    if missing := sorted(used - bundle.params.keys()):
        raise BadInput(f"--format=big_vision: the model has no {missing[0]}")
    weights = to_theirs({path: bundle.params[path] for path in used}, names)
    try:
        model, objectives = infer({name: x.shape for name, x in weights.items()})
    except ValueError as error:
        raise BadInput(f"--format=big_vision: {error}") from error
    options.refuse_others(found, options.find(model, objectives), "big_vision")
    write_npz(os.path.join(folder, FILE), {f"{_PARAMS}{name}": x for name, x in weights.items()})
    npz.write_tokenizer(bundle, folder)
    kind = "proj.image_text.two_towers" if found.has("text") else "vit"
    return f'config.model_name = "{kind}"\nconfig.model_init = "{FILE}"'


def _expressed(found: Options) -> dict:
    """The config.model nearest to ours of those that big_vision has."""
    sizes = ("width", "num_heads", "mlp_dim")
    reads = {"image": ("image_size", "patch_size", "channels"), "text": ("vocab_size", "length")}
    pools = {"image": ("map", "cls", "mean"), "text": ("last", "map")}
    fixed = {"image": dict(name="vit"), "text": dict(name="transformer", padding="read")}
    model = {}
    for part in filter(found.has, ("image", "text")):
        own = found.part(part)
        pool = own["pool"] if own["pool"] in pools[part] else pools[part][0]
        model[part] = {key: own[key] for key in (*reads[part], *sizes)} | fixed[part] | _STACK
        model[part] |= dict(pool=pool, depth=max(own["depth"], 1))
    model["image"]["image_size"] = max(model["image"]["image_size"])  # its pictures are square
    together = ("embed_dim", "image_projection", "text_projection")
    return model | {key: found.keys[key] for key in together if key in found.keys}


def infer(shapes: Shapes) -> tuple[dict, dict]:
    """config.model and config.objectives from their shapes. Raises KeyError and such."""
    if "txt/Embed_0/embedding" not in shapes:
        return dict(image=_image(shapes, "")), {}
    image, text = _image(shapes, "img/"), _text(shapes, "txt/")
    kinds = {}
    for part, name in (("image", "img"), ("text", "txt")):
        bias = f"{name}/head/bias" in shapes
        kinds[part] = "affine" if bias else "linear" if f"{name}/head/kernel" in shapes else "none"
    heads = [shapes[f"{x}/head/kernel"] for x in ("img", "txt") if f"{x}/head/kernel" in shapes]
    model = dict(image=image, text=text, embed_dim=heads[0][1] if heads else image["width"])
    model |= {f"{part}_projection": kind for part, kind in kinds.items()}
    kind = "sigmoid" if "b" in shapes else "softmax"
    return model, dict(contrastive=dict(name="contrastive", kind=kind))


_OURS = {"img": "image", "txt": "text"}


def _image(shapes: Shapes, start: str) -> dict:
    size, _, channels, _ = shapes[f"{start}embedding/kernel"]
    count = shapes[f"{start}pos_embedding"][1]
    if f"{start}cls" in shapes and math.isqrt(count) ** 2 == count - 1:
        count -= 1  # of the class token, too
    side = math.isqrt(count)
    if side**2 != count:
        raise ValueError(f"{count} positions are of no square")
    head, cls = f"{start}MAPHead_0/probe" in shapes, f"{start}cls" in shapes
    pool = "map" if head else "cls" if cls else "mean"
    what = dict(name="vit", image_size=side * size, patch_size=size, channels=channels, pool=pool)
    return what | _stack(shapes, f"{start}Transformer/")


def _text(shapes: Shapes, start: str) -> dict:
    words, length = shapes[f"{start}Embed_0/embedding"][0], shapes[f"{start}pos_embedding"][1]
    pool = "map" if f"{start}MAPHead_0/probe" in shapes else "last"
    what = dict(name="transformer", vocab_size=words, length=length, pool=pool, padding="read")
    return what | _stack(shapes, f"{start}Encoder_0/")


def _stack(shapes: Shapes, start: str) -> dict:
    numbers = [re.fullmatch(rf"{start}encoderblock_(\d+)/LayerNorm_0/scale", x) for x in shapes]
    scanned = f"{start}encoderblock/LayerNorm_0/scale" in shapes
    block = "encoderblock/" if scanned else "encoderblock_0/"
    query = shapes[f"{start}{block}{_ATTENTION}/query/kernel"][-3:]
    hidden = shapes[f"{start}{block}{_MLP}/Dense_0/kernel"][-1]
    stacked = shapes.get(f"{start}encoderblock/LayerNorm_0/scale", (sum(map(bool, numbers)),))
    sizes = dict(width=query[0], depth=stacked[0], num_heads=query[1], mlp_dim=hidden)
    return sizes | _STACK


def _scanned(shapes: Shapes) -> bool:
    return any("/encoderblock/" in name for name in shapes)


def _positions(shapes: Shapes) -> int | None:
    """How many positions the file has for its pictures."""
    name = "img/pos_embedding" if "img/pos_embedding" in shapes else "pos_embedding"
    return shapes[name][1]


def _named(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By their current names."""
    named = {}
    for name, x in weights.items():
        name = name.removeprefix(_PARAMS)
        for old, new in _OLD:
            name = re.sub(old, new, name)
        named[name] = x
    return named


def table(found: Options, scanned: bool, positions: int | None = None) -> Table:
    """Their names, and where ours are; without a text those of a ViT alone."""
    image = found.part("image")
    alone = not found.has("text")
    start = "" if alone else "img/"
    size, channels = image["patch_size"], image["channels"]
    patches = Transform(lambda x: x, lambda x: x.reshape(size, size, channels, x.shape[-1]))
    own: Table = {
        f"{start}embedding/kernel": [Target("stem/embedding/kernel", patches)],
        f"{start}embedding/bias": [Target("stem/embedding/bias")],
        f"{start}pos_embedding": [Target("position_embedding", lead=1)],
    }
    if image["pool"] == "cls":
        own[f"{start}cls"] = [Target("cls", lead=1)]
        if positions == 1 + math.prod(side // size for side in image["image_size"]):
            own[f"{start}pos_embedding"] = [
                Target("cls", lead=1, rows=first, added=True),
                Target("position_embedding", lead=1, rows=rest),
            ]
    own |= _encoder(f"{start}Transformer/", image["depth"], scanned)
    if image["pool"] == "map":
        own |= _map_head(start)
    whole = under("model/image", own)
    if alone:
        return whole
    text = found.part("text")
    own = {
        "txt/Embed_0/embedding": [Target("embedding")],
        "txt/pos_embedding": [Target("position_embedding", lead=1)],
    } | _encoder("txt/Encoder_0/", text["depth"], scanned)
    if text["pool"] == "map":
        own |= _map_head("txt/")
    whole |= under("model/text", own)
    for theirs, part in _OURS.items():
        kind = found.keys[f"{part}_projection"]
        for leaf in ("kernel", "bias")[: {"none": 0, "linear": 1, "affine": 2}[kind]]:
            whole[f"{theirs}/head/{leaf}"] = [Target(f"model/{part}_projection/{leaf}")]
    name = found.objective("contrastive")
    if name is None:
        raise BadInput("big_vision: needs an objective 'contrastive', for t and b")
    whole["t"] = [Target(f"objectives/{name}/log_scale", _ONE)]
    if found.objectives[name]["kind"] == "sigmoid":
        whole["b"] = [Target(f"objectives/{name}/bias", _ONE)]
    return whole


def _encoder(start: str, depth: int, scanned: bool) -> Table:
    tables = [_layers(start, "encoder", {"final_norm": "encoder_norm"}, None)]
    for layer in [None] if scanned else range(depth):
        block = "encoderblock" if scanned else f"encoderblock_{layer}"
        tables.append(_layers(f"{start}{block}/", "encoder/blocks", _BLOCK, layer))
    return join(*tables)


def _map_head(start: str) -> Table:
    head = f"{start}MAPHead_0/"
    return {f"{head}probe": [Target("attention_pool/probe", lead=1)]} | _layers(
        head, "attention_pool", _HEAD, None
    )


def _layers(start: str, ours: str, parts: Mapping[str, str], layer: int | None) -> Table:
    return {
        f"{start}{theirs}/{leaf}": [Target(f"{ours}/{part}/{leaf}", SAME, layer)]
        for part, theirs in parts.items()
        for leaf in (("scale" if part.endswith("norm") else "kernel"), "bias")
    }
