"""Ops on colours: 3 x 3 matrices, multiplied, that reach the pixels once; see `image.Planned`."""

import numpy as np
from jaxtyping import Float32

from data.preprocess import Columns, Op
from data.preprocess.draws import Draws
from data.preprocess.image import PLANNED, Planned, check_probability, expect
from mm import registry
from mm.config import BadInput

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, of red, green, blue
_EYE = np.eye(3, dtype=np.float32)
_GREY = np.tile(_LUMA, (3, 1))  # a colour times this is its grey


@registry.register("op", "color_jitter")
def color_jitter(
    *, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
) -> Op:
    """Multiplies brightness, contrast (about the mean grey) and saturation, in that order.

    Each by a factor uniform in 1 - x .. 1 + x. hue: turns colours about grey by up to this share of
    a full circle (0.5 is all), either way.
    """
    if not all(0 <= value <= 1 for value in (brightness, contrast, saturation)):
        raise BadInput("brightness, contrast and saturation: expected 0 .. 1")
    if not 0 <= hue <= 0.5:
        raise BadInput(f"hue={hue}: expected 0 .. 0.5")
    spread = np.array([brightness, contrast, saturation, hue], np.float32)[:, None]

    def apply(columns: Columns, draws: Draws) -> Columns:
        image = expect(columns, Planned, PLANNED)
        change = (2 * draws.uniform(4) - 1) * spread
        bright, contrasted, saturated = (1 + change[:3])[:, :, None, None]
        image = _recolor(image, bright * _EYE)
        if contrast:
            image = _recolor(image, contrasted * _EYE, (1 - contrasted) * _GREY)
        if saturation:
            image = _recolor(image, _saturate(saturated))
        if hue:
            image = _recolor(image, _turn_hue(change[3] * np.float32(2 * np.pi)))
        return columns | {"image": image}

    return Op(apply)


@registry.register("op", "grayscale")
def grayscale(*, p: float = 0.1) -> Op:
    """Removes the colour with probability p; at p=1 nothing is drawn."""
    check_probability(p)

    def apply(columns: Columns, draws: Draws) -> Columns:
        image = expect(columns, Planned, PLANNED)
        keep = np.zeros(len(image.pictures)) if p == 1 else draws.uniform(1)[0] >= p
        matrix = _saturate(keep.astype(np.float32)[:, None, None])
        return columns | {"image": _recolor(image, matrix)}

    return Op(apply)


@registry.register("op", "mix_channels")
def mix_channels(*, strength: float, p: float = 1.0) -> Op:
    """With probability p, multiplies RGB by a random matrix: the identity plus uniform noise.

    strength: the noise is in -strength .. strength. Grey stays as it is, so white stays white.
    """
    check_probability(p)

    def apply(columns: Columns, draws: Draws) -> Columns:
        image = expect(columns, Planned, PLANNED)
        noise = ((2 * draws.uniform(9) - 1) * np.float32(strength)).T.reshape(-1, 3, 3)
        noise = noise - noise.mean(axis=2, keepdims=True)
        on = (draws.uniform(1)[0] < p).astype(np.float32)
        return columns | {"image": _recolor(image, _EYE + on[:, None, None] * noise)}

    return Op(apply)


def _recolor(
    image: Planned,
    matrix: Float32[np.ndarray, "b 3 3"],
    around: Float32[np.ndarray, "b 3 3"] | None = None,
) -> Planned:
    """p -> matrix @ p + around @ m after what `image` does already, m being the mean by then."""
    first, before = image.matrix, image.around
    if first is None:
        return image._replace(matrix=matrix, around=around)
    new = None if before is None else _product(matrix, before)
    if around is not None:
        new = _product(around, first if before is None else first + before) + (
            0 if new is None else new
        )
    return image._replace(matrix=_product(matrix, first), around=new)


def _product(a: Float32[np.ndarray, "b 3 3"], b: Float32[np.ndarray, "b 3 3"]) -> np.ndarray:
    """a @ b, not by matmul: on so small ones, its order of additions may depend on how many."""
    return (a[:, :, :, None] * b[:, None, :, :]).sum(axis=2)


def _saturate(factor: Float32[np.ndarray, "b 1 1"]) -> Float32[np.ndarray, "b 3 3"]:
    """Blends each colour with its grey; factor 0 is grey, 1 is no change."""
    return factor * _EYE + (1 - factor) * _GREY


def _turn_hue(angle: Float32[np.ndarray, " b"]) -> Float32[np.ndarray, "b 3 3"]:
    """Rotations of RGB about the grey axis (Rodrigues' formula)."""
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], np.float32) / np.float32(3**0.5)
    return cos * _EYE + sin * cross + (1 - cos) / 3
