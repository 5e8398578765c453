"""README.md of an export: what it is, how it is loaded and fed, what it can do and may not."""

import json
from collections.abc import Mapping
from typing import Any

# Identifiers that the Hugging Face Hub takes for `license` (its documentation, "Licenses"); others
# are said by name.
_LICENCES = (
    "apache-2.0 mit bsd-2-clause bsd-3-clause cc0-1.0 cc-by-4.0 cc-by-sa-4.0 cc-by-nc-4.0 "
    "cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-nc-nd-4.0 gpl-3.0 lgpl-3.0 agpl-3.0 openrail unlicense"
).split()
_LIBRARIES = {"hf": "transformers", "open_clip": "open_clip"}
_PROGRAMS = ("stablehlo", "saved_model", "onnx")  # they take pixels
LIMITS = """\
- It was tested on what the table above names, and on nothing else: try it on your own data before
  you rely on it.
- What it learned is what its pictures and texts say, mistakes, gaps and prejudices included. It was
  not tested for fairness, nor for decisions about people, and is not meant for them.
- Pictures and texts that are made in another way than said here (another size, value range,
  lowercasing or length) give other embeddings, without an error."""


def write_card(manifest: Mapping[str, Any], snippet: str) -> str:
    """The whole text, a header in YAML included. snippet: the lines that load it."""
    model = manifest["model"]
    towers = [name for name in ("image", "text") if model.get(name)]
    parts = [
        _header(manifest, towers),
        f"# {' and '.join(towers).capitalize()} embeddings\n",
        _about(manifest, towers),
        f"## Load it\n\nIn this folder:\n\n```python\n{snippet}\n```\n",
        _feeding(manifest),
        _metrics(manifest),
        _training(manifest),
        _licence(manifest),
        f"## Limits\n\n{LIMITS}\n",
    ]
    return "\n".join(part for part in parts if part)


def _header(manifest: Mapping, towers: list[str]) -> str:
    """What the Hub reads. Values are JSON, which is YAML."""
    licence = manifest.get("licence")
    fields: dict[str, Any] = {"license": "unknown"}
    if licence:
        known = licence.lower() in _LICENCES
        fields = {"license": licence.lower()} if known else {"license": "other"}
        if not known:
            fields["license_name"] = licence
    if library := _LIBRARIES.get(manifest["format"]):
        fields["library_name"] = library
    both = towers == ["image", "text"]
    tasks = {"image": "image-feature-extraction", "text": "feature-extraction"}
    if towers:
        fields["pipeline_tag"] = "zero-shot-image-classification" if both else tasks[towers[0]]
    fields["tags"] = ["jax", "image-text", manifest["format"]]
    lines = [f"{key}: {json.dumps(value)}" for key, value in fields.items()]
    return "---\n" + "\n".join(lines) + "\n---\n"


def _about(manifest: Mapping, towers: list[str]) -> str:
    model = manifest["model"]
    lines = []
    for name in towers:
        spec = model[name]
        keys = ("image_size", "patch_size", "length", "vocab_size", "width", "depth", "num_heads")
        said = ", ".join(f"{key} {spec[key]}" for key in keys if key in spec)
        lines.append(f"- {name}: {spec.get('name', name)} ({said})")
    if model.get("embed_dim"):
        lines.append(f"- both in one space of {model['embed_dim']} numbers, of length 1")
    if found := manifest.get("logits"):
        head = "softmax over the others" if found["kind"] == "softmax" else "sigmoid of each pair"
        bias = f" {found['bias']:+.4g}" if found["bias"] else ""
        lines.append(f"- a pair's logit is {found['scale']:.6g} x cosine{bias}, for a {head}")
    count = f"{manifest['parameters']:,} parameters"
    which = ", averaged over training" if manifest.get("weights") == "average" else ""
    return f"{count}{which}. Format: {manifest['format']}.\n\n" + "\n".join(lines) + "\n"


