"""Our own format: weights.npz by the paths of checkpoints, config.json, tokenizer.json.

`config.json` holds config.model and config.objectives; manifest.json, which `mm.export` writes,
the rest. numpy alone reads the weights: `np.load("weights.npz")`.
"""

import hashlib
import os

from data import files
from mm import registry
from mm.config import BadInput
from mm.interop.arrays import read_npz, write_npz
from mm.interop.bundle import Bundle
from mm.interop.json_files import read_json, read_text
from mm.runtime.workdir import write_json

WEIGHTS, CONFIG, TOKENIZER, MANIFEST = (
    "weights.npz",
    "config.json",
    "tokenizer.json",
    "manifest.json",
)


@registry.register("export_format", "npz")
def write(bundle: Bundle, folder: str) -> None:
    """All of the bundle but its manifest."""
    write_npz(os.path.join(folder, WEIGHTS), bundle.params)
    config = {"model": bundle.model, "objectives": bundle.objectives}
    config |= {"adapt": bundle.adapt} if bundle.adapt else {}
    write_json(files.join(folder, CONFIG), config)
    write_tokenizer(bundle, folder)


def write_tokenizer(bundle: Bundle, folder: str) -> None:
    """tokenizer.json, if there is one."""
    if bundle.tokenizer_json is not None:
        files.write(files.join(folder, TOKENIZER), bundle.tokenizer_json.encode())


@registry.register("import_format", "npz")
def read(path: str) -> Bundle:
    """A folder that `write` and `mm.export` wrote, here or far away.

    The sizes in weights.npz are held against those of its own headers and of the file before memory
    is taken, and the file against the sha256 in manifest.json. Raises BadInput for what is missing
    or damaged.
    """
    config = read_json(files.join(path, CONFIG))
    if not isinstance(config.get("model"), dict):
        raise BadInput(f"{files.join(path, CONFIG)}: has no 'model'; is this an export of ours?")
    manifest = files.join(path, MANIFEST)
    manifest = read_json(manifest) if files.exists(manifest) else {}
    weights = files.local_copy(files.join(path, WEIGHTS))
    declared = manifest.get("files", {}).get(WEIGHTS, {}).get("sha256")
    params = read_npz(weights)
    if declared is not None and sha256(weights) != declared:
        raise BadInput(f"{path}: {WEIGHTS} is not the file that {MANIFEST} describes (its sha256)")
    tokenizer = files.join(path, TOKENIZER)
    return Bundle(
        config["model"],
        params,
        manifest,
        read_text(tokenizer) if files.exists(tokenizer) else None,
        config.get("objectives", {}),
        config.get("adapt", {}),
    )


def sha256(path: str) -> str:
    """That of a local file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
