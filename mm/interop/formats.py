"""Formats by name: "FORMAT:PATH", or a path alone, whose format is guessed."""

import contextlib
import importlib
import os
from collections.abc import Callable
from typing import NamedTuple

from data import files
from mm import registry
from mm.config import BadInput, listed, suggest
from mm.interop.bundle import Bundle
from mm.interop.json_files import read_json

# Where each is. What only goes out, or only comes in, registers one function.
_MODULES = {
    "npz": "mm.interop.npz",
    "run": "mm.interop.run",
    "stablehlo": "mm.interop.stablehlo",
    "saved_model": "mm.interop.saved_model",
    "onnx": "mm.interop.onnx",
    "hf": "mm.interop.hf",
    "open_clip": "mm.interop.open_clip",
    "big_vision": "mm.interop.big_vision",
}
_ONLY_READ, _ONLY_WRITTEN = ("run",), ("saved_model", "onnx")
_READ = sorted(_MODULES.keys() - {*_ONLY_WRITTEN})
_WRITTEN = sorted(_MODULES.keys() - {*_ONLY_READ})

# What reads files of this machine alone, and the names of those that it reads.
_LOCAL = {
    "hf": (".json", ".safetensors", "spiece.model", "merges.txt", "vocab.txt"),
    "open_clip": (".json", ".safetensors", "spiece.model", "merges.txt", "vocab.txt"),
}

# Those that have a place for what config.adapt adds; the others are of fixed models.
KEEPS_ADAPTATIONS = ("npz", "stablehlo", "saved_model", "onnx")
# Of manifest.json: what a format of others has no place for.
_ORIGIN = (
    "step weights examples_seen metrics trained source licence data_note preprocess text"
).split()


class Place(NamedTuple):
    """Where a model is, and in which format."""

    format: str
    path: str

    def __str__(self) -> str:
        return f"{self.format}:{self.path}"


def writer(name: str, where: str = "--format") -> Callable[[Bundle, str], str | None]:
    """write(bundle, folder) of a format; it may return the lines that load what it wrote.

    Raises BadInput for one that has none.
    """
    return _find("export_format", name, where)


def reader(name: str, where: str) -> Callable[..., Bundle]:
    """read(path) -> Bundle of a format. Raises BadInput for one that has none."""
    return _find("import_format", name, where)


def read(text: str, where: str, partial: bool = False) -> Bundle:
    """The model at "FORMAT:PATH", or at a path. Raises BadInput where there is none.

    Of a folder that we wrote in a format of others, the manifest has where the weights are from.
    Also raises it for a file of others that lacks parameters, unless a `partial` model will do.
    """
    place = parse_place(text, where)
    bundle = _read(reader(place.format, where), place)
    missing = bundle.manifest.pop("missing", [])
    if missing and not partial:
        raise BadInput(f"{place.path}: has no {listed(missing)}")
    folder, file = place.path, None
    if folder.endswith(".npz"):
        folder, file = files.parent(folder), os.path.basename(folder)
    beside = _json(folder, "manifest.json")
    if beside.get("format") != place.format or file and file not in beside.get("files", {}):
        return bundle
    kept = {key: beside[key] for key in _ORIGIN if key in beside}
    return bundle._replace(manifest=kept | bundle.manifest)


def _read(read: Callable[[str], Bundle], place: Place) -> Bundle:
    if place.format not in _LOCAL:
        return read(place.path)
    with files.local_folder(place.path, _LOCAL[place.format]) as folder:
        try:
            return read(folder)
        except BadInput as error:  # of the copy, which nobody knows
            raise BadInput(str(error).replace(folder, place.path)) from error


def parse_place(text: str, where: str) -> Place:
    """Reads "FORMAT:PATH"; of a path alone the format is guessed from what is there.

    where: the flag or key, for messages. Raises BadInput for an unknown format, and for a path with
    nothing that is known.
    """
    name, colon, path = text.partition(":")
    if colon and not path.startswith("//") and "/" not in name:  # gs://... has no format
        if name not in _MODULES:
            near = suggest(name, _READ)
            raise BadInput(
                f"{where}={text}: no format {name!r}{near} (have {_READ}); expected "
                "FORMAT:PATH, or a path"
            )
        if not path:
            raise BadInput(f"{where}={text}: has no path; expected {name}:PATH")
        return Place(name, os.path.expanduser(path))
    text = os.path.expanduser(text)
    return Place(guess(text, where), text)


def guess(path: str, where: str) -> str:
    """The format of what is at `path`. Raises BadInput where that cannot be told."""
    path = path.rstrip("/")
    if path.endswith(".npz"):
        return "big_vision"
    if own := _json(path, "manifest.json").get("format"):
        if own not in _MODULES:
            raise BadInput(f"{where}={path}: its manifest.json says format={own!r}, which is none")
        return own
    if files.exists(files.join(path, "checkpoints")):
        return "run"
    if files.exists(files.join(path, "open_clip_config.json")):
        return "open_clip"
    if {"model_type", "architectures"} & _json(path, "config.json").keys():
        return "hf"
    if not files.exists(path):
        raise BadInput(f"{where}={path}: does not exist")
    raise BadInput(
        f"{where}={path}: is no model that is known: expected the workdir of a run, a folder with "
        "manifest.json (ours), config.json (Hugging Face) or open_clip_config.json, or a .npz of "
        f"big_vision; or say FORMAT:PATH with one of {_READ}"
    )


def _json(folder: str, name: str) -> dict:
    """What the file says, {} where there is none or it is something else."""
    path = files.join(folder, name)
    if files.exists(path):
        with contextlib.suppress(BadInput):
            return read_json(path)
    return {}


def _find(kind: str, name: str, where: str) -> Callable:
    if module := _MODULES.get(name):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise BadInput(
                    f"{where}={name}: needs the package {error.name!r}, which is not installed"
                ) from error
            raise BadInput(f"{where}={name}: this version does not have that format") from error
    elif name not in registry.names(kind):
        known = sorted({*(_WRITTEN if kind == "export_format" else _READ), *registry.names(kind)})
        raise BadInput(f"{where}={name}: no such format{suggest(name, known)} (have {known})")
    if name not in registry.names(kind):
        if kind == "export_format":
            raise BadInput(f"{where}={name}: only comes in; expected one of {_WRITTEN}")
        raise BadInput(
            f"{where}={name}: only goes out, as programs for others to run; take the run that it "
            f"is of, or the export of that as npz (what comes in: {_READ})"
        )
    return registry.find(kind, name, where)
