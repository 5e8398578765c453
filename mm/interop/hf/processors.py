"""What stands beside the weights: how pictures and texts become numbers, both ways.

transformers reads preprocessor_config.json and tokenizer_config.json; ours is the ops' text and the
facts of `Bundle.manifest`. What theirs cannot say is returned as notes, never left unsaid.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data import tokenizers
from data.tokenizers.huggingface import with_settings
from mm.config import BadInput
from mm.interop import weight_files
from mm.interop.bundle import Bundle
from mm.interop.hf.family import Spec

_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers
_IMAGE_PROCESSORS = {
    "clip": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
    "vit": "ViTImageProcessor",
    "vit_mae": "ViTImageProcessor",
    "blip": "BlipImageProcessor",
}
_PROCESSORS = {"clip": "CLIPProcessor", "blip": "BlipProcessor"}


def read_tokenizer(path: str, text: Mapping) -> str | None:
    """The tokenizer.json of a folder, or its sentencepiece model; None without one.

    With the id of padding that the config says, where the file itself has none.
    """
    folder = Path(path)
    if (folder / "tokenizer.json").is_file():
        spec = weight_files.read_json(folder / "tokenizer.json")
    elif (folder / "spiece.model").is_file():
        spec = json.loads(tokenizers.of_sentencepiece((folder / "spiece.model").read_bytes()))
    else:
        return None
    found, length = json.dumps(spec), max(3, text.get("length", 64))
    if (folder / "tokenizer.json").is_file():  # to the byte, so that its hash is that of the file
        found = (folder / "tokenizer.json").read_text()
    pad = _pad_id(folder, spec, text)
    if pad is not None:
        with contextlib.suppress(BadInput):  # it has no padding of its own
            pad = None if tokenizers.Tokenizer(found, length).pad_id == pad else pad
    if pad is not None:
        found = json.dumps(spec | {"settings": spec.get("settings", {}) | {"pad_id": pad}})
    try:
        tokenizers.Tokenizer(found, length)
    except BadInput as error:
        raise BadInput(f"{path}: the tokenizer {error}") from error
    return found


def _pad_id(folder: Path, spec: Mapping, text: Mapping) -> int | None:
    if spec.get("padding"):
        return None
    added = {token["content"]: token["id"] for token in spec.get("added_tokens", [])}
    known = spec.get("model", {}).get("vocab", {})
    config = folder / "tokenizer_config.json"
    token = weight_files.read_json(config).get("pad_token") if config.is_file() else None
    token = token.get("content") if isinstance(token, dict) else token
    if token in added:
        return added[token]
    if isinstance(known, dict) and token in known:
        return known[token]
    return text.get("pad_id")


def read_facts(path: str, spec: Spec, tokenizer: str | None) -> dict[str, Any]:
    """The keys "text", "image" and "preprocess" of a manifest, as far as files tell."""
    facts: dict[str, Any] = {}
    ops = []
    image = read_image(path)
    if image:
        facts["image"] = image
        ops += image_ops(image)
    if spec.text:
        facts["text"] = dict(spec.text)
    if tokenizer is not None and "length" in spec.text:
        length = spec.text["length"]
        facts["text"] = tokenizers.Tokenizer(tokenizer, length).manifest()
        ops += ['caption("caption")', f'tokenize("tokenizer.json", {length})']
    if ops:
        facts["preprocess"] = "|".join(ops)
    return facts


def read_image(path: str) -> dict | None:
    """What preprocessor_config.json says, in the fields of a manifest; None without a file."""
    file = Path(path) / "preprocessor_config.json"
    if not file.is_file():
        return None
    config = weight_files.read_json(file)
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
        _write_json(folder / "preprocessor_config.json", config)
        notes["image_processor"] = config["image_processor_type"]
        notes["image"] = (
            "pictures are expected in RGB: ours are turned as EXIF says, and on white where they "
            "are transparent, before they come here"
        )
    elif has_image:
        notes["image"] = "no image processor: how pictures were read is not known"
    if bundle.model.get("text") and bundle.tokenizer_json:
        processor = _PROCESSORS.get(model_type) if has_image and image else None
        notes["text"] = write_tokenizer(folder, bundle, processor)
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
            size = dict(zip(("height", "width"), _pair(size), strict=True))
        config |= dict(size=size, resample=_RESAMPLE[resize["method"]])
    config |= dict(do_resize=bool(resize), do_center_crop=bool(crop))
    if crop:
        config["crop_size"] = dict(zip(("height", "width"), _pair(crop), strict=True))
    return config | dict(
        do_rescale=True, rescale_factor=1 / 255, do_normalize=True,
        image_mean=list(image["mean"]), image_std=list(image["std"]),
    )  # fmt: skip


def _pair(size: Any) -> list[int]:
    return [size, size] if isinstance(size, int) else list(size)


def write_tokenizer(folder: Path, bundle: Bundle, processor: str | None) -> list[str]:
    """tokenizer.json and tokenizer_config.json, which a fast tokenizer reads; returns notes.

    Our settings become parts of the file. Raises BadInput for a sentencepiece model, which none is.
    """
    spec = json.loads(bundle.tokenizer_json)
    length = (bundle.manifest.get("text") or {}).get("length") or bundle.model["text"]["length"]
    facts = tokenizers.Tokenizer(bundle.tokenizer_json, length).manifest()
    settings = tokenizers.Settings(**spec.pop("settings", {}))
    if "sentencepiece" in spec:
        raise BadInput(
            "--format=hf: the tokenizer is a sentencepiece model, of which transformers' fast "
            "tokenizers read no file; train a tokenizer.json (`python -m data.tokenizers.train`)"
        )
    notes = []
    if settings.clean == "clip":
        notes.append("texts are expected as open_clip cleans them: ftfy and HTML's entities")
    spec = with_settings(spec, settings)
    pieces = _pieces(spec)
    before, after, pad = facts["ids_before"], facts["ids_after"], facts["pad_id"]
    for number in {*before, *after, pad}:  # marks that are no special tokens yet become such
        _special(spec, number, pieces[number])
    spec["post_processor"] = _template(before, after, pieces)
    spec["truncation"] = spec["padding"] = None
    roles = {"pad_token": pieces[pad]}
    if after:
        roles["eos_token"] = pieces[after[-1]]
    if before:
        roles["bos_token"] = pieces[before[0]]
    if unknown := spec["model"].get("unk_token"):
        roles["unk_token"] = unknown
    if "marks too" in facts["truncation"]:
        notes.append("of a text that is too long ours cut the end mark off, too; here it stays")
    _write_json(folder / "tokenizer.json", spec)
    config = dict(
        tokenizer_class="PreTrainedTokenizerFast", model_max_length=length, padding_side="right",
        truncation_side="right", clean_up_tokenization_spaces=False, split_special_tokens=True,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    config |= roles | (dict(processor_class=processor) if processor else {})
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", roles)
    notes.append(f'call it with padding="max_length", truncation=True (max_length={length})')
    return notes


def _pieces(spec: Mapping) -> dict[int, str]:
    """Token by id."""
    vocabulary = spec["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram's
        found = {number: piece for number, (piece, _) in enumerate(vocabulary)}
    else:
        found = {number: piece for piece, number in vocabulary.items()}
    return found | {token["id"]: token["content"] for token in spec.get("added_tokens", [])}


def _special(spec: dict, number: int, piece: str) -> None:
    for token in spec.setdefault("added_tokens", []):
        if token["id"] == number:
            token["special"] = True
            return
    spec["added_tokens"].append(
        dict(
            id=number,
            content=piece,
            single_word=False,
            lstrip=False,
            rstrip=False,
            normalized=False,
            special=True,
        )  # fmt: skip
    )


def _template(before: list[int], after: list[int], pieces: Mapping[int, str]) -> dict | None:
    """A post-processor that puts the marks around a text."""
    if not before and not after:
        return None

    def mark(number: int) -> dict:
        return {"SpecialToken": {"id": pieces[number], "type_id": 0}}

    text = {"Sequence": {"id": "A", "type_id": 0}}
    single = [*map(mark, before), text, *map(mark, after)]
    second = [{"Sequence": {"id": "B", "type_id": 1}}, *map(mark, after)]
    names = {
        pieces[n]: {"id": pieces[n], "ids": [n], "tokens": [pieces[n]]} for n in (*before, *after)
    }
    return {
        "type": "TemplateProcessing", "single": single, "pair": [*single, *second],
        "special_tokens": names,
    }  # fmt: skip


def _write_json(path: Path, value: Mapping) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
