"""What stands beside the weights: how pictures and texts become numbers, both ways.

transformers reads preprocessor_config.json and tokenizer_config.json; ours is the ops' text and the
facts of `Bundle.manifest`. What theirs cannot say is returned as notes, never left unsaid.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data import tokenizers
from mm.config import BadInput
from mm.interop import facts
from mm.interop.bundle import Bundle
from mm.interop.hf import tokenizer_files
from mm.interop.hf.family import Spec
from mm.interop.json_files import read_json
from mm.runtime.workdir import write_json

_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers
_IMAGE_PROCESSORS = {
    "clip": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
    "vit": "ViTImageProcessor",
    "vit_mae": "ViTImageProcessor",
    "blip": "BlipImageProcessor",
}
_PROCESSORS = {"clip": "CLIPProcessor", "blip": "BlipProcessor"}


def read_facts(
    path: str, spec: Spec, tokenizer: str | None, image: dict | None = None
) -> dict[str, Any]:
    """The keys "text", "image" and "preprocess" of a manifest, as far as files tell.

    image: its facts, where another file has them.
    """
    found: dict[str, Any] = {}
    ops = []
    image = image or read_image(path)
    if image:
        found["image"] = image
        ops += image_ops(image)
    if spec.text:
        found["text"] = dict(spec.text)
    if tokenizer is not None and "length" in spec.text:
        length = spec.text["length"]
        found["text"] = tokenizers.Tokenizer(tokenizer, length).manifest()
        ops += ['caption("caption")', f'tokenize("tokenizer.json", {length})']
    if ops:
        found["preprocess"] = "|".join(ops)
    return found


def read_image(path: str) -> dict | None:
    """What preprocessor_config.json says, in the fields of a manifest; None without a file.

    Where transformers 5 saved a processor, processor_config.json has it as "image_processor".
    """
    file = Path(path) / "preprocessor_config.json"
    if file.is_file():
        config = read_json(file)
    else:
        file = file.with_name("processor_config.json")
        config = read_json(file).get("image_processor") if file.is_file() else None
        if config is None:
            return None
    methods = {number: name for name, number in _RESAMPLE.items()}
    resize = crop = None
    size = config.get("size")
    if config.get("do_resize", True) and size:
        size = {"shortest_edge": size} if isinstance(size, int) else size
        method = methods.get(config.get("resample", 2))
        if method is None:
            raise BadInput(
                f"{file}: resample={config['resample']} has no counterpart here; expected 2 or 3"
            )
        if "shortest_edge" in size:
            resize = dict(mode="shortest", size=size["shortest_edge"])
        else:
            resize = dict(mode="squash", size=[size["height"], size["width"]])
        resize |= dict(method=method, antialias=True)
    if config.get("do_center_crop") and (crop := config.get("crop_size")):
        crop = [crop, crop] if isinstance(crop, int) else [crop["height"], crop["width"]]
    mean, std = config.get("image_mean"), config.get("image_std")
    if not config.get("do_normalize", True):
        mean, std = [0.0] * 3, [1.0] * 3
    final = crop or (resize and resize["mode"] == "squash" and resize["size"]) or None
    return dict(size=final, resize=resize, crop=crop, mean=mean, std=std)


def image_ops(image: Mapping) -> list[str]:
    """The ops of a manifest's image facts."""
    ops = ["decode"]
    if resize := image["resize"]:
        size = resize["size"] if resize["mode"] == "shortest" else tuple(resize["size"])
        ops.append(f'resize({size}, mode="{resize["mode"]}", method="{resize["method"]}")')
    if image["crop"]:
        ops.append(f"center_crop({tuple(image['crop'])})")
    if image["mean"] is not None:
        ops.append(f"normalize({tuple(image['mean'])}, {tuple(image['std'])})")
    return ops


def write(folder: Path, bundle: Bundle, model_type: str) -> dict[str, Any]:
    """Writes the processors of what the manifest tells; returns notes on what they cannot say."""
    notes: dict[str, Any] = {}
    image, has_image = bundle.manifest.get("image"), bool(bundle.model.get("image"))
    if has_image and image:
        config = image_config(image, _IMAGE_PROCESSORS.get(model_type, "ViTImageProcessor"))
        if bundle.tokenizer_json and model_type in _PROCESSORS:
            config["processor_class"] = _PROCESSORS[model_type]
        write_json(folder / "preprocessor_config.json", config)
        notes["image_processor"] = config["image_processor_type"]
        notes["image"] = (
            "pictures are expected in RGB: ours are turned as EXIF says, and on white where they "
            "are transparent, before they come here"
        )
    elif has_image:
        notes["image"] = "no image processor: how pictures were read is not known"
    if bundle.model.get("text") and bundle.tokenizer_json:
        processor = _PROCESSORS.get(model_type) if has_image and image else None
        notes["text"] = tokenizer_files.write_tokenizer(folder, bundle, processor)
        notes["tokenizer"] = "PreTrainedTokenizerFast"
    elif bundle.model.get("text"):
        notes["text"] = ["no tokenizer: which one the ids belong to is not known"]
    return notes


def image_config(image: Mapping, kind: str) -> dict:
    """preprocessor_config.json. Raises BadInput for a resize that theirs does not do."""
    resize, crop = image.get("resize"), image.get("crop")
    for key in ("pad", "also"):
        if image.get(key):
            raise BadInput(
                f"--format=hf: image processors of transformers have no {key}={image[key]}; "
                "evaluate without it, or give other ops with --preprocess"
            )
    config: dict[str, Any] = dict(image_processor_type=kind, do_convert_rgb=True)
    if resize:
        if resize["mode"] not in ("squash", "shortest") or not resize.get("antialias", True):
            raise BadInput(
                f"--format=hf: image processors of transformers have no resize(mode="
                f"{resize['mode']!r}, antialias={resize.get('antialias')}); evaluate with squash "
                "or shortest, and antialiased"
            )
        size = resize["size"]
        if resize["mode"] == "shortest":
            size = dict(shortest_edge=size)
        else:
            size = dict(zip(("height", "width"), facts.pair(size), strict=True))
        config |= dict(size=size, resample=_RESAMPLE[resize["method"]])
    config |= dict(do_resize=bool(resize), do_center_crop=bool(crop))
    if crop:
        config["crop_size"] = dict(zip(("height", "width"), facts.pair(crop), strict=True))
    return config | dict(
        do_rescale=True, rescale_factor=1 / 255, do_normalize=True,
        image_mean=list(image["mean"]), image_std=list(image["std"]),
    )  # fmt: skip
