"""Models of Hugging Face transformers, both ways: config.json, model.safetensors, processors.

Only data is read: no code of a folder runs, and pickles are refused.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mm import registry
from mm.config import BadInput, listed
from mm.interop import options, weight_files
from mm.interop.bundle import Bundle
from mm.interop.hf import dual_encoder, processors, tokenizer_files
from mm.interop.hf.bert import BERT
from mm.interop.hf.blip import BLIP
from mm.interop.hf.clip import CLIP, SIGLIP
from mm.interop.hf.family import Family, Spec
from mm.interop.hf.vit import FIXED_TOLERANCE, MAE, VIT
from mm.interop.json_files import read_json
from mm.interop.options import Options
from mm.interop.tables import Table, paths, their_shapes, to_ours, to_theirs, without
from mm.runtime.workdir import write_json

FAMILIES = (CLIP, SIGLIP, VIT, MAE, BERT, BLIP)
# Its config is written and read by functions of its own.
DUAL_ENCODER = Family(dual_encoder.NAME, dual_encoder.MODEL_TYPE, dual_encoder.table)
# Of older files: constants, and the other name of a table that is shared.
_COPIES = ("position_ids", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias")


@registry.register("import_format", "hf")
def read(path: str) -> Bundle:
    """The model of a folder with config.json and model.safetensors, or parts with an index.

    Half-precision weights become float32. What the class has and we have not (the classifier of a
    ViT) is listed in manifest["unused"], what the file lacks in manifest["missing"]. Raises
    BadInput for a class, an option or a file that cannot be read.
    """
    config = read_json(Path(path) / "config.json")
    if config.get("model_type") == dual_encoder.MODEL_TYPE:
        return _read_dual_encoder(path, config)
    family = _family(config, path)
    entries = _named(family, weight_files.open_safetensors(path), config)
    try:
        spec = family.read(config, frozenset(entries))
    except (KeyError, TypeError) as error:
        raise BadInput(f"{path}/config.json: lacks {error} of a {family.name}") from error
    except BadInput as error:
        raise BadInput(f"{path}/config.json: {error}") from error
    tokenizer = tokenizer_files.read_tokenizer(path, spec.text)
    spec = _with_mask(spec, tokenizer)
    found = options.find(spec.model, spec.objectives)
    table = family.table(found)
    weights, said = read_weights(entries, table, family.fixed(found), found, path)
    manifest = {"format": "hf", "class": family.name} | said
    manifest |= processors.read_facts(path, spec, tokenizer)
    return Bundle(spec.model, weights, manifest, tokenizer, spec.objectives)


def _read_dual_encoder(path: str, config: Mapping) -> Bundle:
    """What we wrote with code of its own, without that code."""
    try:
        spec = dual_encoder.read_spec(config)
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}/config.json: lacks {error} of a dual encoder") from error
    found = options.find(spec.model, spec.objectives)
    entries, table = weight_files.open_safetensors(path), dual_encoder.table(found)
    weights, said = read_weights(entries, table, {}, found, path)
    tokenizer = tokenizer_files.read_tokenizer(path, spec.text)
    manifest = {"format": "hf", "class": dual_encoder.NAME} | said
    manifest |= processors.read_facts(path, spec, tokenizer)
    return Bundle(spec.model, weights, manifest, tokenizer, spec.objectives)


def read_weights(
    entries: weight_files.Entries,
    table: Table,
    fixed: Mapping[str, np.ndarray],
    found: Options,
    where: str,
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Our parameters, and of a manifest "unused" and "missing": names that are left over or absent.

    Raises BadInput if one is of another shape, or a fixed one is not what it has to be.
    """
    used = paths(table)
    shapes = {path: shape for path, shape in found.shapes.items() if path in used}
    expected = their_shapes(shapes, table)
    missing = [name for name in expected if name not in entries]
    table = without(table, missing)
    own = weight_files.take(entries, {name: expected[name] for name in table}, where)
    there = {name: x.shape for name, x in fixed.items() if name in entries}
    for name, value in weight_files.take(entries, there, where).items():
        if np.abs(value - fixed[name]).max() > FIXED_TOLERANCE:
            raise BadInput(f"{where}: {name} has other values than our fixed ones")
    left = [name for name in entries if name not in expected and name not in fixed]
    left = [name for name in left if not name.endswith(_COPIES)]
    shapes = {path: shapes[path] for path in paths(table)}
    return to_ours(own, table, shapes), {"unused": left, "missing": missing}


@registry.register("export_format", "hf")
def write(bundle: Bundle, folder: str) -> str:
    """Writes config.json, model.safetensors, and processors where the manifest tells of them.

    As the first class of transformers that expresses the model, else as DualEncoderModel, which
    brings its own code. Raises BadInput that lists the options without a counterpart.
    """
    found = options.find(bundle.model, bundle.objectives)
    family, config = _choose(found, bundle)
    table = family.table(found)
    used = paths(table)
    params = {path: x for path, x in bundle.params.items() if path in used}
    if missing := sorted(used - params.keys()):
        raise BadInput(f"{family.name}: the model has no {listed(missing)}")
    weights = to_theirs(clamped(params, found), table) | family.fixed(found)
    name = _class_name(family, weights)
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    head = {"architectures": [name], "model_type": family.model_type, "dtype": "float32"}
    write_json(path / "config.json", head | config)
    if family.name == dual_encoder.NAME:
        dual_encoder.copy_code(path)
    weight_files.write_safetensors(weights, path / "model.safetensors")
    left = sorted(bundle.params.keys() - used)
    notes = {"class": name, "left_out": left}
    notes |= processors.write(path, bundle, family.model_type)
    write_json(path / "mm_export.json", notes)
    return _snippet(name, notes)


