"""The towers as programs: StableHLO that jax.export wrote, for any batch size, with weights beside.

jax and numpy alone run them; `weights.npz`, config.json and tokenizer.json are those of `npz`, so
that the folder can be read back, too.
"""

import contextlib
import os
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import export

from mm import registry
from mm.config import BadInput
from mm.interop import npz
from mm.interop.bundle import Bundle
from mm.interop.towers import Towers, build_towers, from_pixels

PLATFORMS = ("cpu", "tpu", "cuda", "rocm")

registry.register("import_format", "stablehlo")(npz.read)


@registry.register("export_format", "stablehlo")
def write(bundle: Bundle, folder: str) -> str:
    """`image.stablehlo` and `text.stablehlo`; both return float32 [b, d] of length 1.

    The one takes the weights and uint8 pictures [b, h, w, 3] that are resized: their value range is
    inside. (Pictures of other channels than 3 are float32, as the ops make them.) The other takes
    the weights, int32 ids [b, l] and a bool mask [b, l]. Returns how to load them.
    """
    npz.write(bundle, folder)
    functions = signatures(bundle, build_towers(bundle))
    lines = [
        "# jax 0.10 on a CPU: first set XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= (its",
        "# issue 39103). Pictures are resized as below; 0 .. 255 is mapped inside.",
        "import jax, numpy as np",
        "from jax import export",
        'weights = dict(np.load("weights.npz"))',
    ]
    for name, (function, arguments) in functions.items():
        weights = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in bundle.params.items()}
        with without_paths():
            exported = export.export(jax.jit(function), platforms=PLATFORMS)(weights, *arguments)
        with open(os.path.join(folder, f"{name}.stablehlo"), "wb") as file:
            file.write(exported.serialize())
        shapes = ", ".join(f"{x.dtype}{[*map(str, x.shape)]}".replace("'", "") for x in arguments)
        lines.append(
            f'{name} = export.deserialize(bytearray(open("{name}.stablehlo", "rb").read())).call'
        )
        lines.append(f"# {name}(weights, {shapes})")
    return "\n".join(lines)


@contextlib.contextmanager
def without_paths() -> Iterator[None]:
    """While a program is lowered for others: no path of this machine is in its locations."""
    key = "jax_hlo_source_file_canonicalization_regex"
    before = jax.config.values[key]
    jax.config.update(key, ".*/")
    try:
        yield
    finally:
        jax.config.update(key, before)


def signatures(
    bundle: Bundle, towers: Towers
) -> dict[str, tuple[Callable, tuple[jax.ShapeDtypeStruct, ...]]]:
    """Of each tower its function, pixels in, and its arguments after the weights, of b rows."""
    (rows,) = export.symbolic_shape("b")
    found = {}
    if towers.image is not None:
        shape, function = towers.image_shape, towers.image
        if shape[-1] == 3:
            function = from_pixels(function, bundle.manifest.get("image"))
        dtype = jnp.uint8 if shape[-1] == 3 else jnp.float32
        found["image"] = function, (jax.ShapeDtypeStruct((rows, *shape), dtype),)
    if towers.text is not None:
        shape = (rows, towers.length)
        found["text"] = (
            towers.text,
            (jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.bool_)),
        )
    if not found:
        raise BadInput("this model has neither an image nor a text tower to export")
    return {name: (_of_any_batch(function), given) for name, (function, given) in found.items()}


def _of_any_batch(function: Callable) -> Callable:
    """The same by vmap, so that models need not know of sizes that are symbols."""

    def one(params: dict, *arrays: jax.Array) -> jax.Array:
        return function(params, *(x[None] for x in arrays))[0]

    def rows(params: dict, *arrays: jax.Array) -> jax.Array:
        return jax.vmap(one, in_axes=(None, *(0 for _ in arrays)))(params, *arrays)

    return rows
