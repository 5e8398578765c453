"""How the pixels of a box in a picture become those of the result, antialiased.

`exact` is Pillow's resize. `quick` takes a third of its time and is within 1/255 of it on average:
bilinear sampling weighs by a triangle one pixel wide; after a blur by a, 1 - 2a, a the weights
spread like Pillow's triangle, which is as wide as a step, where a = (step^2 - 1) / 12 (and equal
it at 2). What longer steps need is left out before: of a JPEG while it is decoded.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from data.sources.pictures import MAX_RATIO, Jpeg

cv2.setNumThreads(0)  # the loader's workers are the threads

Picture = Jpeg | UInt8[np.ndarray, "h w 3"]
Draw = Callable[[int, UInt8[np.ndarray, "height width 3"]], None]  # puts picture i where it says
MANY_PIXELS = 128  # of a side of a box: half of one more or less is nothing to see
_FAINT = 1 / 512  # a blur by less changes no uint8
_LONGEST = 5**0.5  # step for which a = 1/3: with more, the middle would weigh least


class Filter(NamedTuple):
    """method: "bilinear" or "bicubic". exact: as Pillow, to the bit."""

    method: str = "bilinear"
    antialias: bool = True
    exact: bool = False


class _Work(NamedTuple):
    """Of each picture its sides, where the box begins and the step to the next new pixel, in pixels
    of the picture; a step is negative where the box is mirrored."""

    pictures: list[Picture]
    sides: Float[np.ndarray, "b 2"]
    first: Float[np.ndarray, "b 2"]
    step: Float[np.ndarray, "b 2"]
    size: tuple[int, int]
    filter: Filter
    outside: float | None


def sampler(
    pictures: list[Picture],
    boxes: Float[np.ndarray, "b 4"],
    size: tuple[int, int],
    filter: Filter,
    outside: float | None,
) -> Draw:
    """What draws picture i: its box, y0 x0 y1 x1 as fractions of it; x1 < x0 is mirrored.

    outside: the value beyond the picture's edges; None repeats what is at the edge (and `exact`
    has no such boxes then). Drawing raises BadExample where a picture cannot be decoded.
    """
    sides = np.array([picture.shape[:2] for picture in pictures], boxes.dtype)
    first = boxes[:, :2] * sides
    step = (boxes[:, 2:] * sides - first) / np.array(size, boxes.dtype)
    # Pixels that only move are copied.
    still = (sides == size).all(1) & (step[:, 0] == 1) & (np.abs(step[:, 1]) == 1)
    still &= (first == np.where(step > 0, 0, sides)).all(1)
    work = _Work(pictures, sides, first, step, size, filter, outside)
    draw = _exact(work) if filter.exact else _quick(work)

    def copy_or_draw(i: int, out: UInt8[np.ndarray, "height width 3"]) -> None:
        if still[i] and not isinstance(pictures[i], Jpeg):
            out[...] = pictures[i] if step[i, 1] > 0 else pictures[i][:, ::-1]
        else:
            draw(i, out)

    return copy_or_draw


def _quick(work: _Work) -> Draw:
    pictures, sides, first, step, size, filter, outside = work
    wide = np.maximum(np.abs(step), 1)
    spread = np.zeros_like(wide)  # variance of the weights so far, in pixels of the picture
    ratios, factors = [1] * len(pictures), np.ones(wide.shape, int)
    if filter.antialias:
        if any(isinstance(picture, Jpeg) for picture in pictures):
            powers = np.log2(np.minimum(wide.min(axis=1), MAX_RATIO)).astype(int)
            ratio = np.where([isinstance(picture, Jpeg) for picture in pictures], 2**powers, 1)
            ratios = ratio.tolist()
            ratio = ratio[:, None].astype(wide.dtype)
            sides, first, step = np.ceil(sides / ratio), first / ratio, step / ratio
            wide, spread = np.maximum(np.abs(step), 1), (1 - 1 / ratio**2) / 12
        factors = np.ceil(wide / _LONGEST).astype(int)
    low, high = _windows(sides, first, step, size, wide + 2, factors)
    # The mean of n pixels has the variance (n^2 - 1) / 12, a triangle of half-width w w^2 / 6.
    missing = (wide**2 - 1) / 6 - spread - (factors**2 - 1) / 12 - (factors**2 - 1) / 6
    weights = np.clip(missing / factors**2 / 2, 0, 1 / 3) * filter.antialias
    weights = weights.astype(np.float32)
    kernels = np.stack([weights, 1 - 2 * weights, weights], axis=2)
    blurred = (weights > _FAINT).any(axis=1).tolist()

    small = -(-(high - low) // factors)
    scale = (small / (high - low)).astype(step.dtype)
    first, step = (first - low) * scale, step * scale
    # From the index of a new pixel to that of an old one; pixels are counted at their centres.
    maps = np.zeros((len(pictures), 2, 3))
    maps[:, 0, 0], maps[:, 1, 1] = step[:, 1], step[:, 0]
    maps[:, :, 2] = (first + step / 2 - step.dtype.type(0.5))[:, ::-1]
    flags = cv2.INTER_CUBIC if filter.method == "bicubic" else cv2.INTER_LINEAR
    flags |= cv2.WARP_INVERSE_MAP
    border = cv2.BORDER_REPLICATE if outside is None else cv2.BORDER_CONSTANT
    color, shape = (outside or 0.0,) * 3, size[::-1]
    windows = np.concatenate([low, high], axis=1).tolist()
    # A large box of whole pixels may be cut out first: what lies beyond it weighs in the outermost
    # row alone, and `resize` takes two thirds of the time.
    ends = np.stack([first, first + step * size], axis=1)
    edges, mirrored = np.round(np.sort(ends, axis=1)), (step[:, 1] < 0).tolist()
    whole = (np.abs(np.round(ends) - ends) < 1e-3).all((1, 2)) & (step[:, 0] > 0)
    whole &= (edges[:, 0] >= 0).all(axis=1) & (edges[:, 1] <= small).all(axis=1)
    whole &= (edges[:, 1] - edges[:, 0] >= MANY_PIXELS).all(axis=1)
    whole &= filter.method == "bilinear"
    whole, edges = whole.tolist(), edges.astype(int).tolist()
    shrunk, small = (factors > 1).any(axis=1).tolist(), small[:, ::-1].tolist()

    def draw(i: int, out: UInt8[np.ndarray, "height width 3"]) -> None:
        part = _part(pictures[i], windows[i], ratios[i])
        if shrunk[i]:
            part = cv2.resize(part, small[i], interpolation=cv2.INTER_AREA)
        if blurred[i]:
            down, right = kernels[i]
            part = cv2.sepFilter2D(part, -1, right, down, borderType=cv2.BORDER_REPLICATE)
        if not whole[i]:
            cv2.warpAffine(part, maps[i], shape, out, flags, border, color)
            return
        (top, left), (bottom, right) = edges[i]
        made = cv2.resize(part[top:bottom, left:right], shape, None if mirrored[i] else out)
        if mirrored[i]:
            cv2.flip(made, 1, out)

    return draw


def _windows(
    sides: Float[np.ndarray, "b 2"],
    first: Float[np.ndarray, "b 2"],
    step: Float[np.ndarray, "b 2"],
    size: tuple[int, int],
    reach: Float[np.ndarray, "b 2"],
    factors: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """low, high, int [b, 2]: which pixels are needed, if it can be, a multiple of the factors."""
    last, sides = first + step * np.array(size, step.dtype), sides.astype(int)
    low = np.floor(np.minimum(first, last) - reach).astype(int)
    high = np.ceil(np.maximum(first, last) + reach).astype(int)
    high += (low - high) % factors
    low = np.clip(low, 0, sides - 1)
    high = np.clip(high, low + 1, sides)
    # OpenCV takes means of whole blocks in a fraction of the time.
    low -= np.minimum((low - high) % factors, low)
    return low, high


def _part(picture: Picture, window: list[int], ratio: int = 1) -> UInt8[np.ndarray, "h w 3"]:
    top, left, bottom, right = window
    if isinstance(picture, Jpeg):
        return picture.decode(top, left, bottom, right, ratio)
    return picture[top:bottom, left:right]


def _exact(work: _Work) -> Draw:
    pictures, sides, first, step, size, filter, outside = work
    method = Image.Resampling[filter.method.upper()]
    mirrored = step[:, 1] < 0
    first = np.minimum(first, first + step * size)
    step = np.abs(step)
    # The rows and columns of the result that lie on the picture, and the box that they show.
    start = np.clip(np.round(-first / step), 0, size).astype(int)
    stop = np.clip(np.round((sides - first) / step), start, size).astype(int)
    ends = np.clip(np.stack([first + start * step, first + stop * step]), 0, sides)
    reach = np.ceil(2 * np.maximum(step, 1)) + 1  # two steps: bicubic
    low = np.maximum(np.floor(ends[0] - reach), 0).astype(int)
    high = np.minimum(np.ceil(ends[1] + reach), sides).astype(int)
    boxes = np.concatenate([ends[0] - low, ends[1] - low], axis=1)[:, [1, 0, 3, 2]].tolist()
    windows = np.concatenate([low, high], axis=1).tolist()

    def draw(i: int, out: UInt8[np.ndarray, "height width 3"]) -> None:
        (top, left), (bottom, right) = start[i].tolist(), stop[i].tolist()
        whole = (bottom - top, right - left) == size
        if not whole:
            out[...] = round(outside or 0.0)
        if bottom > top and right > left:
            part = Image.fromarray(_part(pictures[i], windows[i]))
            part = part.resize((right - left, bottom - top), method, boxes[i])
            out[top:bottom, left:right] = part
        if mirrored[i]:
            out[...] = out[:, ::-1].copy()

    return draw
