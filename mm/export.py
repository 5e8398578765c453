"""`--mode=export`: a checkpoint, or a model of others, in a format of others or ours.

A folder with the format's files, `manifest.json` (what the weights are fed with, what they can do,
where they are from, the sha256 of every file) and `README.md`, a model card.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

import mm
from data import files
from mm import registry
from mm.config import BadInput, differences, plain
from mm.interop import facts, formats, npz, run
from mm.interop.bundle import Bundle
from mm.interop.card import write_card
from mm.interop.towers import check_feeding
from mm.recipe import SAME_FUNCTION, Recipe
from mm.runtime.workdir import git_state, sync_directory

FORMAT_VERSION = 1
_MANIFEST, _CARD = "manifest.json", "README.md"
_UNFINISHED = "unfinished.json"  # in an object store, while files are being sent there
# What tells two exports apart.
_IDENTITY = (
    *("format", "model", "objectives", "adapt", "step", "weights"),
    *("parameters_sha256", "preprocess", "licence", "data_note"),
)


def export(
    model: str,
    *,
    format: str = "npz",
    output: str | None = None,
    step: str | None = None,
    weights: str | None = None,
    preprocess: str | None = None,
    licence: str | None = None,
    data_note: str | None = None,
    config: Mapping | None = None,
) -> int:
    """Writes `model` to the folder `output` (default: `<workdir>/export-<format>-<step>`).

    model: the workdir of a run, or FORMAT:PATH of anything else that can be read. step, weights,
    preprocess: which checkpoint of a run and its ops, see `mm.interop.run.read`; config: its
    config, by default the checkpoint's; another may have other evals, whose ops are taken, and
    compute the same in another way (dtype). licence: of the
    weights, best by a name of SPDX; data_note: a sentence for the card. Neither the data nor the
    mesh of the run are needed. The folder appears whole (in an object store, its manifest.json does
    last); done again, it says that it is there. Raises BadInput when there is something else.
    """
    write = formats.writer(format)
    place = formats.parse_place(model, "--workdir")
    if output is None and place.format != "run":
        raise BadInput(f"{model}: is no run; say where to write it, with --output=FOLDER")
    bundle = _read(place, step, weights, preprocess, config)
    if bundle.adapt and format not in formats.KEEPS_ADAPTATIONS:
        kinds = ", ".join(sorted({spec["name"] for spec in bundle.adapt.values()}))
        raise BadInput(
            f"--format={format}: has no place for what config.adapt added ({kinds}), which cannot "
            f"be merged into the weights; expected one of {list(formats.KEEPS_ADAPTATIONS)}"
        )
    if output is None:
        output = files.join(place.path, f"export-{format}-{bundle.manifest['step']}")
    manifest = _manifest(bundle, format, licence, data_note)
    remote = files.is_remote(output)
    if _is_there(output, manifest):
        if remote:
            _remove_mark(output)  # of one that was killed at its very end
        print(f"{output}: is there already, and whole")
        return 0
    work = _work_folder(output)
    try:
        snippet = write(bundle._replace(manifest=manifest), str(work)) or _snippet(format)
        tokenizer = work / facts.TOKENIZER
        if "text" in manifest and tokenizer.exists():  # some formats have to write another
            manifest["text"]["sha256"] = npz.sha256(str(tokenizer))
        (work / _CARD).write_text(write_card(manifest, snippet), encoding="utf-8")
        manifest["files"] = _hashes(work)
        (work / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if remote:
            _send(work, output, manifest)
        else:
            _rename(work, Path(output))
    finally:
        shutil.rmtree(work, ignore_errors=True)  # of a failure; gone after a rename
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    print(
        f"{format}, {manifest['parameters']:,} parameters, {size / 1e6:,.1f} MB: {output}\n"
        f"how to load it is in {files.join(output, _CARD)}"
    )
    return 0


def _read(
    place: formats.Place,
    step: str | None,
    weights: str | None,
    preprocess: str | None,
    config: Mapping | None,
) -> Bundle:
    asked = {"--step": step, "--weights": weights, "--config": config}
    if place.format != "run":
        for flag, value in asked.items():
            if value is not None:
                raise BadInput(f"{flag}: goes with the workdir of a run; {place} is none")
        bundle = formats.read(str(place), "--workdir")
        return bundle if preprocess is None else facts.with_ops(bundle, preprocess, "--preprocess")
    if config is not None:
        registry.check(Recipe, plain(config), "config")
        preprocess = preprocess or facts.evaluation_ops(plain(config))
    bundle = run.read(place.path, step or "latest", weights, preprocess)
    if config is not None:
        model = plain(config)["model"]
        if changed := differences(model, bundle.model, SAME_FUNCTION):
            raise BadInput(
                f"config.model is not what the checkpoint was trained with: {changed}; leave "
                "--config out, and it is the run's"
            )
        bundle = bundle._replace(model=model)  # maybe another dtype
    if "preprocess" not in bundle.manifest:
        raise BadInput(
            "config.evals has no preprocess, so what the model is fed with is not known; give it, "
            "with --preprocess"
        )
    return bundle


def _manifest(
    bundle: Bundle, format: str, licence: str | None, data_note: str | None
) -> dict[str, Any]:
    ops = bundle.manifest.get("preprocess")
    feeding = ops and facts.open_ops(ops, bundle.tokenizer_json, "preprocess")
    if feeding:
        check_feeding(bundle, feeding)
    found = facts.described(bundle, feeding and feeding.tokenizer) | {
        "format": format,
        "format_version": FORMAT_VERSION,
        "library": f"mm {mm.__version__}",
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "git": git_state(Path(__file__).resolve().parents[1]),
        "parameters_sha256": _digest(bundle.params),
    }
    given = {"licence": licence, "data_note": data_note}
    found |= {key: value for key, value in given.items() if value is not None}
    found.pop("files", None)
    return json.loads(json.dumps(found))


def _digest(params: Mapping[str, np.ndarray]) -> str:
    """The sha256 of all parameters with their paths."""
    found = hashlib.sha256()
    for path in sorted(params):
        found.update(f"{path} {params[path].dtype} {params[path].shape}".encode())
        found.update(np.ascontiguousarray(params[path]).view(np.uint8))
    return found.hexdigest()


def _snippet(format: str) -> str:
    """How our library loads it, for formats that do not say it themselves."""
    return (
        "from mm import load  # this repository\n"
        f'model = load("{format}:.")\n'
        'zimg = model.embed_image(["photo.jpg"])  # float32 [n, d], of length 1\n'
        'ztxt = model.embed_text(["a red apple"])\n'
        "print(zimg @ ztxt.T)"
    )


def _is_there(output: str, manifest: Mapping) -> bool:
    """Whether the same export is there, whole. Raises BadInput if something else is."""
    path = files.join(output, _MANIFEST)
    if files.exists(path):
        found = json.loads(files.read(path))
        if changed := differences(_identity(manifest), _identity(found)):
            raise BadInput(f"{output}: has another export: {changed}; give another --output")
        for name, entry in found.get("files", {}).items():
            file = files.join(output, name)
            if not files.exists(file) or files.size(file) != entry["bytes"]:
                raise BadInput(
                    f"{file}: is missing or cut, in an export that was whole; delete {output}"
                )
        return True
    if files.is_remote(output):
        names = files.walk(output) if files.exists(output) else []
        if names and _UNFINISHED not in names:
            raise BadInput(f"{output}: has {names[0]!r}, which is no export; give another --output")
        found = json.loads(files.read(files.join(output, _UNFINISHED))) if names else {}
        if names and (changed := differences(_identity(manifest), found)):
            raise BadInput(
                f"{output}: has files of another export, which was not finished: {changed}; delete "
                "them, or give another --output"
            )
    elif os.path.lexists(output) and (not os.path.isdir(output) or os.listdir(output)):
        raise BadInput(f"{output}: is there, and is no export; give another --output")
    return False


def _identity(manifest: Mapping) -> dict[str, Any]:
    return {key: manifest.get(key) for key in _IDENTITY}


def _work_folder(output: str) -> Path:
    """An empty one: beside the output, so that a rename suffices, or on this machine's disk."""
    if files.is_remote(output):
        return Path(tempfile.mkdtemp(prefix="export-"))
    final = Path(output).absolute()
    work = final.with_name(f".{final.name}.unfinished")
    shutil.rmtree(work, ignore_errors=True)  # of one that was killed
    work.mkdir(parents=True)
    return work


def _hashes(folder: Path) -> dict[str, dict[str, Any]]:
    names = files.walk(str(folder))
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": npz.sha256(str(folder / name))}
        for name in names
    }


def _rename(work: Path, output: Path) -> None:
    for path in (work, *work.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    if output.is_dir():
        output.rmdir()  # it is empty
    os.rename(work, output)
    sync_directory(output.absolute().parent)


def _send(work: Path, output: str, manifest: Mapping) -> None:
    """File by file, the manifest last: without it nothing is an export."""
    filesystem, inner = fsspec.core.url_to_fs(output)
    files.write(files.join(output, _UNFINISHED), json.dumps(_identity(manifest)).encode())
    for name in [*manifest["files"], _MANIFEST]:
        filesystem.put_file(str(work / name), f"{inner.rstrip('/')}/{name}")
    _remove_mark(output)


def _remove_mark(output: str) -> None:
    mark = files.join(output, _UNFINISHED)
    if files.exists(mark):
        filesystem, inner = fsspec.core.url_to_fs(mark)
        filesystem.rm_file(inner)
