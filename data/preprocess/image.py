"""Ops on pictures.

A picture is made lazily: every pass over the pixels costs as much as all that is decided about
them. Cropping and flipping only move the corners of a box, colour ops multiply 3 x 3 matrices, and
`value_range`, the last op, takes a few pictures at a time from encoded bytes to numbers while they
are in a core's cache. Until there a value is in 0 .. 255.
"""

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from data.preprocess import Columns, Op
from data.preprocess.draws import Draws
from data.sources.pictures import decode as decode_picture
from mm import registry
from mm.config import BadInput

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, of red, green, blue
_EYE = np.eye(3, dtype=np.float32)
_GREY = np.tile(_LUMA, (3, 1))  # a colour times this is its grey
_BLOCK = 16  # pictures at a time; at 64 x 64 pixels, their floats take 0.8 MB


class Encoded(NamedTuple):
    """Encoded bytes, or decoded uint8 [3, h, w]; one a picture.

    margin: how far the picture goes on beyond each edge, as a share of its side, in the value
    `outside` (0 .. 255).
    """

    pictures: list
    margin: float = 0.0
    outside: float = 0.0


class Planned(NamedTuple):
    """How to make pictures [b, size, size, 3].

    boxes: float32 [b, 4], y0 x0 y1 x1 as fractions of the picture; x1 < x0 is mirrored. holes: what
    is painted over, before any colour. A colour p becomes matrix @ p + around @ m, where m is the
    picture's mean colour. Boxes may reach `margin` beyond the edges, where the value is `outside`.
    """

    pictures: list
    boxes: Float32[np.ndarray, "b 4"]
    size: int
    holes: "tuple[Holes, ...]"
    matrix: Float32[np.ndarray, "b 3 3"]
    around: Float32[np.ndarray, "b 3 3"] | None = None
    margin: float = 0.0
    outside: float = 0.0


class Holes(NamedTuple):
    """corners: int [b, 4], y0 x0 y1 x1 in pixels of the result; empty where y1 is 0."""

    corners: Int64[np.ndarray, "b 4"]
    value: float


@registry.register("op", "decode")
def decode(*, key: str = "image") -> Op:
    """Starts `image` from the encoded (PNG, JPEG, ...) picture in the field `key`, as RGB."""

    def apply(columns: Columns, draws: Draws) -> Columns:
        return columns | {"image": Encoded(columns[key])}

    return Op(apply, reads=(key,))


@registry.register("op", "pad")
def pad(*, share: float, value: float = 255.0) -> Op:
    """Puts a margin around the picture: `share` of its side on each edge, of one grey value."""
    if not 0 < share <= 1 or not 0 <= value <= 255:
        raise BadInput(f"share={share}, value={value}: expected 0 .. 1 and 0 .. 255")

    def apply(columns: Columns, draws: Draws) -> Columns:
        image = _expect(columns, Encoded, "after decode, before resize or random_resized_crop")
        return columns | {"image": image._replace(margin=share, outside=value)}

    return Op(apply)


@registry.register("op", "resize")
def resize(*, size: int) -> Op:
    """Squashes the whole picture to size x size."""
    _check_size(size)

    def apply(columns: Columns, draws: Draws) -> Columns:
        image = _expect(columns, Encoded, "after decode, and only once")
        boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (len(image.pictures), 1))
        return columns | {"image": _plan(image, boxes, size)}

    return Op(apply)


@registry.register("op", "random_resized_crop")
def random_resized_crop(
    *,
    size: int,
    scale: tuple[float, ...] = (0.5, 1.0),
    ratio: tuple[float, ...] = (3 / 4, 4 / 3),
) -> Op:
    """Resizes a random part to size x size (Szegedy et al., "Going deeper", 2014).

    scale: least and greatest share of the picture's area, drawn uniformly. ratio: least and
    greatest width / height relative to the picture's, drawn uniformly in the logarithm. A side that
    would stick out is cut to the picture, so no draw is ever rejected.
    """
    _check_size(size)
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise BadInput(f"scale={scale}: expected (least, greatest) within 0 .. 1")
    if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]:
        raise BadInput(f"ratio={ratio}: expected (least, greatest), above 0")
    low, high = np.log(ratio)

    def apply(columns: Columns, draws: Draws) -> Columns:
        image = _expect(columns, Encoded, "after decode, and only once")
        u = draws.uniform(4).astype(np.float64)
        area = scale[0] + u[0] * (scale[1] - scale[0])
        aspect = np.exp(low + u[1] * (high - low))
        height = np.minimum(np.sqrt(area / aspect), 1.0)
        width = np.minimum(np.sqrt(area * aspect), 1.0)
        top, left = u[2] * (1.0 - height), u[3] * (1.0 - width)
        boxes = np.stack([top, left, top + height, left + width], axis=1).astype(np.float32)
        return columns | {"image": _plan(image, boxes, size)}

    return Op(apply)


