"""Ops on pictures.

A picture is made lazily: every pass over the pixels costs as much as all that is decided about
them. Cropping and flipping only move the corners of a box and colour ops multiply 3 x 3 matrices;
at the end one affine map and one colour matrix make each picture, both by OpenCV on uint8.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, Int64, UInt8
from PIL import Image

from data.preprocess import Columns, Op
from data.preprocess.draws import Draws
from data.sources.pictures import decode as decode_picture
from mm import registry
from mm.config import BadInput

cv2.setNumThreads(0)  # the loader's workers are the threads

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, of red, green, blue
_EYE = np.eye(3, dtype=np.float32)
_GREY = np.tile(_LUMA, (3, 1))  # a colour times this is its grey


class Encoded(NamedTuple):
    """Encoded bytes, or decoded uint8 [h, w, 3]; one a picture. Of clips decoded [t, h, w, 3].

    margin: how far the picture goes on beyond each edge, as a share of its side, in the value
    `outside` (0 .. 255).
    """

    pictures: list
    margin: float = 0.0
    outside: float = 0.0


class Planned(NamedTuple):
    """How to make pictures [b, size, size, 3]; of clips [b, t, size, size, 3], all frames alike.

    boxes: float32 [b, 4], y0 x0 y1 x1 as fractions of the picture; x1 < x0 is mirrored. holes: what
    is painted over, before any colour. A colour p becomes matrix @ p + around @ m, where m is the
    picture's mean colour; None leaves it as it is. Boxes may reach `margin` beyond the edges, where
    the value is `outside`.
    """

    pictures: list
    boxes: Float32[np.ndarray, "b 4"]
    size: int
    holes: "tuple[Holes, ...]" = ()
    matrix: Float32[np.ndarray, "b 3 3"] | None = None
    around: Float32[np.ndarray, "b 3 3"] | None = None
    margin: float = 0.0
    outside: float = 0.0

    def make(self) -> UInt8[np.ndarray, "b *t size size 3"]:
        """The pictures, each by itself: a result does not depend on its neighbours."""
        return _make(self) if self.pictures[0].ndim == 3 else _make_clips(self)


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
    """Squashes the whole picture to size x size: bilinear with antialiasing, by PIL."""
    _check_size(size)

    def apply(columns: Columns, draws: Draws) -> Columns:
        image = _expect(columns, Encoded, "after decode, and only once")
        pictures = [_squash(_decoded(picture), image, size) for picture in image.pictures]
        boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (len(pictures), 1))
        return columns | {"image": Planned(pictures, boxes, size)}

    return Op(apply)


@registry.register("op", "random_resized_crop")
def random_resized_crop(
    *,
    size: int,
    scale: tuple[float, ...] = (0.5, 1.0),
    ratio: tuple[float, ...] = (3 / 4, 4 / 3),
) -> Op:
    """Resizes a random part to size x size (Szegedy et al., "Going deeper", 2014); bilinear.

    scale: least and greatest share of the picture's area, drawn uniformly. ratio: least and
    greatest width / height of the part in pixels, drawn uniformly in the logarithm. Where the
    picture is too narrow for a part of that area, the ratio is the nearest that fits; a side that
    would stick out of a square, too, is cut. So no draw is ever rejected.
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
        pictures = [_decoded(picture) for picture in image.pictures]
        own = np.array([picture.shape[-2] / picture.shape[-3] for picture in pictures])
        drawn = np.exp(low + u[1] * (high - low))
        # Of the sides' shares, and no further from 1 than fits, or than in a square picture.
        aspect = np.clip(drawn / own, np.minimum(area, drawn), np.maximum(1 / area, drawn))
        height = np.minimum(np.sqrt(area / aspect), 1.0)
        width = np.minimum(np.sqrt(area * aspect), 1.0)
        top, left = u[2] * (1.0 - height), u[3] * (1.0 - width)
        boxes = np.stack([top, left, top + height, left + width], axis=1).astype(np.float32)
        margin = np.float32(image.margin)
        boxes = boxes * (1 + 2 * margin) - margin
        return columns | {
            "image": Planned(pictures, boxes, size, margin=image.margin, outside=image.outside)
        }

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
    """Maps 0 .. 255 to low .. high: `image` is float32 from here, four times the bytes.

    Without it `image` stays uint8, which the model maps to -1 .. 1 on the device.
    """
    if not low < high:
        raise BadInput(f"low={low}, high={high}: expected low < high")
    values = np.linspace(low, high, 256).astype(np.float32)

    def apply(columns: Columns, draws: Draws) -> Columns:
        return columns | {"image": values[_expect(columns, Planned, _PLANNED).make()]}

    return Op(apply)


