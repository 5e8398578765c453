"""What a picture is between its bytes and the batch, and its ops that are neither shape nor colour.

A picture is made lazily: every pass over the pixels costs as much as all that is decided about
them. Cropping and flipping only move the corners of a box and colour ops multiply 3 x 3 matrices;
at the end one resampling and one colour matrix make each picture, on uint8, and of a JPEG only
what is needed was decoded. `geometry`, `color` and `augment` have the ops.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8

from data.preprocess import Columns, Op
from data.preprocess.draws import Draws
from data.preprocess.sampling import Filter, Picture, sampler
from data.sources.pictures import decode as decode_picture
from data.sources.pictures import read as read_picture
from mm import registry
from mm.config import BadInput

PLANNED = "after resize or random_resized_crop, before value_range or normalize"
ENCODED = "after decode, before resize or random_resized_crop"
# Mean and standard deviation of red, green and blue in 0 .. 1, as their models were trained.
STATISTICS = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class Encoded(NamedTuple):
    """Encoded bytes, or decoded uint8 [h, w, 3]; one a picture. Of clips decoded [t, h, w, 3].

    margin: how far the picture goes on beyond each edge, as a share of its side, in the value
    `outside` (0 .. 255).
    """

    pictures: list
    margin: float = 0.0
    outside: float = 0.0


class Planned(NamedTuple):
    """How to make pictures [b, height, width, 3]; of clips [b, t, ...], all frames alike.

    boxes: [b, 4], y0 x0 y1 x1 as fractions of the picture; x1 < x0 is mirrored. size: height and
    width, or an int for both; int [b, 2] while they differ. holes: what is painted over, before any
    colour. A colour p becomes matrix @ p + around @ m, where m is the picture's mean colour; None
    leaves it as it is. Boxes may reach `margin` beyond the edges, where the value is `outside`.
    """

    pictures: list
    boxes: Float[np.ndarray, "b 4"]
    size: int | tuple[int, int] | Int64[np.ndarray, "b 2"]
    holes: "tuple[Holes, ...]" = ()
    matrix: Float32[np.ndarray, "b 3 3"] | None = None
    around: Float32[np.ndarray, "b 3 3"] | None = None
    margin: float = 0.0
    outside: float = 0.0
    filter: Filter = Filter()

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width. Raises BadInput where they differ."""
        sizes = np.unique(np.broadcast_to(self.size, (len(self.pictures), 2)), axis=0)
        if len(sizes) != 1:
            raise BadInput("the pictures have several sizes; put center_crop or random_crop before")
        return tuple(sizes[0].tolist())

    def make(self, out: np.ndarray | None = None) -> UInt8[np.ndarray, "b *t height width 3"]:
        """The pictures, each by itself: a result does not depend on its neighbours."""
        return _make(self, None, out)


class Holes(NamedTuple):
    """corners: int [b, 4], y0 x0 y1 x1 in pixels of the result; empty where y1 is 0."""

    corners: Int64[np.ndarray, "b 4"]
    value: float


class Valued(NamedTuple):
    """Pictures as numbers. values: float32 [1, 256, 1 or 3], what a uint8 becomes in a channel."""

    image: Planned
    values: Float32[np.ndarray, "1 256 channels"]

    def make(self, out: np.ndarray | None = None) -> Float32[np.ndarray, "b *t height width 3"]:
        return _make(self.image, self.values, out)


@registry.register("op", "decode")
def decode(*, key: str = "image") -> Op:
    """Starts `image` from the encoded (PNG, JPEG, ...) picture in the field `key`, as RGB.

    Turned as EXIF says, on white where it is transparent; see `data.sources.pictures`.
    """

    def apply(columns: Columns, draws: Draws) -> Columns:
        return columns | {"image": Encoded(columns[key])}

    return Op(apply, reads=(key,))


@registry.register("op", "value_range")
def value_range(*, low: float, high: float) -> Op:
    """Maps 0 .. 255 to low .. high: `image` is float32 from here, four times the bytes.

    Without it `image` stays uint8, which the model maps to -1 .. 1 on the device.
    """
    if not low < high:
        raise BadInput(f"low={low}, high={high}: expected low < high")
    return _valued(np.linspace(low, high, 256)[:, None])