@registry.register("op", "flip")
def flip(*, p: float = 0.5) -> Op:
    """Mirrors left and right with probability p."""
    _check_probability(p)

    def apply(columns: Columns, draws: Draws) -> Columns:
        image = _expect(columns, Planned, _PLANNED)
        mirrored = image.boxes[:, [0, 3, 2, 1]]
        boxes = np.where(draws.uniform(1)[0, :, None] < p, mirrored, image.boxes)
        return columns | {"image": image._replace(boxes=boxes)}

    return Op(apply)


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
        image = _expect(columns, Planned, _PLANNED)
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
    """Removes the colour with probability p."""
    _check_probability(p)

    def apply(columns: Columns, draws: Draws) -> Columns:
        image = _expect(columns, Planned, _PLANNED)
        keep = (draws.uniform(1)[0] >= p).astype(np.float32)[:, None, None]
        return columns | {"image": _recolor(image, _saturate(keep))}

    return Op(apply)


@registry.register("op", "mix_channels")
def mix_channels(*, strength: float, p: float = 1.0) -> Op:
    """With probability p, multiplies RGB by a random matrix: the identity plus uniform noise.

    strength: the noise is in -strength .. strength. Grey stays as it is, so white stays white.
    """
    _check_probability(p)

    def apply(columns: Columns, draws: Draws) -> Columns:
        image = _expect(columns, Planned, _PLANNED)
        noise = ((2 * draws.uniform(9) - 1) * np.float32(strength)).T.reshape(-1, 3, 3)
        noise = noise - noise.mean(axis=2, keepdims=True)
        on = (draws.uniform(1)[0] < p).astype(np.float32)
        return columns | {"image": _recolor(image, _EYE + on[:, None, None] * noise)}

    return Op(apply)


@registry.register("op", "cutout")
def cutout(*, size: float = 0.5, p: float = 0.5, value: float = 127.5) -> Op:
    """Paints a random square with probability p (DeVries and Taylor, "Cutout", 2017).

    size: its side, as a share of the picture's. It may stick out. value: in 0 .. 255; colour ops
    change it too.
    """
    _check_probability(p)
    if not 0 < size <= 1:
        raise BadInput(f"size={size}: expected 0 .. 1, a share of the picture's side")

    def apply(columns: Columns, draws: Draws) -> Columns:
        image = _expect(columns, Planned, _PLANNED)
        on, y, x = draws.uniform(3)
        side = round(size * image.size)
        first = np.round(np.stack([y, x], 1) * image.size - side / 2).astype(np.int64)
        corners = np.concatenate([np.maximum(first, 0), first + side], axis=1)
        corners = np.where(on[:, None] < p, corners, 0)
        return columns | {"image": image._replace(holes=(*image.holes, Holes(corners, value)))}

    return Op(apply)


@registry.register("op", "value_range")
def value_range(*, low: float, high: float) -> Op:
    """Maps 0 .. 255 to low .. high and clips; `image` is float32 [b, size, size, 3] from here."""
    if not low < high:
        raise BadInput(f"low={low}, high={high}: expected low < high")

    def apply(columns: Columns, draws: Draws) -> Columns:
        return columns | {"image": _make(_expect(columns, Planned, _PLANNED), low, high)}

    return Op(apply)


def _check_size(size: int) -> None:
    if size < 1:
        raise BadInput(f"size={size}: expected at least 1")


def _check_probability(p: float) -> None:
    if not 0 <= p <= 1:
        raise BadInput(f"p={p}: expected 0 .. 1")


def _expect(columns: Columns, kind: type, place: str) -> Any:
    image = columns.get("image")
    if not isinstance(image, kind):
        raise BadInput(f"belongs {place}")
    return image


_PLANNED = "after resize or random_resized_crop, before value_range"


def _plan(image: Encoded, boxes: Float32[np.ndarray, "b 4"], size: int) -> Planned:
    """boxes: of the picture with its margin."""
    matrix = np.broadcast_to(_EYE, (len(image.pictures), 3, 3))
    margin = np.float32(image.margin)
    boxes = boxes * (1 + 2 * margin) - margin
    return Planned(image.pictures, boxes, size, (), matrix, None, image.margin, image.outside)


def _recolor(
    image: Planned,
    matrix: Float32[np.ndarray, "b 3 3"],
    around: Float32[np.ndarray, "b 3 3"] | None = None,
) -> Planned:
    """p -> matrix @ p + around @ m after what `image` does already, m being the mean by then."""
    before = image.around
    new = None if before is None else _product(matrix, before)
    if around is not None:
        mean = image.matrix if before is None else image.matrix + before
        new = _product(around, mean) + (0 if new is None else new)
    return image._replace(matrix=_product(matrix, image.matrix), around=new)


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


