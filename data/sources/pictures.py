"""Encoded pictures to pixels: RGB, turned as EXIF says, on white where they are transparent.

What a picture is, its content says, never its name. Plain PNG and JPEG go through OpenCV, and small
parts of a JPEG through TensorFlow, which decodes no more than is wanted, all with the lock of
Python released; what is rare goes through Pillow. White is what img2dataset, too, puts behind
transparent pixels.
"""

import io
import struct
import zlib
from typing import NamedTuple

import cv2
import numpy as np
import tensorflow as tf
from jaxtyping import UInt8
from PIL import Image, ImageOps

from data.profile import stage
from data.sources import BadExample

# Before TensorFlow's first operation, or it would take the memory of the GPUs.
tf.config.set_visible_devices([], "GPU")
# What it warns of comes as a BadExample, with more to go by.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)

MAX_PIXELS = 89_478_485  # 256 MiB of RGB, where Pillow, too, begins to warn of a bomb
MAX_RATIO = 8  # by which a JPEG can be shrunk while it is decoded
# OpenCV decodes a whole JPEG a quarter sooner than TensorFlow, the same pixels, and no part of one:
# it takes small pictures, and those of middling size of which more than this share is wanted.
_SMALL_PIXELS, _MIDDLING_PIXELS, _LARGE_PART = 1 << 18, 1 << 20, 0.4
_REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,  # what the "grayscale" of these names says, a flag undoes
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_MAGIC = {b"\x89PNG": "png", b"\xff\xd8": "jpg", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp"}
_PNG = b"\x89PNG\r\n\x1a\n"
_END_OF_JPEG = b"\xff\xd9"
_HEIF_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1")
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers that tell the size of a JPEG
_NO_LENGTH = {0x01, *range(0xD0, 0xD8)}
# What Pillow raises on bytes that are wrong. An error of the disk is none: they are in memory.
_BROKEN = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, OverflowError,
    struct.error, zlib.error,
)  # fmt: skip


class Jpeg(NamedTuple):
    """A JPEG of which only the header was read. height, width: as it is shown."""

    encoded: bytes
    height: int
    width: int
    orientation: int = 1  # of EXIF, 1 .. 8

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, 3

    def decode(
        self, top: int, left: int, bottom: int, right: int, ratio: int = 1
    ) -> UInt8[np.ndarray, "h w 3"]:
        """The pixels of a window; all counted in the picture shrunk by `ratio` (1, 2, 4 or 8).

        Shrunk in the cosine transform, which takes the mean of about ratio x ratio pixels; sides
        are rounded up. The pixels are those of the whole picture. Raises BadExample.
        """
        height, width = -(-self.height // ratio), -(-self.width // ratio)
        transposed, upended, mirrored = _TURNS[self.orientation]
        rows = (height - bottom, height - top) if upended else (top, bottom)
        columns = (width - right, width - left) if mirrored else (left, right)
        if transposed:
            rows, columns, height, width = columns, rows, width, height
        part = (rows[1] - rows[0]) * (columns[1] - columns[0]) / (height * width)
        most = _MIDDLING_PIXELS if part > _LARGE_PART else _SMALL_PIXELS
        with stage("decode"):
            if height * width <= most:
                pixels = self._whole(ratio)[slice(*rows), slice(*columns)]
            else:
                pixels = self._part(rows, columns, height, width, ratio)
        pixels = pixels.swapaxes(0, 1) if transposed else pixels
        return pixels[:: -1 if upended else 1, :: -1 if mirrored else 1]

    def _whole(self, ratio: int) -> UInt8[np.ndarray, "h w 3"]:
        """By OpenCV, not turned."""
        flags = _REDUCED[ratio] | cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(self.encoded, np.uint8), flags)
        if pixels is None:
            raise _undecodable(self.encoded)
        return pixels

    def _part(
        self, rows: tuple[int, int], columns: tuple[int, int], height: int, width: int, ratio: int
    ) -> UInt8[np.ndarray, "h w 3"]:
        """By TensorFlow, of a picture of height x width."""
        # Two more on each side: colours are interpolated from pixels beyond the window.
        above, before = min(rows[0], 2), min(columns[0], 2)
        tall, wide = rows[1] - rows[0], columns[1] - columns[0]
        window = (
            rows[0] - above,
            columns[0] - before,
            above + tall + min(height - rows[1], 2),
            before + wide + min(width - columns[1], 2),
        )
        try:
            pixels = tf.io.decode_and_crop_jpeg(
                tf.constant(self.encoded),  # left to itself, it takes ten times as long for that
                tf.constant(window, tf.int32),
                channels=3,
                ratio=ratio,
                dct_method="INTEGER_ACCURATE",  # as everybody else; the default is off by 1.0
            ).numpy()
        except tf.errors.InvalidArgumentError:
            raise _undecodable(self.encoded) from None
        return pixels[above : above + tall, before : before + wide]


