"""What weights are fed with, as it travels beside them: ops as text, and the same in plain fields.

The ops are those of evaluation. They hold no draw, need no data set, and their tokenizer is called
"tokenizer.json", whose text lies beside.
"""

import contextlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.preprocess import Columns, Preprocess
from data.preprocess.draws import Draws
from data.preprocess.image import STATISTICS
from data.preprocess.parse import arguments, parse, renamed
from data.sources import BadExample
from data.tokenizers import Tokenizer
from mm.config import BadInput
from mm.interop.bundle import Bundle

TOKENIZER = "tokenizer.json"
# What concerns neither the picture nor its text.
_ASIDE = (
    "group",
    "entities",
    "numbers",
    "keep_text",
    "patch_mask",
    "view",
    "label",
    "labels",
    "ask",
    "instruct",
    "tokenize_answer",
)
_DECODES = ("decode", "decode_video", "decode_audio")
_DESCRIBED = ("decode", "pad", "resize", "center_crop", "value_range", "normalize")
_GREY = np.full((512, 512, 3), 128, np.uint8)
_CLAMPED = {"softmax": 100.0, "sigmoid": math.inf}  # max_scale by default


class Feeding(NamedTuple):
    """The ops of pictures, and those of texts after the one that writes `text`; None without."""

    image: Preprocess | None
    text: Preprocess | None

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.text and self.text.tokenizer

    def images(self, values: list) -> np.ndarray:
        """Of encoded or decoded pictures [b, ...]. Raises BadExample."""
        fields = {key: values for key in self.image.reads}
        return self.image.apply(fields, np.zeros(len(values), np.uint64))["image"]

    def texts(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask, both [b, l]. Raises BadExample."""
        made = self.text.apply({"text": texts}, np.zeros(len(texts), np.uint64))
        return made["text"], made["text_mask"]

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """{"pictures": (h, w, 3), "texts": (l,)}, as far as a grey picture and a word tell."""
        found = {}
        if self.image is not None and self.image.names[0] == "decode":
            with contextlib.suppress(BadExample):  # too small for a crop
                found["pictures"] = self.images([_GREY])[0].shape
        if self.text is not None:
            found["texts"] = self.texts(["word"])[0][0].shape
        return found


def as_it_travels(ops: str, where: str) -> str:
    """The ops without what is neither picture nor text, and with the tokenizer's name beside them.

    Raises BadInput as `parse`.
    """
    names = [name for name, _ in arguments(ops, where=where)]
    written = renamed(ops, "tokenize", "name", TOKENIZER, where=where)
    kept = [text for name, text in zip(names, written, strict=True) if name not in _ASIDE]
    return "|".join(kept)


def open_ops(ops: str, tokenizer_json: str | None, where: str) -> Feeding:
    """The parsed ops of a manifest. Raises BadInput for those that are wrong, or that draw."""
    names = [name for name, _ in arguments(ops, where=where)]
    if "tokenize" in names and tokenizer_json is None:
        raise BadInput(f"{where}: has tokenize, but there is no {TOKENIZER}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, TOKENIZER)
        path.write_text(tokenizer_json or "")
        texts = renamed(ops, "tokenize", "name", str(path), where=where)
        texts = renamed("|".join(texts), "tokenize_answer", "name", str(path), where=where)
        whole = parse("|".join(texts), where=where)
    # caption and choose write `text` from a data set's fields; here it is given.
    keep = {"image": [], "text": []}
    written = renamed(ops, "tokenize", "name", TOKENIZER, where=where)
    for name, text, op in zip(names, written, whole.ops, strict=True):
        textual = op.stage in ("text", "tokenize")
        if name not in _ASIDE and not (textual and op.reads):
            keep["text" if textual else "image"].append((text, op))
    if keep["image"] and names[0] not in _DECODES:
        raise BadInput(f"{where}: begins with {names[0]}; expected one of {list(_DECODES)}")
    parts = {
        side: whole._replace(names=tuple(n for n, _ in pairs), ops=tuple(op for _, op in pairs))
        for side, pairs in keep.items()
    }
    feeding = Feeding(
        parts["image"] if keep["image"] else None,
        parts["text"] if parts["text"].tokenizer else None,
    )
    for part in (feeding.image, feeding.text):
        if part is not None:
            _check_draws(part, where)
    return feeding


def describe(ops: str, tokenizer: Tokenizer | None, where: str) -> dict[str, Any]:
    """{"image": ..., "text": ...} in plain fields; see `mm.interop.bundle.Bundle.manifest`."""
    found: dict[str, Any] = {}
    if tokenizer is not None:
        found["text"] = {"file": TOKENIZER, **tokenizer.manifest()}
    steps = arguments(ops, where=where)
    if not steps or steps[0][0] not in _DECODES:
        return found
    # Without an op that says so, the model takes 0 .. 255 for -1 .. 1.
    half = [0.5] * 3
    image = {"size": None, "pad": None, "resize": None, "crop": None, "mean": half, "std": half}
    for name, given in steps:
        if name == "pad":
            image["pad"] = given
        if name == "resize":
            image["resize"] = given
            if given["mode"] != "shortest":
                image["size"] = pair(given["size"])
                image["resize"] = given | {"size": image["size"]}
        if name == "center_crop":
            image["crop"] = image["size"] = pair(given["size"])
        if name == "value_range":
            width = given["high"] - given["low"]
            image["mean"], image["std"] = [-given["low"] / width] * 3, [1 / width] * 3
        if name == "normalize":
            image["mean"], image["std"] = _statistics(given)
    textual = ("tokenize", "caption", "choose", "normalize_text", "template")
    rest = [n for n, _ in steps if n not in (*_DESCRIBED, *_ASIDE, *textual)]
    found["image"] = image | ({"also": rest} if rest else {})
    return found


def with_ops(bundle: Bundle, ops: str, where: str) -> Bundle:
    """The bundle with other ops. Raises BadInput as `open_ops`."""
    ops = as_it_travels(ops, where)
    tokenizer = open_ops(ops, bundle.tokenizer_json, where).tokenizer
    rest = {k: v for k, v in bundle.manifest.items() if k not in ("image", "text")}
    said = rest | {"preprocess": ops, **describe(ops, tokenizer, where)}
    return bundle._replace(manifest=said)


def described(bundle: Bundle, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The manifest with the keys that do not depend on where a model is from.

    tokenizer: that of its ops.
    """
    found = {
        "model": bundle.model,
        "objectives": bundle.objectives,
        **({"adapt": bundle.adapt} if bundle.adapt else {}),
        "parameters": sum(x.size for x in bundle.params.values()),
        "logits": logits(bundle) or bundle.manifest.get("logits"),
    }
    if ops := bundle.manifest.get("preprocess"):
        found |= describe(ops, tokenizer, "preprocess")
    return bundle.manifest | found


def logits(bundle: Bundle) -> dict[str, float] | None:
    """{"kind", "scale", "bias"}: a pair's logit is scale * cosine + bias; None without contrast.

    kind: "softmax" over the others, or "sigmoid" of each pair alone.
    """
    for name, spec in bundle.objectives.items():
        scale = bundle.params.get(f"objectives/{name}/log_scale")
        kind = spec.get("kind", "softmax")  # that of momentum needs no word for it
        if scale is None or kind not in _CLAMPED:
            continue
        most = spec.get("max_scale") or _CLAMPED[kind]
        bias = bundle.params.get(f"objectives/{name}/bias", 0.0)
        return {
            "kind": kind,
            "scale": min(math.exp(float(scale)), most),
            "bias": float(bias),
        }
    return None


def evaluation_ops(config: Mapping) -> str | None:
    """The ops of the first retrieval in config.evals, or of the first evaluation."""
    evals = list(config.get("evals", {}).values())
    evals.sort(key=lambda spec: spec.get("name") != "retrieval")
    return next((spec["preprocess"] for spec in evals if spec.get("preprocess")), None)


def pair(size: int | Sequence[int]) -> list[int]:
    """[height, width] of a size that may be one number for both."""
    return [size, size] if isinstance(size, int) else list(size)


class _NoDraws(Draws):
    """For an op that should draw nothing."""

    def __init__(self, what: str):
        self._what = what

    def uniform(self, n: int) -> np.ndarray:
        raise BadInput(f"{self._what}: draws at random; give ops that do not, as preprocess")

    def keys(self) -> np.ndarray:
        return self.uniform(1)


def _check_draws(ops: Preprocess, where: str) -> None:
    """Raises BadInput if one of the ops draws: each is run on a grey picture and a word."""
    if any(name.startswith(_DECODES[1:]) for name in ops.names):
        return  # there is no clip at hand to try
    columns: Columns = {key: [_GREY] for key in ops.reads} | {"text": ["word"]}
    with contextlib.suppress(BadExample):  # too small for a crop: then it got as far as that
        for name, op in zip(ops.names, ops.ops, strict=True):
            columns = op.apply(columns, _NoDraws(f"{where}: {name}"))


def _statistics(given: Mapping) -> tuple[list[float], list[float]]:
    mean, std = given["mean"], given["std"]
    if isinstance(mean, str):
        mean, std = STATISTICS[mean]
    return list(mean), list(std)
