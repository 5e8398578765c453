"""The fifteen corruptions of ImageNet-C at five strengths (Hendrycks and Dietterich 2019).

Each follows the definition of the paper's appendix B; frost is drawn, since the paper's photographs
of ice are not ours to ship. What is random belongs to the example, so the five strengths of a
corruption share their draws.

The authors have constants for pictures of 32 pixels (CIFAR-10-C) and of 224 (ImageNet-C). The
shorter side says which are taken: between the two each constant goes geometrically with it, and
beyond 224 lengths in pixels grow with it.
"""

import io
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from data.preprocess import Columns, Op
from data.preprocess.draws import Draws
from data.preprocess.image import Encoded, Planned, decoded, finished, is_clip
from mm import registry
from mm.config import BadInput, suggest

Pixels = Float32[np.ndarray, "h w 3"]  # 0 .. 1
STRENGTHS = (1, 2, 3, 4, 5)
FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
CORRUPTIONS = tuple(name for names in FAMILIES.values() for name in names)
_SMALL, _LARGE = 32, 224  # pixels of the sides that the tables are for
_SOFTEST = 0.4  # pixels; with less it is no blur, as would be strength 1 at 48 pixels
# Of each corruption the constants by strength, as in the authors' code; `_apply` names them.
_AT_SMALL = {
    "gaussian_noise": ((0.04,), (0.06,), (0.08,), (0.09,), (0.1,)),
    "shot_noise": ((500,), (250,), (100,), (75,), (50,)),
    "impulse_noise": ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": ((1.05, 6), (1.1, 11), (1.15, 16), (1.2, 21), (1.25, 26)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9), (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
    "contrast": ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
    "elastic_transform": (
        (0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03),
    ),
    "pixelate": ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
    "jpeg_compression": ((80,), (65,), (58,), (50,), (40,)),
}  # fmt: skip
_AT_LARGE = {
    "gaussian_noise": ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
    "shot_noise": ((60,), (25,), (12,), (5,), (3,)),
    "impulse_noise": ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "zoom_blur": ((1.1, 11), (1.15, 16), (1.2, 11), (1.24, 13), (1.3, 11)),
    "snow": (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7), (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    "brightness": ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
    "contrast": ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
    "elastic_transform": (  # of the side; theirs are of 244 pixels
        (2.179, 0.7625, 0.1089), (2.179, 0.0871, 0.2179), (0.0545, 0.0109, 0.0218),
        (0.0763, 0.0109, 0.0218), (0.1307, 0.0109, 0.0218),
    ),
    "pixelate": ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)),
    "jpeg_compression": ((25,), (18,), (15,), (10,), (7,)),
}  # fmt: skip
# Which of the constants are lengths in pixels.
_LENGTHS = {"defocus_blur": (0,), "glass_blur": (0, 1), "motion_blur": (0, 1), "snow": (2, 4, 5)}


@registry.register("op", "corrupt")
def corrupt(*, name: str, strength: int = 3) -> Op:
    """Corrupts pictures after decode, or as large as they are after resize, where the paper does.

    name: one of CORRUPTIONS. strength: 1 to 5. Gives uint8 of the same size.
    """
    if name not in CORRUPTIONS:
        raise BadInput(
            f"name={name!r}{suggest(name, CORRUPTIONS)}: expected one of {list(CORRUPTIONS)}"
        )
    if strength not in STRENGTHS:
        raise BadInput(f"strength={strength}: expected 1 to 5")

    def each(pictures: list, draws: Draws) -> list[UInt8[np.ndarray, "h w 3"]]:
        if is_clip(pictures[0]):
            raise BadInput("is for pictures, not for clips")
        keys = draws.keys().tolist()
        return [
            corrupted(picture, name, strength, np.random.Generator(np.random.Philox(key=key)))
            for picture, key in zip(pictures, keys, strict=True)
        ]

    def apply(columns: Columns, draws: Draws) -> Columns:
        image = columns.get("image")
        if isinstance(image, Encoded):
            image = decoded(columns)
            return columns | {"image": image._replace(pictures=each(image.pictures, draws))}
        if not isinstance(image, Planned):
            raise BadInput("belongs after decode or resize, before value_range or normalize")
        return columns | {"image": finished(np.stack(each(list(image.make()), draws)))}

    return Op(apply)