def _snippet(name: str, notes: Mapping) -> str:
    """How to open it, in Python."""
    remote = name == dual_encoder.NAME
    pictures, texts = notes.get("image_processor"), notes.get("tokenizer")
    classes = ["AutoModel" if remote else name]
    classes += ["AutoImageProcessor"] * bool(pictures) + ["AutoTokenizer"] * bool(texts)
    trust = ", trust_remote_code=True" if remote else ""
    lines = [f"from transformers import {', '.join(classes)}", ""]
    if remote and pictures and texts:
        lines.insert(0, "from PIL import Image")
    lines.append(f'model = {classes[0]}.from_pretrained("."{trust})')
    if pictures:
        lines.append(f'images = AutoImageProcessor.from_pretrained("."{trust})')
    if texts:
        lines.append(f'words = AutoTokenizer.from_pretrained("."{trust})')
    if remote and pictures and texts:
        lines += [
            'pixels = images([Image.open("photo.jpg").convert("RGB")], return_tensors="pt")',
            'texts = ["a red apple", "a green pear"]',
            'ids = words(texts, padding="max_length", truncation=True, return_tensors="pt")',
            "print(model(**pixels, **ids).logits_per_image)",
        ]
    return "\n".join(lines)


def _class_name(family: Family, weights: Mapping[str, np.ndarray]) -> str:
    """Of a family with several classes, the one that has all the weights and no other."""
    if family is MAE and "decoder.mask_token" not in weights:
        return "ViTMAEModel"
    if family is BERT and "cls.predictions.bias" in weights:
        return "BertForMaskedLM"
    return family.name


def _choose(found: Options, bundle: Bundle) -> tuple[Family, dict]:
    """The family that expresses the model, and its config."""
    text = bundle.manifest.get("text") or {}
    reasons = []
    for family in FAMILIES:
        try:
            return family, their_config(family, found, text)
        except BadInput as error:
            reasons.append(str(error))
    if found.has("image") and found.has("text"):
        try:
            config = dual_encoder.write_config(found, bundle.model, text)
            spec = dual_encoder.read_spec(config)
            expressed = options.find(spec.model, spec.objectives)
            options.refuse_others(found, expressed, dual_encoder.NAME)
            return DUAL_ENCODER, config
        except BadInput as error:
            reasons.append(str(error))
    own = [reason for reason in reasons if ": is of " not in reason] or reasons
    raise BadInput(f"--format=hf: no class of transformers is this model: {'; '.join(own)}")


def their_config(family: Family, found: Options, text: Mapping) -> dict:
    """The config of a model as one of FAMILIES. Raises BadInput that lists what it cannot say."""
    config = family.write(found, text)
    family.table(found)
    spec = family.read({**config}, frozenset(_names(family, found)))
    options.refuse_others(found, options.find(spec.model, spec.objectives), family.name)
    return config


def clamped(params: Mapping[str, np.ndarray], found: Options) -> dict[str, np.ndarray]:
    """With a scale of logits no larger than its objective lets it be: others do not clamp."""
    params, name = dict(params), found.objective("contrastive")
    if name is None or (path := f"objectives/{name}/log_scale") not in params:
        return params
    most = found.settings[f"{name}.max_scale"] or dual_encoder.CLAMP[found.objectives[name]["kind"]]
    if params[path] > math.log(most):
        params[path] = np.float32(math.log(most))
    return params


def _names(family: Family, found: Options) -> list[str]:
    return [*family.table(found), *family.fixed(found)]


def _family(config: Mapping, path: str) -> Family:
    names = [*(config.get("architectures") or [])]
    for family in FAMILIES:
        if family.model_type == config.get("model_type") and (
            not names or {family.name, *family.names} & set(names)
        ):
            return family
    known = sorted(name for family in FAMILIES for name in (family.name, *family.names))
    shown = names or [config.get("model_type")]
    raise BadInput(
        f"{path}/config.json: is of {', '.join(map(str, shown))}; expected one of {known}"
    )


def _named(family: Family, entries: weight_files.Entries, config: Mapping) -> weight_files.Entries:
    """The weights without the prefix that a class with a head puts before those of its tower."""
    prefix = family.prefix
    plain = family.name in (config.get("architectures") or []) or "cls.predictions.bias" in entries
    if not prefix or plain and not any(name.startswith(prefix) for name in entries):
        return entries
    if family is BERT and "cls.predictions.bias" in entries:
        return entries
    return {name.removeprefix(prefix): entry for name, entry in entries.items()}


def _with_mask(spec: Spec, tokenizer: str | None) -> Spec:
    """BERT's objective with the id of [MASK], which only the tokenizer knows."""
    if "masked_text" not in spec.objectives or tokenizer is None:
        return spec
    added = {token["content"]: token["id"] for token in json.loads(tokenizer)["added_tokens"]}
    objective = spec.objectives["masked_text"] | {"mask_id": added.get("[MASK]", 0)}
    return spec._replace(objectives={"masked_text": objective})