# EXIF's orientation -> how to show it: transposed, then turned upside down, then mirrored.
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def decode(encoded: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of a PNG, JPEG, WebP, GIF (its first frame) or BMP. Raises BadExample for all else."""
    picture = read(encoded)
    if isinstance(picture, Jpeg):
        return picture.decode(0, 0, picture.height, picture.width)
    return picture


@stage("decode")
def read(encoded: bytes) -> Jpeg | UInt8[np.ndarray, "h w 3"]:
    """As `decode`, but of a JPEG only the header: it can be decoded in parts.

    Raises BadExample where it is empty, cut off, has more than MAX_PIXELS (before memory is taken
    for them), or is none of these.
    """
    if encoded.startswith(b"\xff\xd8"):
        jpeg = _jpeg(encoded)
        return jpeg or _by_pillow(encoded)
    if encoded.startswith(_PNG) and _is_plain(encoded):
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
        if pixels is None:
            raise _undecodable(encoded) if b"IEND" in encoded[-16:] else _cut_off(encoded)
        return pixels
    if not encoded:
        raise BadExample("a picture of 0 bytes", "picture is empty")
    if encoded[4:8] == b"ftyp" and encoded[8:12] in _HEIF_BRANDS:
        raise BadExample(
            f"a picture of {len(encoded):,} bytes is AVIF or HEIC; expected PNG, JPEG, WebP, GIF "
            "or BMP: convert it",
            "picture is AVIF or HEIC",
        )
    return _by_pillow(encoded)


def file_format(encoded: bytes) -> str:
    """How a file of that picture's name would end, as "png"; "bin" if it is none that we read."""
    return next((name for magic, name in _MAGIC.items() if encoded.startswith(magic)), "bin")


def _jpeg(encoded: bytes) -> Jpeg | None:
    """Its header; None for CMYK, which is Pillow's."""
    at, orientation = 2, 1
    while (at := encoded.find(b"\xff", at)) >= 0 and at + 4 <= len(encoded):
        marker = encoded[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker in _NO_LENGTH or marker == 0:
            at += 2
        elif marker in _FRAMES:
            if at + 10 > len(encoded):
                break
            height, width, channels = struct.unpack_from(">HHB", encoded, at + 5)
            if not height or not width:
                raise _undecodable(encoded)
            _check_pixels(height, width)
            if encoded.rfind(_END_OF_JPEG, at) < 0:
                raise _cut_off(encoded)
            height, width = (width, height) if orientation >= 5 else (height, width)
            return None if channels == 4 else Jpeg(encoded, height, width, orientation)
        elif marker in (0xD9, 0xDA):  # the end, or pixels, before any size
            raise _undecodable(encoded)
        else:
            length = int.from_bytes(encoded[at + 2 : at + 4], "big")
            if marker == 0xE1 and encoded[at + 4 : at + 10] == b"Exif\0\0":
                orientation = _orientation(encoded[at + 10 : at + 2 + length])
            at += 2 + length
    raise _cut_off(encoded)


def _orientation(exif: bytes) -> int:
    """EXIF's tag 0x0112, in the first directory of a TIFF; 1 where it is not there or no sense."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 10:
        return 1
    (first,) = struct.unpack_from(order + "I", exif, 4)
    if first + 2 > len(exif):
        return 1
    (count,) = struct.unpack_from(order + "H", exif, first)
    for at in range(first + 2, min(first + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, at)
        if (tag, kind) == (0x0112, 3):
            return value if value in _TURNS else 1
    return 1


def _is_plain(encoded: bytes) -> bool:
    """Whether a PNG has neither 16 bits, nor transparency, nor EXIF. Checks its size."""
    if len(encoded) < 33:
        raise _cut_off(encoded)
    width, height, bits, color = struct.unpack_from(">IIBB", encoded, 16)
    _check_pixels(height, width)
    if bits == 16 or color & 4:
        return False
    at, kind = 8, b""
    while kind != b"IDAT" and at + 8 <= len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, at)
        if kind in (b"tRNS", b"eXIf"):
            return False
        at += length + 12
    return encoded.find(b"eXIf", at) < 0  # some write it at the end


def _by_pillow(encoded: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Whatever is rare: GIF, WebP, BMP, CMYK, transparency, 16 bits, turned PNG."""
    try:
        image = Image.open(io.BytesIO(encoded), formats=_FORMATS)
        _check_pixels(image.height, image.width)
        image.load()
        if image.format == "PNG" and encoded[24] == 16:
            orientation, image = image.getexif(), _from_16_bits(encoded)
            image.getexif().update(orientation)
        return of_pillow(image)
    except Image.DecompressionBombError:
        raise _too_large("") from None
    except _BROKEN as error:
        raise (_cut_off if "truncated" in str(error).lower() else _undecodable)(encoded) from None


def of_pillow(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of an open picture of 8 bits: turned as EXIF says, on white where it is transparent."""
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _from_16_bits(encoded: bytes) -> Image.Image:
    """A PNG of 16 bits, which Pillow would clip (grey) or cut to 8 (colour): divided by 257."""
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise ValueError("16 bits were not decoded")
    pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.ndim == 3:
        pixels = pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]  # OpenCV's are blue, green, red
    return Image.fromarray(pixels)


def _check_pixels(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise _too_large(f" of {height} x {width} pixels")


def _too_large(size: str) -> BadExample:
    return BadExample(
        f"a picture{size} is too large; expected at most {MAX_PIXELS:,} pixels: shrink it",
        "picture is too large",
    )


def _cut_off(encoded: bytes) -> BadExample:
    return BadExample(
        f"a picture of {len(encoded):,} bytes that begins with {encoded[:8]!r} is cut off",
        "picture is cut off",
    )


def _undecodable(encoded: bytes) -> BadExample:
    return BadExample(
        f"a picture of {len(encoded):,} bytes that begins with {encoded[:8]!r} cannot be "
        "decoded; expected a whole PNG, JPEG, WebP, GIF or BMP",
        "picture cannot be decoded",
    )
