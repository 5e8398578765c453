"""Ops that paint over, blur or distort: what no box and no matrix can say.

All but cutout make the pictures there and then, uint8, and what follows starts from these.
"""

from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from data.preprocess import Columns, Op
from data.preprocess.draws import Draws
from data.preprocess.image import (
    PLANNED,
    Holes,
    Planned,
    check_probability,
    expect,
    finished,
    is_clip,
)
from mm import registry
from mm.config import BadInput

_GREATEST = 30  # magnitude of RandAugment
_FILL = (128, 128, 128)


@registry.register("op", "cutout")
def cutout(*, size: float = 0.5, p: float = 0.5, value: float = 127.5) -> Op:
    """Paints a random square with probability p (DeVries and Taylor, "Cutout", 2017).

    size: its side, as a share of the picture's shorter one. It may stick out. value: in 0 .. 255;
    colour ops change it too.
    """
    check_probability(p)
    if not 0 < size <= 1:
        raise BadInput(f"size={size}: expected 0 .. 1, a share of the picture's side")

    def apply(columns: Columns, draws: Draws) -> Columns:
        image = expect(columns, Planned, PLANNED)
        on, y, x = draws.uniform(3)
        height, width = image.shape
        side = round(size * min(height, width))
        first = np.round(np.stack([y * height, x * width], 1) - side / 2).astype(np.int64)
        corners = np.concatenate([np.maximum(first, 0), first + side], axis=1)
        corners = np.where(on[:, None] < p, corners, 0)
        return columns | {"image": image._replace(holes=(*image.holes, Holes(corners, value)))}

    return Op(apply)


@registry.register("op", "blur")
def blur(*, sigma: tuple[float, ...] = (0.1, 2.0), p: float = 0.5) -> Op:
    """Blurs by a Gaussian with probability p (Chen et al., "SimCLR", 2020, appendix A).

    sigma: least and greatest standard deviation, in pixels of the result, drawn uniformly. The
    kernel ends at three of them; beyond the edges the picture is mirrored.
    """
    check_probability(p)
    if len(sigma) != 2 or not 0 < sigma[0] <= sigma[1]:
        raise BadInput(f"sigma={sigma}: expected (least, greatest), above 0")

    def apply(columns: Columns, draws: Draws) -> Columns:
        pixels = _pixels(columns)
        on, u = draws.uniform(2).astype(np.float64)
        for i in np.flatnonzero(on < p):
            width = sigma[0] + u[i] * (sigma[1] - sigma[0])
            side = 2 * int(np.ceil(3 * width)) + 1
            cv2.GaussianBlur(pixels[i], (side, side), width, pixels[i], width)
        return columns | {"image": finished(pixels)}

    return Op(apply)


@registry.register("op", "solarize")
def solarize(*, threshold: int = 128, p: float = 0.2) -> Op:
    """Inverts what is at least `threshold`, with probability p (Grill et al., "BYOL", 2020)."""
    check_probability(p)
    if not 0 <= threshold <= 255:
        raise BadInput(f"threshold={threshold}: expected 0 .. 255")
    values = np.arange(256)
    table = np.where(values < threshold, values, 255 - values).astype(np.uint8)

    def apply(columns: Columns, draws: Draws) -> Columns:
        pixels = _pixels(columns)
        for i in np.flatnonzero(draws.uniform(1)[0] < p):
            cv2.LUT(pixels[i], table, pixels[i])
        return columns | {"image": finished(pixels)}

    return Op(apply)


@registry.register("op", "rand_augment")
def rand_augment(*, num_ops: int = 2, magnitude: float = 9.0) -> Op:
    """Distorts by num_ops of 14 ops, drawn for each picture (Cubuk et al., "RandAugment", 2020).

    magnitude: 0 .. 30, how strong; ranges as in AutoAugment: shear 0.3, shift 150/331 of a side,
    turn 30 degrees, posterize to 4 bits, solarize all, 0.9 more or less of colour, contrast,
    brightness or sharpness. Directions are drawn. What is shown from beyond the edges is grey 128.
    """
    if num_ops < 1 or not 0 <= magnitude <= _GREATEST:
        raise BadInput(
            f"num_ops={num_ops}, magnitude={magnitude}: expected at least 1, and 0 .. {_GREATEST}"
        )
    share = magnitude / _GREATEST
    count = len(DISTORTIONS)

    def apply(columns: Columns, draws: Draws) -> Columns:
        pixels = _pixels(columns)
        u = draws.uniform(2 * num_ops)
        chosen = (u[0::2] * count).astype(int).T.tolist()
        amounts = np.where(u[1::2] < 0.5, -share, share).T.tolist()
        names = list(DISTORTIONS)
        for i, row in enumerate(chosen):
            image = Image.fromarray(pixels[i])
            for op, amount in zip(row, amounts[i], strict=True):
                image = DISTORTIONS[names[op]](image, amount)
            pixels[i] = image
        return columns | {"image": finished(pixels)}

    return Op(apply)


def _affine(a: float, b: float, c: float, d: float, e: float, f: float) -> tuple:
    """How PIL wants the map from a new place to an old one: x = a x' + b y' + c, y = d x' + ..."""
    return Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR


def _moved(image: Image.Image, affine: tuple) -> Image.Image:
    return image.transform(image.size, *affine, fillcolor=_FILL)


_SHEAR, _SHIFT, _DEGREES, _BITS, _ENHANCE = 0.3, 150 / 331, 30, 4, 0.9

# (picture, amount in -1 .. 1) -> picture; the sign is the direction of those that have one.
DISTORTIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, _: image,
    "auto_contrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "rotate": lambda image, x: image.rotate(
        _DEGREES * x, Image.Resampling.BILINEAR, fillcolor=_FILL
    ),
    "solarize": lambda image, x: ImageOps.solarize(image, round(256 * (1 - abs(x)))),
    "posterize": lambda image, x: ImageOps.posterize(image, 8 - round(_BITS * abs(x))),
    "color": lambda image, x: ImageEnhance.Color(image).enhance(1 + _ENHANCE * x),
    "contrast": lambda image, x: ImageEnhance.Contrast(image).enhance(1 + _ENHANCE * x),
    "brightness": lambda image, x: ImageEnhance.Brightness(image).enhance(1 + _ENHANCE * x),
    "sharpness": lambda image, x: ImageEnhance.Sharpness(image).enhance(1 + _ENHANCE * x),
    "shear_x": lambda image, x: _moved(image, _affine(1, _SHEAR * x, 0, 0, 1, 0)),
    "shear_y": lambda image, x: _moved(image, _affine(1, 0, 0, _SHEAR * x, 1, 0)),
    "translate_x": lambda image, x: _moved(image, _affine(1, 0, _SHIFT * x * image.width, 0, 1, 0)),
    "translate_y": lambda image, x: _moved(
        image, _affine(1, 0, 0, 0, 1, _SHIFT * x * image.height)
    ),
}


def _pixels(columns: Columns) -> np.ndarray:
    """The pictures as far as they are planned, uint8 [b, height, width, 3]."""
    image = expect(columns, Planned, PLANNED)
    if is_clip(image.pictures[0]):
        raise BadInput("is for pictures, not for clips")
    return image.make()
