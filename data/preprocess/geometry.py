"""Ops on the shape of a picture: which part of it becomes how large."""

from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

from data.preprocess import Columns, Op
from data.preprocess.draws import Draws
from data.preprocess.image import (
    ENCODED,
    PLANNED,
    Encoded,
    Planned,
    check_probability,
    expect,
    is_clip,
    opened,
)
from data.preprocess.sampling import MANY_PIXELS, Filter, Picture
from data.sources import BadExample
from data.sources.pictures import Jpeg
from mm import registry
from mm.config import BadInput

Method = Literal["bilinear", "bicubic"]
_WHOLE = np.array([0.0, 0.0, 1.0, 1.0])


@registry.register("op", "pad")
def pad(*, share: float, value: float = 255.0) -> Op:
    """Puts a margin around the picture: `share` of its side on each edge, of one grey value."""
    if not 0 < share <= 1 or not 0 <= value <= 255:
        raise BadInput(f"share={share}, value={value}: expected 0 .. 1 and 0 .. 255")

    def apply(columns: Columns, draws: Draws) -> Columns:
        image = expect(columns, Encoded, ENCODED)
        return columns | {"image": image._replace(margin=share, outside=value)}

    return Op(apply)


@registry.register("op", "resize")
def resize(
    *,
    size: int | tuple[int, ...],
    mode: Literal["squash", "shortest", "letterbox"] = "squash",
    antialias: bool = True,
    method: Method = "bilinear",
    value: float = 127.5,
) -> Op:
    """Resizes the whole picture, by Pillow with antialiasing, or by OpenCV without.

    size: (height, width), or a number for both. mode: "squash" makes exactly that of it;
    "letterbox" the largest that fits in with its ratio kept, in the middle of the grey `value`;
    "shortest" makes the shorter side `size` (one number) and keeps the ratio, the longer side
    rounded down: before center_crop or random_crop, as CLIP does.
    """
    shape = _shape(size)
    if mode == "shortest" and not isinstance(size, int):
        raise BadInput(f"size={size}: expected one number with mode='shortest'")
    if not 0 <= value <= 255:
        raise BadInput(f"value={value}: expected 0 .. 255")
    filter = Filter(method, antialias, exact=antialias)

    def apply(columns: Columns, draws: Draws) -> Columns:
        image = expect(columns, Encoded, "after decode, and only once")
        pictures = _padded(image)
        sides = np.array([picture.shape[-3:-1] for picture in pictures])
        boxes = np.tile(_WHOLE, (len(pictures), 1))
        plan = Planned(pictures, boxes, shape, filter=filter)
        if mode == "shortest":
            plan = plan._replace(size=size * sides // sides.min(axis=1, keepdims=True))
        if mode == "letterbox":
            scale = (np.array(shape) / sides).min(axis=1, keepdims=True)
            inner = np.maximum(np.round(sides * scale).astype(int), 1)
            start = -((shape - inner) // 2) / inner
            boxes = np.concatenate([start, start + np.array(shape) / inner], axis=1)
            plan = plan._replace(boxes=boxes, margin=1.0, outside=value)
        return columns | {"image": plan}

    return Op(apply)


@registry.register("op", "center_crop")
def center_crop(*, size: int | tuple[int, ...]) -> Op:
    """Cuts the middle out, after resize(mode="shortest"), or of pictures that are large enough.

    size: (height, width) in pixels, or a number for both. What has half a pixel to share out goes
    to the even place, as in torchvision.
    """
    shape = _shape(size)

    def apply(columns: Columns, draws: Draws) -> Columns:
        image, room = _croppable(columns, shape)
        return columns | {"image": _cropped(image, np.round(room / 2).astype(int), shape)}

    return Op(apply)


@registry.register("op", "random_crop")
def random_crop(*, size: int | tuple[int, ...]) -> Op:
    """Cuts a random place out, after resize(mode="shortest"), or of pictures that are large enough.

    size: (height, width) in pixels, or a number for both. All places are as likely.
    """
    shape = _shape(size)

    def apply(columns: Columns, draws: Draws) -> Columns:
        image, room = _croppable(columns, shape)
        start = (draws.uniform(2).T.astype(np.float64) * (room + 1)).astype(int)
        return columns | {"image": _cropped(image, start, shape)}

    return Op(apply)


@registry.register("op", "random_resized_crop")
def random_resized_crop(
    *,
    size: int | tuple[int, ...],
    scale: tuple[float, ...] = (0.5, 1.0),
    ratio: tuple[float, ...] = (3 / 4, 4 / 3),
    method: Method = "bilinear",
) -> Op:
    """Resizes a random part to `size` (Szegedy et al., "Going deeper", 2014), antialiased.

    size: (height, width), or a number for both. scale: least and greatest share of the picture's
    area, drawn uniformly. ratio: least and greatest width / height of the part in pixels, drawn
    uniformly in the logarithm. Where the picture is too narrow for a part of that area, the ratio
    is the nearest that fits; a side that would stick out of a square, too, is cut. So no draw is
    ever rejected. method: "bilinear" is within 1/255 of Pillow's in a third of its time, "bicubic"
    is Pillow's.
    """
    shape = _shape(size)
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise BadInput(f"scale={scale}: expected (least, greatest) within 0 .. 1")
    if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]:
        raise BadInput(f"ratio={ratio}: expected (least, greatest), above 0")
    low, high = np.log(ratio)
    filter = Filter(method, exact=method == "bicubic")

    def apply(columns: Columns, draws: Draws) -> Columns:
        image = expect(columns, Encoded, "after decode, and only once")
        u = draws.uniform(4).astype(np.float64)
        area = scale[0] + u[0] * (scale[1] - scale[0])
        if filter.exact:
            image = Encoded(_padded(image))
        pictures = opened(image)
        own = np.array([picture.shape[-2] / picture.shape[-3] for picture in pictures])
        drawn = np.exp(low + u[1] * (high - low))
        # Of the sides' shares, and no further from 1 than fits, or than in a square picture.
        aspect = np.clip(drawn / own, np.minimum(area, drawn), np.maximum(1 / area, drawn))
        height = np.minimum(np.sqrt(area / aspect), 1.0)
        width = np.minimum(np.sqrt(area * aspect), 1.0)
        top, left = u[2] * (1.0 - height), u[3] * (1.0 - width)
        boxes = np.stack([top, left, top + height, left + width], axis=1).astype(np.float32)
        margin = np.float32(image.margin)
        boxes = _between_pixels(boxes * (1 + 2 * margin) - margin, pictures)
        plan = Planned(pictures, boxes, shape, (), None, None, image.margin, image.outside, filter)
        return columns | {"image": plan}

    return Op(apply)


def _between_pixels(
    boxes: Float[np.ndarray, "b 4"], pictures: list[Picture]
) -> Float[np.ndarray, "b 4"]:
    """Boxes of many pixels end between two of them: they are read faster, and hardly moved."""
    sides = np.array([picture.shape[-3:-1] * 2 for picture in pictures], np.float64)
    edges = np.round(boxes * sides)
    many = (edges[:, 2:] - edges[:, :2] >= MANY_PIXELS).all(axis=1, keepdims=True)
    return np.where(many, edges / sides, boxes).astype(boxes.dtype)


@registry.register("op", "flip")
def flip(*, p: float = 0.5) -> Op:
    """Mirrors left and right with probability p."""
    check_probability(p)

    def apply(columns: Columns, draws: Draws) -> Columns:
        image = expect(columns, Planned, PLANNED)
        mirrored = image.boxes[:, [0, 3, 2, 1]]
        boxes = np.where(draws.uniform(1)[0, :, None] < p, mirrored, image.boxes)
        return columns | {"image": image._replace(boxes=boxes)}

    return Op(apply)


def _shape(size: int | tuple[int, ...]) -> tuple[int, int]:
    """Height and width."""
    shape = (size, size) if isinstance(size, int) else size
    if len(shape) != 2 or min(shape) < 1:
        raise BadInput(f"size={size}: expected at least 1, or (height, width)")
    return shape


def _padded(image: Encoded) -> list[Picture]:
    """The pictures, with their margins as pixels."""
    pictures = opened(image)
    if not image.margin:
        return pictures
    return [_with_margin(picture, image.margin, image.outside) for picture in pictures]


def _with_margin(picture: Picture, margin: float, value: float) -> UInt8[np.ndarray, "h w 3"]:
    height, width = (round(margin * side) for side in picture.shape[-3:-1])
    if isinstance(picture, Jpeg):
        picture = picture.decode(0, 0, picture.height, picture.width)
    edges = ((height, height), (width, width), (0, 0))
    if is_clip(picture):
        edges = ((0, 0), *edges)
    return np.pad(picture, edges, constant_values=round(value))


def _croppable(columns: Columns, shape: tuple[int, int]) -> tuple[Planned, np.ndarray]:
    """The plan, and how many rows and columns [b, 2] of each picture are too many."""
    image = expect(columns, Encoded | Planned, "after decode, before value_range or normalize")
    if isinstance(image, Planned) and (image.holes or image.around is not None):
        raise BadInput("belongs before cutout and color_jitter")
    whole = isinstance(image, Encoded)
    if whole:
        pictures = _padded(image)
        boxes = np.tile(_WHOLE, (len(pictures), 1))
        sizes = np.array([picture.shape[-3:-1] for picture in pictures])
        image = Planned(pictures, boxes, sizes, filter=Filter(exact=True))
    sizes = np.broadcast_to(image.size, (len(image.pictures), 2))
    room = sizes - shape
    if (room < 0).any():
        height, width = sizes[(room < 0).any(axis=1)][0]
        message = f"a picture of {height} x {width} is smaller than {shape[0]} x {shape[1]}"
        if whole:
            raise BadExample(f"{message}; put resize before", "picture is smaller than its crop")
        raise BadInput(f"{message}; make it larger in resize")
    return image, room


def _cropped(image: Planned, start: Float[np.ndarray, "b 2"], shape: tuple[int, int]) -> Planned:
    """What is left of the plan of boxes from `start`, [b, 2] in pixels of the result."""
    sizes = np.broadcast_to(image.size, (len(image.pictures), 2))
    first, last = image.boxes[:, :2], image.boxes[:, 2:]
    ends = [first + (last - first) * (at / sizes) for at in (start, start + shape)]
    return image._replace(boxes=np.concatenate(ends, axis=1), size=shape)
