"""The two towers of a model as functions of its parameters: what embeds, in every format."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from mm import registry
from mm.adapt import adapt
from mm.config import BadInput
from mm.interop.bundle import Bundle
from mm.interop.facts import Feeding
from mm.models.multimodal import Multimodal
from mm.models.remat import count
from mm.optim.paths import flatten, map_paths

Params = Mapping[str, Array | np.ndarray]
# Of config.model: the rest (fusion, decoder, memory) is not read to embed.
_KEYS = ("image", "text", "embed_dim", "image_projection", "text_projection", "share", "dtype")


class Towers(NamedTuple):
    """image(params, image [b, ...]) and text(params, ids [b, l], mask [b, l]) -> float32 [b, d].

    Embeddings have length 1. params: by the paths of checkpoints; it may hold more than `names`,
    those that are read. A tower that the model has not is None. image_shape: of one picture;
    length: of a text; together: whether pictures and texts meet in one space. No Pallas kernel is
    used, so a trace can be lowered for every platform.
    """

    names: tuple[str, ...]
    image: Callable[[Params, Array], Float[Array, "b d"]] | None
    text: Callable[[Params, Array, Array], Float[Array, "b d"]] | None
    image_shape: tuple[int, ...] | None
    length: int | None
    together: bool


def build_towers(bundle: Bundle) -> Towers:
    """Raises BadInput where parameters are missing, or are not of the shapes of the model."""
    model = _abstract(bundle)
    graphdef, variables = nnx.split(model)
    wanted = nnx.to_pure_dict(variables)
    shapes = {f"model/{name}": leaf.shape for name, leaf in flatten(wanted).items()}
    _check(shapes, bundle.params)

    def merged(params: Params) -> Multimodal:
        own = map_paths(lambda name, leaf: jnp.asarray(params[f"model/{name}"]), wanted)
        return nnx.merge(graphdef, own)

    def embed_image(params: Params, image: Array) -> Float[Array, "b d"]:
        with count():  # attention by einsums, and nothing for a backward pass
            own = merged(params)
            return own.project("image", own.encode_image(image)).z

    def embed_text(
        params: Params, text: Int[Array, "b l"], mask: Bool[Array, "b l"]
    ) -> Float[Array, "b d"]:
        with count():
            own = merged(params)
            return own.project("text", own.encode_text(text, mask=mask)).z

    return Towers(
        tuple(shapes),
        embed_image if model.image is not None else None,
        embed_text if model.text is not None else None,
        model.image.image_shape if model.image is not None else None,
        model.text.length if model.text is not None else None,
        None not in (model.image, model.text, model.embed_dim),
    )


def check_feeding(bundle: Bundle, feeding: Feeding) -> None:
    """Raises BadInput if the ops make pictures or texts of other sizes than config.model reads."""
    built, sizes = _abstract(bundle), feeding.sizes()
    wanted = {
        "pictures": None if built.image is None else tuple(built.image.image_shape),
        "texts": None if built.text is None else (built.text.length,),
    }
    for what, made in sizes.items():
        if (reads := wanted[what]) not in (None, made):
            raise BadInput(
                f"preprocess: makes {what} of {list(made)}, the model reads {list(reads)}; give "
                "ops that do, as preprocess"
            )


def _abstract(bundle: Bundle) -> Multimodal:
    """Its towers, without memory."""
    spec = {key: value for key, value in bundle.model.items() if key in _KEYS}

    def make() -> Multimodal:
        rngs = nnx.Rngs(0)
        model = registry.call(Multimodal, spec, "config.model", rngs=rngs)
        adapt(model, bundle.adapt, rngs, whole=False)
        return model

    return nnx.eval_shape(make)


def from_pixels(
    embed: Callable[[Params, Array], Float[Array, "b d"]], facts: Mapping[str, Any] | None
) -> Callable[[Params, Array], Float[Array, "b d"]]:
    """The same of uint8 pictures: their value range is part of the function.

    facts: manifest["image"].
    """
    mean, std = (np.array(facts[key]) if facts else np.full(3, 0.5) for key in ("mean", "std"))
    scale, shift = (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)

    def embed_pixels(params: Params, pixels: Array) -> Float[Array, "b d"]:
        return embed(params, pixels.astype(jnp.float32) * scale + shift)

    return embed_pixels


def _check(shapes: Mapping[str, tuple], params: Params) -> None:
    missing = [name for name in shapes if name not in params]
    other = [
        f"{name}: {list(np.shape(params[name]))}, the model has {list(shape)}"
        for name, shape in shapes.items()
        if name in params and tuple(np.shape(params[name])) != tuple(shape)
    ]
    for names, what in ((missing, "are missing"), (other, "have another shape")):
        if names:
            more = ", ..." if len(names) > 3 else ""
            raise BadInput(
                f"{len(names)} parameters of the towers {what} ({'; '.join(names[:3])}{more})"
            )
