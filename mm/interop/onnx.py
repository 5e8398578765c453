"""ONNX, through jax2onnx: it only goes out. `make export-tools` installs what it takes."""

import contextlib
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mm import registry
from mm.config import BadInput
from mm.interop import npz
from mm.interop.bundle import Bundle
from mm.interop.stablehlo import signatures
from mm.interop.towers import build_towers

_MAX_ONE_FILE = 1 << 30  # bytes of weights; a protocol buffer holds 2 GiB
_TOLERANCE = 1e-4  # of what onnxruntime computes, of vectors of length 1


@registry.register("export_format", "onnx")
def write(bundle: Bundle, folder: str) -> str:
    """`image.onnx` (image) and `text.onnx` (text, text_mask) of any batch size, weights inside.

    Arguments as for `mm.interop.stablehlo`; of large models the weights are in `*.onnx.data`. Each
    is run by onnxruntime, and held against ours, before it counts. Returns how to load them.
    """
    _find_tools()
    towers = build_towers(bundle)
    params = {name: jnp.asarray(bundle.params[name]) for name in towers.names}
    large = sum(x.nbytes for x in params.values()) > _MAX_ONE_FILE
    lines = [
        "# Pictures are resized as below; 0 .. 255 is mapped inside.",
        "import onnxruntime",
        "onnxruntime.set_default_logger_severity(3)",
    ]
    for name, (function, arguments) in signatures(bundle, towers).items():
        keys = ["image"] if name == "image" else ["text", "text_mask"]
        path = os.path.join(folder, f"{name}.onnx")

        def embed(*arrays: jax.Array, function: Any = function) -> jax.Array:
            return function(params, *arrays)

        with _hushed():
            _convert(embed, arguments, keys, path, large)
        _check(embed, arguments, keys, path, bundle)
        shapes = ", ".join(
            f'"{key}": {x.dtype}{[*map(str, x.shape)]}'.replace("'", "")
            for key, x in zip(keys, arguments, strict=True)
        )
        lines.append(f'{name} = onnxruntime.InferenceSession("{name}.onnx")')
        lines.append(f"# {name}.run(None, {{{shapes}}})[0]")
    npz.write_tokenizer(bundle, folder)
    return "\n".join(lines)


def _convert(embed: Any, arguments: tuple, keys: list[str], path: str, large: bool) -> None:
    import onnx
    from jax2onnx import to_onnx

    model = to_onnx(embed, list(arguments), input_names=keys, output_names=["embedding"])
    external = {"location": f"{os.path.basename(path)}.data"} if large else {}
    onnx.save(model, path, save_as_external_data=large, **external)


def _check(embed: Any, arguments: tuple, keys: list[str], path: str, bundle: Bundle) -> None:
    """Raises BadInput if onnxruntime computes something else, for two batch sizes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it lists each constant that it does not need
    session = onnxruntime.InferenceSession(path, options)
    rng = np.random.default_rng(0)
    for rows in (1, 3):
        arrays = []
        for x in arguments:
            shape = (rows, *x.shape[1:])
            high = bundle.model["text"]["vocab_size"] if x.dtype == jnp.int32 else 256
            made = rng.integers(0, high, shape) if x.dtype != jnp.bool_ else np.ones(shape)
            arrays.append(made.astype(x.dtype))
        (found,) = session.run(None, dict(zip(keys, arrays, strict=True)))
        want = np.asarray(embed(*map(jnp.asarray, arrays)))
        if found.shape != want.shape or not np.abs(found - want).max() <= _TOLERANCE:
            raise BadInput(
                f"--format=onnx: onnxruntime does not compute what this model does ({path}); use "
                "--format=stablehlo or saved_model"
            )


def _find_tools() -> None:
    """Makes jax2onnx importable: it has a folder of its own."""
    folder = Path(sys.prefix) / "export"
    if importlib.util.find_spec("jax2onnx"):
        return
    if not (folder / "jax2onnx").is_dir():
        raise BadInput(f"--format=onnx: needs jax2onnx: `make export-tools` puts it into {folder}")
    sys.path.append(str(folder))


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Without a warning for each optional package, and each value whose type is not written."""
    loggers = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