def _make(image: Planned, low: float, high: float) -> Float32[np.ndarray, "b size size 3"]:
    """Resizes bilinearly with antialiasing (as PIL's filters do), colours and scales.

    Resizing is linear in rows and in columns, so it is two small matrix products a picture;
    pictures of one shape go together.
    """
    decoded = [decode_picture(p) if isinstance(p, bytes) else p for p in image.pictures]
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, picture in enumerate(decoded):
        by_shape[picture.shape].append(index)
    if len(by_shape) == 1:
        return _make_alike(decoded, image, low, high)
    done = np.empty((len(decoded), image.size, image.size, 3), np.float32)
    for members in by_shape.values():
        some = image._replace(
            boxes=image.boxes[members],
            holes=tuple(Holes(corners[members], value) for corners, value in image.holes),
            matrix=image.matrix[members],
            around=None if image.around is None else image.around[members],
        )
        done[members] = _make_alike([decoded[i] for i in members], some, low, high)
    return done


def _make_alike(
    decoded: list[UInt8[np.ndarray, "3 h w"]], image: Planned, low: float, high: float
) -> Float32[np.ndarray, "b size size 3"]:
    """`_make` for pictures that all have one shape."""
    size, (_, height, width) = image.size, decoded[0].shape
    outside = np.float32(image.outside)
    down = _weights(image.boxes[:, 0::2], height, size, image.margin)
    across = _weights(image.boxes[:, 1::2], width, size, image.margin)
    across = np.ascontiguousarray(across.transpose(0, 2, 1))
    factor = np.float32((high - low) / 255)
    mean_of = np.full(size * size, factor / np.float32(size * size))
    done = np.empty((len(decoded), size, size, 3), np.float32)
    for start in range(0, len(decoded), _BLOCK):
        some = slice(start, start + _BLOCK)
        # What is beyond the picture has no weight, so it counts as zero: let zero be `outside`.
        stack = np.stack(decoded[some]).astype(np.float32) - outside
        tall = stack.reshape(-1, 3 * height, width) @ across[some]
        pixels = down[some, None] @ tall.reshape(-1, 3, height, size)
        pixels += outside
        for corners, value in image.holes:
            _punch(pixels, corners[some], value)
        colors = pixels.reshape(-1, 3, size * size)
        offset = np.float32(low)
        if image.around is not None:
            mean = (colors @ mean_of)[:, None, :]
            offset = offset + (image.around[some] * mean).sum(axis=2, keepdims=True)
        colors = (image.matrix[some] * factor) @ colors
        colors += offset
        np.clip(colors, low, high, out=colors)
        for channel in range(3):  # three times faster than one transposed copy
            done[some, ..., channel] = colors[:, channel].reshape(-1, size, size)
    return done


def _punch(
    pixels: Float32[np.ndarray, "n 3 size size"], corners: Int64[np.ndarray, "n 4"], value: float
) -> None:
    """Paints a hole into each picture."""
    for picture, (top, left, bottom, right) in zip(pixels, corners, strict=True):
        picture[:, top:bottom, left:right] = value


def _weights(
    ends: Float32[np.ndarray, "b 2"], length: int, size: int, margin: float
) -> Float32[np.ndarray, "b size length"]:
    """How much each of `length` pixels counts in each of `size` that cover ends[0] .. ends[1].

    A triangle about the new pixel's centre, as wide as an old or a new pixel, whichever is greater,
    normalized; cut at the picture's edges, before that if there is no margin, else after it.
    """
    first, last = ends[:, :1] * np.float32(length), ends[:, 1:] * np.float32(length)
    step = (last - first) / np.float32(size)  # negative if mirrored
    radius = np.maximum(np.abs(step), 1)
    centers = first + (np.arange(size, dtype=np.float32) + np.float32(0.5)) * step
    # Only so many pixels in a row can count: the rest of the matrix stays zero.
    count = int(2 * max((1 + 2 * margin) * length / size, 1)) + 2
    start = np.ceil(centers - radius - np.float32(0.5)).astype(np.int64)

    def triangle(index: Int64[np.ndarray, "b size n"]) -> np.ndarray:
        away = centers[:, :, None] - (index.astype(np.float32) + np.float32(0.5))
        return np.maximum(1 - np.abs(away) / radius[:, :, None], 0)

    inside = min(length, count)
    index = np.clip(start, 0, length - inside)[:, :, None] + np.arange(inside)
    near = triangle(index)
    whole = triangle(start[:, :, None] + np.arange(count)) if margin else near
    near /= whole.sum(axis=2, keepdims=True)
    weights = np.zeros((len(ends), size, length), np.float32)
    index += np.arange(len(ends) * size).reshape(-1, size, 1) * length
    weights.reshape(-1)[index] = near
    return weights