def corrupted(
    picture: UInt8[np.ndarray, "h w 3"], name: str, strength: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture, corrupted."""
    values = constants(name, strength, min(picture.shape[:2]))
    found = _apply[name](picture.astype(np.float32) / 255, rng, *values)
    return np.round(np.clip(found, 0, 1) * 255).astype(np.uint8)


def constants(name: str, strength: int, side: int) -> tuple[float, ...]:
    """Those of a corruption for pictures whose shorter side has so many pixels."""
    share = np.clip(np.log(side / _SMALL) / np.log(_LARGE / _SMALL), 0, 1)
    found = []
    pairs = zip(_AT_SMALL[name][strength - 1], _AT_LARGE[name][strength - 1], strict=True)
    for i, (small, large) in enumerate(pairs):
        value = small ** (1 - share) * large**share if small else share * large
        longer = max(1.0, side / _LARGE) if i in _LENGTHS.get(name, ()) else 1.0
        found.append(float(value * longer))
    return tuple(found)


def _gaussian_noise(x: Pixels, rng: np.random.Generator, deviation: float) -> Pixels:
    return x + deviation * rng.standard_normal(x.shape, np.float32)


def _shot_noise(x: Pixels, rng: np.random.Generator, photons: float) -> Pixels:
    return rng.poisson(x * photons) / photons


def _impulse_noise(x: Pixels, rng: np.random.Generator, share: float) -> Pixels:
    """Half of the values that are lost become 0, half 1."""
    drawn = rng.random(x.shape, np.float32)
    return np.where(drawn < share / 2, 0, np.where(drawn > 1 - share / 2, 1, x))


def _defocus_blur(x: Pixels, rng: np.random.Generator, radius: float, softness: float) -> Pixels:
    """By a disc whose edge is softened."""
    reach = max(8, int(np.ceil(radius)))
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = (rows**2 + columns**2 <= radius**2).astype(np.float32)
    side = 3 if radius <= 8 else 5
    kernel = cv2.GaussianBlur(disc / disc.sum(), (side, side), max(softness, _SOFTEST))
    return cv2.filter2D(x, -1, kernel)


def _glass_blur(
    x: Pixels, rng: np.random.Generator, deviation: float, reach: float, times: float
) -> Pixels:
    """Each pixel takes the colour of one near it; a blur before and after."""
    reach, (height, width) = max(1, round(reach)), x.shape[:2]
    x = _smoothed(x, (deviation, deviation, 0))
    rows, columns = np.mgrid[:height, :width]
    for _ in range(max(1, round(times))):
        down, right = rng.integers(-reach, reach, (2, height, width))
        x = x[np.clip(rows + down, 0, height - 1), np.clip(columns + right, 0, width - 1)]
    return _smoothed(x, (deviation, deviation, 0))


def _smoothed(x: np.ndarray, deviations: tuple[float, ...], truncate: float = 4) -> np.ndarray:
    """By a Gaussian; reflected at the edges."""
    from scipy.ndimage import gaussian_filter  # here, since every start would take longer

    return gaussian_filter(x, deviations, truncate=truncate)


def _motion_blur(x: Pixels, rng: np.random.Generator, radius: float, deviation: float) -> Pixels:
    return _streaked(x, radius, deviation, rng.uniform(-45, 45))


def _streaked(x: Float32[np.ndarray, "h w *c"], radius: float, deviation: float, degrees: float):
    """Each pixel drawn out to one side: half a Gaussian of 2 radius + 1 pixels along a line."""
    reach = 2 * round(radius)
    steps = np.arange(reach + 1)
    weights = np.exp(-(steps**2) / (2 * deviation**2))
    angle, kernel = np.deg2rad(degrees), np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    rows, columns = reach + steps * np.sin(angle), reach + steps * np.cos(angle)
    for down in (0, 1):  # a place between pixels is shared out among the four
        for right in (0, 1):
            y, x0 = np.floor(rows).astype(int), np.floor(columns).astype(int)
            part = np.abs(1 - down - (rows - y)) * np.abs(1 - right - (columns - x0))
            at = np.minimum(y + down, 2 * reach), np.minimum(x0 + right, 2 * reach)
            np.add.at(kernel, at, weights * part)
    return cv2.filter2D(x, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)


def _zoom_blur(x: Pixels, rng: np.random.Generator, greatest: float, count: float) -> Pixels:
    """The mean of the picture and of it, coming nearer."""
    factors = np.linspace(1, greatest, max(2, round(count)))
    return (x + sum(_zoomed(x, factor) for factor in factors)) / (len(factors) + 1)


def _zoomed(x: Float32[np.ndarray, "h w *c"], factor: float) -> Float32[np.ndarray, "h w *c"]:
    """Enlarged about its middle, bilinear."""
    height, width = x.shape[:2]
    first = (1 - factor) * (np.array([width, height]) - 1) / 2
    place = np.array([[factor, 0, first[0]], [0, factor, first[1]]])
    return cv2.warpAffine(x, place, (width, height), borderMode=cv2.BORDER_REFLECT_101)


def _snow(
    x: Pixels, rng: np.random.Generator, mean: float, deviation: float, size: float,
    threshold: float, radius: float, spread: float, kept: float,
) -> Pixels:  # fmt: skip
    """Flakes, drawn out by the wind, from both sides, over a picture that is whitened."""
    flakes = mean + deviation * rng.standard_normal(x.shape[:2], np.float32)
    flakes = _zoomed(flakes, size)
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1).astype(np.float32)
    flakes = _streaked(flakes, radius, spread, rng.uniform(45, 135))[..., None]
    grey = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None]
    white = np.maximum(x, grey * 1.5 + 0.5)
    return kept * x + (1 - kept) * white + flakes + flakes[::-1, ::-1]


def _frost(x: Pixels, rng: np.random.Generator, kept: float, ice: float) -> Pixels:
    """Ridges of a fractal, as the ferns of ice on a window, bluish."""
    ridges = [1 - np.abs(2 * _fractal(x, rng, 1.5) - 1) for _ in range(2)]
    height = np.maximum(ridges[0] ** 4, ridges[1] ** 4)[..., None]
    return kept * x + ice * (0.3 + 0.7 * height) * np.array([0.85, 0.95, 1.0], np.float32)


def _fog(x: Pixels, rng: np.random.Generator, amount: float, decay: float) -> Pixels:
    most = x.max()
    return (x + amount * _fractal(x, rng, decay)[..., None]) * most / (most + amount)


def _fractal(x: Pixels, rng: np.random.Generator, decay: float) -> Float[np.ndarray, "h w"]:
    """A height map in 0 .. 1 as large as x, by the diamond-square algorithm on a torus.

    decay squared is by how much less each octave adds.
    """
    height, width = x.shape[:2]
    size = 2 ** int(np.ceil(np.log2(max(height, width))))
    heights, step, amount, roll = np.zeros((size, size)), size, 1.0, np.roll
    while step > 1:
        half = step // 2

        def drawn(total: np.ndarray, amount: float = amount) -> np.ndarray:
            return total / 4 + amount * rng.uniform(-1, 1, total.shape)

        corners = heights[::step, ::step].copy()
        below, right = corners + roll(corners, -1, 0), corners + roll(corners, -1, 1)
        middle = drawn(below + roll(below, -1, 1))
        heights[half::step, half::step] = middle
        heights[::step, half::step] = drawn(right + middle + roll(middle, 1, 0))
        heights[half::step, ::step] = drawn(below + middle + roll(middle, 1, 1))
        step, amount = half, amount / decay**2
    heights -= heights.min()
    return (heights / heights.max())[:height, :width]


def _brightness(x: Pixels, rng: np.random.Generator, more: float) -> Pixels:
    """More of HSV's value: with hue and saturation as they are, every channel grows alike."""
    value = x.max(axis=2, keepdims=True)
    brighter = np.minimum(value + more, 1)
    return np.where(value > 0, x * brighter / np.maximum(value, 1e-6), brighter)


def _contrast(x: Pixels, rng: np.random.Generator, factor: float) -> Pixels:
    mean = x.mean(axis=(0, 1), keepdims=True)
    return (x - mean) * factor + mean


def _elastic_transform(
    x: Pixels, rng: np.random.Generator, amount: float, smoothness: float, shift: float
) -> Pixels:
    """Three points move, and with them the picture; then each pixel moves a little with those near.

    All in shares of the shorter side.
    """
    height, width = x.shape[:2]
    side = min(height, width)
    middle, third = np.float32([width // 2, height // 2]), side // 3
    points = middle + np.float32([[third, third], [third, -third], [-third, -third]])
    moved = points + side * shift * rng.uniform(-1, 1, points.shape).astype(np.float32)
    back = cv2.invertAffineTransform(cv2.getAffineTransform(points, moved.astype(np.float32)))
    noise = rng.uniform(-1, 1, (2, height, width))
    smooth = (0, side * smoothness, side * smoothness)
    down, right = side * amount * _smoothed(noise, smooth, truncate=3)
    rows, columns = np.mgrid[:height, :width]
    places = np.stack([columns + right, rows + down, np.ones((height, width))], -1) @ back.T
    columns, rows = np.float32(places[..., 0]), np.float32(places[..., 1])
    return cv2.remap(x, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def _pixelate(x: Pixels, rng: np.random.Generator, share: float) -> Pixels:
    image, box = _image(x), Image.Resampling.BOX
    small = image.resize([max(1, int(share * side)) for side in image.size], box)
    return np.float32(small.resize(image.size, box)) / 255


def _jpeg_compression(x: Pixels, rng: np.random.Generator, quality: float) -> Pixels:
    buffer = io.BytesIO()
    _image(x).save(buffer, "JPEG", quality=round(quality))
    return np.float32(Image.open(buffer)) / 255


def _image(x: Pixels) -> Image.Image:
    return Image.fromarray(np.round(x * 255).astype(np.uint8))


_apply: dict[str, Callable[..., np.ndarray]] = {name: globals()[f"_{name}"] for name in CORRUPTIONS}