def _feeding(manifest: Mapping) -> str:
    if not manifest.get("preprocess"):
        return ""
    rows = []
    if image := manifest.get("image"):
        rows += [("picture", f"RGB, {_times(image['size'])}"), ("resize", _resize(image))]
        mean, std = ([float(f"{x:.6g}") for x in image[key]] for key in ("mean", "std"))
        values = f"(x / 255 - mean) / std, mean {mean}, std {std}"
        if manifest["format"] in _PROGRAMS and manifest["model"]["image"].get("channels", 3) == 3:
            values = "uint8, 0 .. 255; the program makes of them what the model reads"
        rows.append(("values", values))
    if text := manifest.get("text"):
        # Of a model of others whose tokenizer was not found, only a part is known.
        vocabulary = f" of {text['vocab_size']:,}, tokenizer.json" if "vocab_size" in text else ""
        rows.append(("text", f"{text['length']} tokens{vocabulary}"))
        if "lowercase" in text:
            rows.append(("lowercase", "yes" if text["lowercase"] else "no"))
        before = f"before {text['ids_before']}, " if "ids_before" in text else ""
        if "ids_after" in text:
            rows.append(("marks", f"{before}after {text['ids_after']} (the end mark)"))
        if "pad_id" in text:
            cut = f"; cut {text['truncation']}" if "truncation" in text else ""
            rows.append(("padding", f"id {text['pad_id']}, on the right{cut}"))
    table = "\n".join(f"| {name} | {said} |" for name, said in rows)
    ops = manifest["preprocess"]
    return f"## What it is fed with\n\n| | |\n|---|---|\n{table}\n\nAs ops: `{ops}`\n"


def _times(size: list[int] | None) -> str:
    return "of any size" if size is None else f"{size[0]} x {size[1]} pixels"


def _resize(image: Mapping) -> str:
    found = image["resize"]
    if found is None:
        return "none"
    modes = {
        "squash": "to exactly that size, whatever the ratio",
        "shortest": f"the shorter side to {found['size']}, the ratio kept",
        "letterbox": "the largest that fits in, the ratio kept, on grey",
    }
    crop = f", then the middle {_times(image['crop'])}" if image["crop"] else ""
    antialias = "with" if found["antialias"] else "without"
    return f"{modes[found['mode']]}, {found['method']}, {antialias} antialiasing{crop}"


def _metrics(manifest: Mapping) -> str:
    metrics = manifest.get("metrics")
    if not metrics:
        return "## Metrics\n\nNone were measured at this checkpoint.\n"
    rows = "\n".join(
        f"| {key} | {100 * value:.1f}% |" if "recall@" in key else f"| {key} | {value:.6g} |"
        for key, value in metrics.items()
    )
    return f"## Metrics\n\nOf step {manifest.get('step')}.\n\n| | |\n|---|---:|\n{rows}\n"


def _training(manifest: Mapping) -> str:
    if "step" not in manifest:
        return ""
    git = (manifest.get("trained") or {}).get("git") or {}
    revision = git.get("revision", "unknown") + (", with changes" if git.get("dirty") else "")
    objectives = ", ".join(
        spec.get("kind", "") + " " * bool(spec.get("kind")) + spec.get("name", name)
        for name, spec in manifest["objectives"].items()
    )
    return (
        f"## Training\n\n{manifest['step']:,} steps, {manifest['examples_seen']:,} examples seen "
        f"(some several times), objectives: {objectives}. Code: revision {revision}.\n"
    )


def _licence(manifest: Mapping) -> str:
    licence = manifest.get("licence") or "not stated by who exported it; ask before you use it"
    lines = [f"Weights: {licence}."]
    source = manifest.get("source") or {}
    if source.get("dataset"):
        lines.append(f"Trained on the data set `{source['dataset']}`.")
    if source.get("licence"):
        listed = "\n".join(f"- {line}" for line in source["licence"].splitlines())
        lines.append(f"Licences of the data, as its description says:\n\n{listed}")
    if manifest.get("data_note"):
        lines.append(manifest["data_note"])
    return "## Licence and data\n\n" + "\n\n".join(lines) + "\n"
