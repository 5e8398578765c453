"""Dual encoders that no class of transformers expresses: a model that brings its own code.

config.json, weights, and two files of torch that we wrote (`remote/`), which `AutoModel.
from_pretrained(folder, trust_remote_code=True)` runs. We read the weights back without them.
"""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

from mm.config import BadInput
from mm.interop.hf.family import Spec, need, pad_id
from mm.interop.options import Options
from mm.interop.tables import FLAT, MATRIX, MATRIX_OUT, SAME, Table, Target

NAME, MODEL_TYPE = "DualEncoderModel", "mm_dual_encoder"
_REMOTE = Path(__file__).parent / "remote"
_CODE = ("configuration_dual_encoder.py", "modeling_dual_encoder.py")
CLAMP = {"softmax": 100.0, "sigmoid": math.inf}  # the objective's defaults
# What changes an option from the value here has no code there.
_WITHOUT = {
    "image": dict(frames=None, tubelet_size=1, window=None, mask_token=False),
    "text": dict(mask_token=False),
}


def write_config(options: Options, model: Mapping, text: Mapping) -> dict:
    """config.json. Raises BadInput for options that the torch code does not have."""
    need(options, NAME, "image", "text")
    wrong = [
        f"{part}.{key}={options.part(part)[key]!r}"
        for part, keys in _WITHOUT.items()
        for key, value in keys.items()
        if options.part(part)[key] != value
    ]
    image = options.part("image")
    if image["position"] == "rotary":
        wrong.append("image.position='rotary'")
    if image["position"] == "learned" and image["position_size"] != image["image_size"]:
        wrong.append(f"image.position_size={image['position_size']!r}")
    known = ("image", "text", "embed_dim", "image_projection", "text_projection")
    wrong += [
        f"{key}={value!r}"
        for key, value in options.keys.items()
        if key.split(".")[0] not in known and value is not None
    ]
    if options.keys["embed_dim"] is None:
        wrong.append("embed_dim=None")
    if wrong:
        raise BadInput(f"{NAME} has no counterpart of config.model.{', '.join(wrong)}")
    stem = {"name": "linear"} | dict(model["image"].get("stem") or {})
    stem |= {k.removeprefix("stem."): v for k, v in image.items() if k.startswith("stem.")}
    image = {k: v for k, v in image.items() if not k.startswith(("stem", "position_size"))}
    image["stem"] = stem
    return dict(
        auto_map={
            "AutoConfig": "configuration_dual_encoder.DualEncoderConfig",
            "AutoModel": "modeling_dual_encoder.DualEncoderModel",
        },
        image=image,
        text=options.part("text"),
        embed_dim=options.keys["embed_dim"],
        image_projection=options.keys["image_projection"],
        text_projection=options.keys["text_projection"],
        logits=_logits(options),
        pad_token_id=pad_id(text),
    )


def _logits(options: Options) -> dict | None:
    name = options.objective("contrastive")
    if name is None:
        return None
    kind = options.objectives[name]["kind"]
    most = options.settings[f"{name}.max_scale"]
    most = CLAMP[kind] if most is None else most
    return dict(objective=name, kind=kind, max_scale=None if math.isinf(most) else most)


def read_spec(config: Mapping) -> Spec:
    """What `write_config` wrote."""
    model = {
        key: config[key]
        for key in ("image", "text", "embed_dim", "image_projection", "text_projection")
    }
    model = model | {"image": {"name": "vit"} | model["image"]}
    model |= {"text": {"name": "transformer"} | model["text"]}
    objectives = {}
    if logits := config["logits"]:
        spec = dict(name="contrastive", kind=logits["kind"], max_scale=logits["max_scale"])
        objectives[logits["objective"]] = spec
    facts = dict(pad_id=config.get("pad_token_id"), length=config["text"]["length"])
    return Spec(model, objectives, facts)


def table(options: Options) -> Table:
    """Their names are our paths with points, one block after the other."""
    found: Table = {}
    name = options.objective("contrastive")
    for path, shape in options.shapes.items():
        if path.startswith("model/"):
            own = path.removeprefix("model/")
        elif name and path in (f"objectives/{name}/log_scale", f"objectives/{name}/bias"):
            own = "logit_scale" if path.endswith("log_scale") else "logit_bias"
        else:
            continue
        if "/blocks/" not in own:
            found |= _weight(own, path, shape, None)
            continue
        start, rest = own.split("/blocks/")
        for layer in range(shape[0]):
            found |= _weight(f"{start}/blocks/{layer}/{rest}", path, shape[1:], layer)
    return found


def _weight(own: str, path: str, shape: tuple[int, ...], layer: int | None) -> Table:
    *parents, last = own.split("/")
    transform = SAME
    if last == "kernel":
        last = "weight"
        # Of [heads, kv, out] and [tokens, width, out] the first two are inputs.
        two_inputs = parents[-1] == "out" or parents[-2:] == ["flatten_pool", "hidden"]
        transform = MATRIX_OUT if two_inputs else MATRIX
    elif last == "bias":
        transform = FLAT if len(shape) > 1 else SAME
    elif last == "scale" and not parents[-1].endswith("_branch"):
        last = "weight"
    return {".".join([*parents, last]): [Target(path, transform, layer)]}


def copy_code(folder: Path) -> None:
    """The two files of torch."""
    for name in _CODE:
        shutil.copyfile(_REMOTE / name, folder / name)