@registry.register("op", "normalize")
def normalize(*, mean: str | tuple[float, ...], std: tuple[float, ...] | None = None) -> Op:
    """Maps 0 .. 255 to (x / 255 - mean) / std for red, green and blue: `image` is float32.

    mean: three numbers in 0 .. 1, and std three above 0; or a name for both: "clip" or "imagenet".
    """
    if isinstance(mean, str):
        if mean not in STATISTICS or std is not None:
            raise BadInput(
                f"mean={mean!r}, std={std}: expected one of {sorted(STATISTICS)} alone, or three "
                "numbers each"
            )
        mean, std = STATISTICS[mean]
    if std is None or len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise BadInput(f"mean={mean}, std={std}: expected three numbers each, std above 0")
    return _valued((np.arange(256)[:, None] / 255 - mean) / std)


def _valued(values: Float[np.ndarray, "256 channels"]) -> Op:
    values = values[None].astype(np.float32)

    def apply(columns: Columns, draws: Draws) -> Columns:
        return columns | {"image": Valued(expect(columns, Planned, PLANNED), values)}

    return Op(apply)


def decoded(columns: Columns) -> Encoded:
    """The pictures, decoded once for all that follows."""
    image = expect(columns, Encoded, ENCODED)
    pictures = [decode_picture(x) if isinstance(x, bytes) else x for x in image.pictures]
    return image._replace(pictures=pictures)


def opened(image: Encoded) -> list[Picture]:
    """The pictures, decoded, or with no more than a JPEG's header read: all have a shape."""
    return [read_picture(x) if isinstance(x, bytes) else x for x in image.pictures]


def finished(pixels: UInt8[np.ndarray, "b height width 3"]) -> Planned:
    """A plan that leaves them as they are."""
    boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (len(pixels), 1))
    return Planned(list(pixels), boxes, pixels.shape[1:3])


def expect(columns: Columns, kind: type, place: str) -> Any:
    """The column `image`. Raises BadInput if it is not of that kind: an op `belongs <place>`."""
    image = columns.get("image")
    if not isinstance(image, kind):
        raise BadInput(f"belongs {place}")
    return image


def check_probability(p: float) -> None:
    if not 0 <= p <= 1:
        raise BadInput(f"p={p}: expected 0 .. 1")


def is_clip(picture: Any) -> bool:
    """Whether it is a stack of pictures."""
    return getattr(picture, "ndim", 3) == 4


def _frames(image: Planned) -> Planned:
    """The plan of each frame of clips, all as long: the box, holes and colours of its clip."""
    count = len(image.pictures[0])

    def each(rows: Any) -> Any:
        return np.repeat(rows, count, axis=0) if np.ndim(rows) > 1 else rows

    return image._replace(
        pictures=[frame for clip in image.pictures for frame in clip],
        boxes=each(image.boxes),
        size=each(image.size),
        holes=tuple(hole._replace(corners=each(hole.corners)) for hole in image.holes),
        matrix=each(image.matrix),
        around=each(image.around),
    )


def _make(image: Planned, values: np.ndarray | None, out: np.ndarray | None) -> np.ndarray:
    """One resampling, one colour matrix and one table a picture; see `Planned` and `Valued`."""
    if is_clip(image.pictures[0]):
        frames = _frames(image)
        made = _make(frames, values, None if out is None else out.reshape(-1, *frames.shape, 3))
        return made.reshape(len(image.pictures), -1, *made.shape[1:]) if out is None else out
    size, done = image.shape, out
    outside = image.outside if image.margin else None
    draw = sampler(image.pictures, image.boxes, size, image.filter, outside)
    if done is None:
        kind = np.uint8 if values is None else np.float32
        done = np.empty((len(image.pictures), *size, 3), kind)
    drawn, colored = np.empty((2, *size, 3), np.uint8)
    for i in range(len(done)):
        last = colored if values is not None else done[i]
        pixels = last if image.matrix is None else drawn
        draw(i, pixels)
        for corners, value in image.holes:
            top, left, bottom, right = corners[i]
            pixels[top:bottom, left:right] = round(value)
        if image.matrix is not None:
            color = image.matrix[i]
            if image.around is not None:
                mean = np.array(cv2.mean(pixels)[:3], np.float32)
                color = np.concatenate([color, image.around[i] @ mean[:, None]], axis=1)
            cv2.transform(pixels, color, last)
        if values is not None:
            cv2.LUT(last, values, done[i])
    return done