def decoded(columns: Columns) -> Encoded:
    """The pictures, decoded once for all that follows."""
    image = _expect(columns, Encoded, "after decode, before resize or random_resized_crop")
    return image._replace(pictures=[_decoded(picture) for picture in image.pictures])


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


def _decoded(picture: bytes | UInt8[np.ndarray, "*t h w 3"]) -> UInt8[np.ndarray, "*t h w 3"]:
    return decode_picture(picture) if isinstance(picture, bytes) else picture


def _squash(
    picture: UInt8[np.ndarray, "*t h w 3"], image: Encoded, size: int
) -> UInt8[np.ndarray, "*t size size 3"]:
    """`resize` of one picture with its margin, or of each frame of a clip."""
    if picture.ndim == 4:
        return np.stack([_squash(frame, image, size) for frame in picture])
    if image.margin:
        height, width = (round(image.margin * side) for side in picture.shape[:2])
        picture = np.pad(
            picture,
            ((height, height), (width, width), (0, 0)),
            constant_values=round(image.outside),
        )
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR))


def _make_clips(image: Planned) -> UInt8[np.ndarray, "b t size size 3"]:
    """Each frame as a picture, with the box, the holes and the colours of its clip."""
    count = len(image.pictures[0])

    def each(rows: np.ndarray | None) -> np.ndarray | None:
        return None if rows is None else np.repeat(rows, count, axis=0)

    made = _make(
        image._replace(
            pictures=[frame for clip in image.pictures for frame in clip],
            boxes=each(image.boxes),
            holes=tuple(hole._replace(corners=each(hole.corners)) for hole in image.holes),
            matrix=each(image.matrix),
            around=each(image.around),
        )
    )
    return made.reshape(-1, count, *made.shape[1:])


def _make(image: Planned) -> UInt8[np.ndarray, "b size size 3"]:
    """One affine map and one colour matrix a picture; see `Planned`."""
    size, pictures = image.size, list(image.pictures)
    sides = np.array([picture.shape[:2] for picture in pictures], np.float32)
    first = image.boxes[:, :2] * sides
    step = (image.boxes[:, 2:] * sides - first) / np.float32(size)  # negative if mirrored
    for i in np.nonzero((np.abs(step) >= 2).any(axis=1))[0]:
        pictures[i], first[i], step[i] = _reduce(pictures[i], first[i], step[i], size)
    # From the index of a new pixel to that of an old one; pixels are counted at their centres.
    maps = np.zeros((len(pictures), 2, 3))
    maps[:, 0, 0], maps[:, 1, 1] = step[:, 1], step[:, 0]
    maps[:, :, 2] = (first + step / 2 - np.float32(0.5))[:, ::-1]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    border = cv2.BORDER_CONSTANT if image.margin else cv2.BORDER_REPLICATE
    outside, shape = (image.outside,) * 3, (size, size)
    done = np.empty((len(pictures), size, size, 3), np.uint8)
    plain = np.empty((size, size, 3), np.uint8)
    for i, picture in enumerate(pictures):
        pixels = done[i] if image.matrix is None else plain
        cv2.warpAffine(picture, maps[i], shape, pixels, flags, border, outside)
        for corners, value in image.holes:
            top, left, bottom, right = corners[i]
            pixels[top:bottom, left:right] = round(value)
        if image.matrix is not None:
            color = image.matrix[i]
            if image.around is not None:
                mean = np.array(cv2.mean(pixels)[:3], np.float32)
                color = np.concatenate([color, image.around[i] @ mean[:, None]], axis=1)
            cv2.transform(pixels, color, done[i])
    return done


def _reduce(
    picture: UInt8[np.ndarray, "h w 3"],
    first: Float32[np.ndarray, "2"],
    step: Float32[np.ndarray, "2"],
    size: int,
) -> tuple[UInt8[np.ndarray, "h w 3"], Float32[np.ndarray, "2"], Float32[np.ndarray, "2"]]:
    """Shrinks the part that is wanted until a step is shorter than two pixels.

    Bilinear sampling looks at two pixels in a row: with longer steps it would skip some.
    """
    sides = np.array(picture.shape[:2])
    ends = np.stack([first, first + step * size])
    low = np.clip(np.floor(ends.min(axis=0)).astype(int), 0, sides - 1)
    high = np.clip(np.ceil(ends.max(axis=0)).astype(int), low + 1, sides)
    factor = np.maximum(np.abs(step).astype(int), 1)
    part = picture[low[0] : high[0], low[1] : high[1]]
    height, width = -(-(high - low) // factor)
    small = cv2.resize(part, (int(width), int(height)), interpolation=cv2.INTER_AREA)
    scale = (np.array([height, width]) / (high - low)).astype(np.float32)
    return small, (first - low.astype(np.float32)) * scale, step * scale
