"""mm as a library: `from mm import load; model = load("path"); model.embed_image(["a.jpg"])`."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxtyping import Float
from PIL import Image

from data import files
from data.sources import BadExample
from data.sources.pictures import of_pillow
from mm.config import BadInput
from mm.interop import facts, formats, run
from mm.interop.bundle import Bundle
from mm.interop.towers import build_towers, check_feeding

_SIZES = (1, 8, 64)  # of a batch; each is a compiled program, so batches are filled up to one
_MAX_SHOWN = 60  # characters of what was given, in a message

Picture = bytes | str | os.PathLike | Image.Image | np.ndarray


class Embedder:
    """A model that embeds; made by `load`.

    manifest: what travels with the weights (`mm.interop.bundle.Bundle`). logit_scale, logit_bias:
    of pairs, None where the model was trained without contrast. Methods raise BadInput for a
    picture or a text that cannot be embedded, with its place in the list.
    """

    def __init__(self, bundle: Bundle, device: jax.Device | str | None = None):
        where = SingleDeviceSharding(_device(device))
        ops = bundle.manifest.get("preprocess")
        if ops is None:
            raise BadInput("this model says nothing of its preprocessing; give it, as preprocess=")
        self._feeding = facts.open_ops(ops, bundle.tokenizer_json, "preprocess")
        self.manifest = facts.described(bundle, self._feeding.tokenizer)
        check_feeding(bundle, self._feeding)
        self._towers = build_towers(bundle)
        self._params = {
            name: jax.device_put(bundle.params[name], where) for name in self._towers.names
        }
        found = self.manifest["logits"] or {}
        self.logit_scale, self.logit_bias = found.get("scale"), found.get("bias")
        self._image, self._text = (
            None if tower is None else jax.jit(tower)
            for tower in (self._towers.image, self._towers.text)
        )

    def embed_image(self, images: Sequence[Picture]) -> Float[np.ndarray, "n d"]:
        """Float32 vectors of length 1, by the model's own preprocessing.

        images: paths (gs:// works too), encoded bytes, PIL images, or uint8 arrays [h, w, 3], mixed
        as you like.
        """
        if self._image is None or self._feeding.image is None:
            raise BadInput("embed_image: this model has no image tower")
        _check_list("embed_image", images, (bytes, os.PathLike, Image.Image))

        def made(part: Sequence[Picture], start: int) -> tuple[np.ndarray]:
            values = [_opened(image, f"image {start + i}") for i, image in enumerate(part)]
            return (_each(self._feeding.images, values, "image", start),)

        return self._embed(self._image, images, made)

    def embed_text(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Float32 vectors of length 1, by the model's own tokenizer."""
        if self._text is None or self._feeding.text is None:
            raise BadInput("embed_text: this model has no text tower, or no tokenizer")
        _check_list("embed_text", texts, ())
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise BadInput(f"embed_text: text {i} is {type(text).__name__}, expected a str")

        def made(part: Sequence[str], start: int) -> tuple[np.ndarray, ...]:
            return _each(self._feeding.texts, list(part), "text", start)

        return self._embed(self._text, texts, made)

    def similarity(
        self, images: Sequence[Picture], texts: Sequence[str]
    ) -> Float[np.ndarray, "n m"]:
        """Cosines of all images with all texts. `logit_scale` times it, plus `logit_bias`, are the
        logits of training."""
        if not self._towers.together:
            raise BadInput("similarity: this model has no embed_dim, where images and texts meet")
        return self.embed_image(images) @ self.embed_text(texts).T

    def _embed(self, embed: Callable, values: Sequence, made: Callable) -> np.ndarray:
        found, waiting = [], None
        for start, part in _parts(values):
            arrays = [_filled(array, _size(len(part))) for array in made(part, start)]
            running = embed(self._params, *arrays), len(part)
            if waiting is not None:  # one behind: the device computes while the next are read
                found.append(np.asarray(waiting[0])[: waiting[1]])
            waiting = running
        if waiting is None:
            shape = jax.eval_shape(embed, self._params, *self._empty(embed))
            return np.zeros((0, shape.shape[1]), np.float32)
        return np.concatenate([*found, np.asarray(waiting[0])[: waiting[1]]])

    def _empty(self, embed: Callable) -> tuple[jax.ShapeDtypeStruct, ...]:
        if embed is self._image:
            return (jax.ShapeDtypeStruct((1, *self._towers.image_shape), np.float32),)
        shape = 1, self._towers.length
        return jax.ShapeDtypeStruct(shape, np.int32), jax.ShapeDtypeStruct(shape, np.bool_)


def load(
    path: str | os.PathLike,
    *,
    step: str | int = "latest",
    weights: str | None = None,
    preprocess: str | None = None,
    device: jax.Device | str | None = None,
) -> Embedder:
    """The model at a path: a run's workdir, an export of ours, or FORMAT:PATH of others.

    step: of a run's checkpoint, a number, "latest" or "best"; weights: "trained", or the "average"
    that the run keeps, by default those that it evaluates. preprocess: other ops than its own.
    device: one of JAX's, or the first of a platform such as "cpu"; by default JAX's first. Raises
    BadInput, one line, where nothing can be loaded.
    """
    place = formats.parse_place(os.fspath(path), "load")
    if place.format == "run":
        bundle = run.read(place.path, str(step), weights, preprocess)
    else:
        if (str(step), weights) != ("latest", None):
            raise BadInput(f"load: step and weights go with the workdir of a run; {place} is none")
        bundle = formats.read(str(place), "load")
        if preprocess is not None:
            bundle = facts.with_ops(bundle, preprocess, "preprocess")
    bundle = bundle._replace(manifest=bundle.manifest | {"format": place.format})
    try:
        return Embedder(bundle, device)
    except BadInput as error:
        raise BadInput(f"{place}: {error}") from error


def _device(given: jax.Device | str | None) -> jax.Device:
    if isinstance(given, jax.Device):
        return given
    if given is None or isinstance(given, str):
        with contextlib.suppress(RuntimeError):  # no such platform
            return jax.local_devices(backend=given)[0]
    there = sorted({device.platform for device in jax.local_devices()})
    raise BadInput(
        f"device={given!r}: expected one of jax.devices(), or a platform that is here, such as "
        f"{there[0]!r}"
    )


def _opened(image: Picture, what: str) -> bytes | np.ndarray:
    """As the op `decode` takes it: encoded, or uint8 [h, w, 3]."""
    if isinstance(image, bytes | bytearray):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        try:
            return files.read(os.path.expanduser(path))
        except BadInput as error:
            raise BadInput(f"embed_image: {what}: {error}") from error
    if isinstance(image, Image.Image):
        if image.mode[0] in "IF":
            raise BadInput(f"embed_image: {what} has mode {image.mode}; expected 8 bits a channel")
        return of_pillow(image)
    if not (
        isinstance(image, np.ndarray)
        and image.dtype == np.uint8
        and image.ndim == 3
        and image.shape[-1] == 3
        and image.size
    ):
        shown = type(image).__name__
        if hasattr(image, "dtype"):
            shown = f"{image.dtype}{list(image.shape)}"
        raise BadInput(
            f"embed_image: {what} is {shown}; expected a path, bytes, a PIL image, or uint8 "
            "[h, w, 3] in RGB"
        )
    return np.ascontiguousarray(image)


def _each(make: Callable[[list], Any], values: list, kind: str, start: int) -> Any:
    """make(values); if one of them is bad, says which."""
    try:
        return make(values)
    except BadExample as error:
        for i, value in enumerate(values):
            try:
                make([value])
            except BadExample as own:
                reason = own.__cause__ or own  # without the op that noticed
                raise BadInput(f"embed_{kind}: {kind} {start + i}: {reason}") from own
        raise BadInput(f"embed_{kind}: {error}") from error


def _check_list(what: str, values: Any, singles: tuple[type, ...]) -> None:
    """One picture or text alone is a mistake that would otherwise be many."""
    if isinstance(values, (str, *singles)) or not isinstance(values, Sequence | np.ndarray):
        shown = repr(values)
        shown = shown if len(shown) <= _MAX_SHOWN else type(values).__name__
        raise BadInput(f"{what}: expected a list, got {shown}; put it in [...]")


def _parts(values: Sequence) -> Iterator[tuple[int, Sequence]]:
    for start in range(0, len(values), _SIZES[-1]):
        yield start, values[start : start + _SIZES[-1]]


def _size(rows: int) -> int:
    return next(size for size in _SIZES if size >= rows)


def _filled(array: np.ndarray, rows: int) -> np.ndarray:
    """With the first row again and again up to `rows`."""
    return np.concatenate([array, np.repeat(array[:1], rows - len(array), axis=0)])
