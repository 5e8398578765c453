import io
import struct
import zlib
from unittest import mock

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from data.preprocess.draws import example_keys
from data.preprocess.parse import parse
from data.sources import BadExample, pictures
from data.sources.pictures import Jpeg, decode, read


def photo(height=40, width=56, channels=3, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, channels)).astype(np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return smooth.reshape(height, width, channels)


def encoded(image, kind="PNG", **how):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def chunk(kind, content):
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(image, color):
    """A PNG of 16 bits, which Pillow cannot write in colour."""
    height, width = image.shape[:2]
    rows = image.astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


FORMATS = {
    "png": ("PNG", {}),
    "jpeg": ("JPEG", {}),
    "progressive jpeg": ("JPEG", {"progressive": True}),
    "gif": ("GIF", {}),
    "webp": ("WEBP", {}),
    "lossless webp": ("WEBP", {"lossless": True}),
    "bmp": ("BMP", {}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_pixels_are_those_of_pillow(name):
    kind, how = FORMATS[name]
    data = encoded(photo(), kind, **how)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode(data), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_a_picture_that_is_cut_off_is_noticed_wherever_that_was(name):
    """Or what is missing is no pixel."""
    kind, how = FORMATS[name]
    data = encoded(photo(12, 16), kind, **how)
    whole, reasons = decode(data), []
    for length in range(1, len(data)):
        try:
            np.testing.assert_array_equal(decode(data[:length]), whole)
        except BadExample as error:
            reasons.append(error.reason)
    assert set(reasons) <= {"picture is cut off", "picture cannot be decoded"}
    assert len(reasons) > 0.9 * len(data) and "picture is cut off" in reasons or kind == "WEBP"


@pytest.mark.parametrize("size", ["0.2, 0.3", "1, 1"])
def test_a_jpeg_that_is_cut_off_below_its_crop_is_noticed_too(size):
    data = encoded(photo(200, 300), "JPEG")
    ops = parse(f"decode|random_resized_crop(24, scale=({size}))", where="config.input.preprocess")
    keys = example_keys(0, np.arange(20), np.zeros(20, int))
    with pytest.raises(BadExample, match="cut off") as error:
        ops.apply({"image": [data[: len(data) * 9 // 10]] * 20}, keys)
    assert error.value.reason == "picture is cut off"


def test_the_thumbnail_of_a_jpeg_does_not_pass_for_its_end():
    exif = turned(1)
    data = encoded(photo(), "JPEG", exif=exif.tobytes() + encoded(photo(8, 8), "JPEG"))
    with pytest.raises(BadExample, match="cut off"):
        decode(data[: len(data) // 2 + 200])


def test_bytes_after_the_end_of_a_jpeg_change_nothing():
    data = encoded(photo(), "JPEG")
    np.testing.assert_array_equal(decode(data + bytes(100)), decode(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_exif_says(kind, orientation):
    how = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(photo(24, 40), kind, exif=turned(orientation), **how)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(decode(data), np.asarray(expected))
    assert read(data).shape == decode(data).shape


def test_a_png_that_says_at_its_end_how_it_is_turned_is_turned():
    data = encoded(photo(24, 40))
    late = data[:-12] + chunk(b"eXIf", turned(6).tobytes()[6:]) + data[-12:]
    np.testing.assert_array_equal(decode(late), np.rot90(photo(24, 40), -1))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01"]
)
def test_exif_that_is_broken_turns_nothing(exif):
    data = encoded(photo(), "JPEG")
    broken = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    np.testing.assert_array_equal(decode(broken), decode(data))


WINDOW = st.tuples(*[st.floats(0, 1)] * 4)


@given(
    st.integers(1, 70), st.integers(1, 70), st.integers(1, 8), st.sampled_from([0, 1, 2]),
    st.booleans(), st.sampled_from([1, 2, 4, 8]), WINDOW, st.sampled_from([0, 1 << 18]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_window_of_a_jpeg_is_that_of_the_whole(
    height, width, orientation, subsampling, progressive, ratio, window, small
):
    """Both by OpenCV and, as of a large picture, by TensorFlow."""
    how = dict(subsampling=subsampling, progressive=progressive, exif=turned(orientation))
    jpeg = read(encoded(photo(height, width), "JPEG", **how))
    assert isinstance(jpeg, Jpeg)
    tall, wide = -(-jpeg.height // ratio), -(-jpeg.width // ratio)
    whole = jpeg.decode(0, 0, tall, wide, ratio)
    assert whole.shape == (tall, wide, 3)
    top, left = int(window[0] * (tall - 1)), int(window[1] * (wide - 1))
    bottom = top + 1 + int(window[2] * (tall - top - 1))
    right = left + 1 + int(window[3] * (wide - left - 1))
    with mock.patch.multiple(pictures, _SMALL_PIXELS=small, _MIDDLING_PIXELS=small):
        found = jpeg.decode(top, left, bottom, right, ratio)
    np.testing.assert_array_equal(found, whole[top:bottom, left:right])


@pytest.mark.parametrize("ratio", [2, 4, 8])
def test_a_jpeg_is_shrunk_to_the_means_of_its_pixels(ratio):
    image = photo(64, 96)
    found = read(encoded(image, "JPEG", quality=95, subsampling=0)).decode(
        0, 0, 64 // ratio, 96 // ratio, ratio
    )
    means = image.reshape(64 // ratio, ratio, 96 // ratio, ratio, 3).mean(axis=(1, 3))
    assert np.abs(found - means).mean() < 2


@pytest.mark.parametrize("mode", ["CMYK", "YCCK"])
def test_colours_of_print_are_those_of_pillow(mode):
    inks = Image.frombytes("CMYK", (56, 40), photo(channels=4).tobytes())
    data = encoded(inks, "JPEG", **({"subsampling": 2} if mode == "YCCK" else {}))
    if mode == "YCCK":  # Adobe's marker says so; Pillow writes CMYK
        at = data.index(b"Adobe") + 11
        data = data[:at] + b"\x02" + data[at + 1 :]
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode(data), expected)
    assert expected.std() > 10


@pytest.mark.parametrize("color, channels", [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bits_are_scaled_and_not_clipped(color, channels):
    image = photo(channels=channels).astype(np.uint16) * 257 - np.uint16(channels % 2)
    image[0, 0] = 65535
    value, opaque = image / 257.0, 1.0
    if channels in (2, 4):
        value, opaque = image[..., :-1] / 257.0, image[..., -1:] / 65535.0
    expected = np.broadcast_to(value * opaque + 255 * (1 - opaque), (40, 56, 3))
    np.testing.assert_allclose(decode(png(image, color)), expected, atol=1.01)


def half_transparent(mode):
    image = photo(channels=4)
    image[:, 28:, 3], image[:, :28, 3] = 255, 0
    return Image.fromarray(image).convert(mode)


@pytest.mark.parametrize("mode, kind", [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP")])
def test_what_is_transparent_is_white(mode, kind):
    how = {"lossless": True} if kind == "WEBP" else {}
    found = decode(encoded(half_transparent(mode), kind, **how))
    assert np.all(found[:, :28] == 255)
    expected = np.asarray(half_transparent(mode).convert("RGB"))[:, 28:]
    np.testing.assert_array_equal(found[:, 28:], expected)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palette_with_a_transparent_colour_is_on_white(kind):
    indices = np.repeat(np.arange(4, dtype=np.uint8), 12).reshape(4, 12)
    image = Image.fromarray(indices)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    found = decode(encoded(image, kind, transparency=0))
    expected = [[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]
    np.testing.assert_array_equal(found[:, 0], expected)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_it_is_the_first_frame(kind):
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (40, 200)]
    how = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **how)
    np.testing.assert_array_equal(decode(data), np.full((8, 8, 3), 40))


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    "ops", ["random_resized_crop(16)", "resize(16)", "resize(16, mode='letterbox')"]
)
def test_the_smallest_and_the_longest_picture_go_through(shape, kind, ops):
    data = encoded(np.full((*shape, 3), 90, np.uint8), kind)
    keys = example_keys(0, np.arange(1), np.zeros(1, int))
    found = parse(f"decode|{ops}", where="x").apply({"image": [data]}, keys)["image"]
    assert found.shape == (1, 16, 16, 3) and np.abs(found[0, 7, 7].astype(int) - 90).max() <= 1


def bomb(kind):
    """30,000 x 30,000 in the header, and next to nothing after it."""
    data = bytearray(encoded(photo(), kind))
    if kind == "PNG":
        data[16:24] = struct.pack(">II", 30_000, 30_000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    if kind == "JPEG":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", 30_000, 30_000)
    if kind == "BMP":
        data[18:26] = struct.pack("<ii", 30_000, 30_000)
    if kind == "GIF":
        data[6:10] = struct.pack("<HH", 30_000, 30_000)
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF"])
def test_a_bomb_is_refused_by_its_header(kind, monkeypatch):
    data = bomb(kind)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(BadExample, match="too large; expected at most 89,478,485") as error:
        decode(data)
    assert error.value.reason == "picture is too large"


def test_the_limit_is_of_pixels_and_not_of_sides(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 40 * 56)
    for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP"):
        assert decode(encoded(photo(), kind)).shape == (40, 56, 3)
        with pytest.raises(BadExample, match="too large"):
            decode(encoded(photo(40, 57), kind))


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "picture is empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "picture cannot be decoded"),
        (b"\0\0\0\x1cftypavif" + bytes(40), "picture is AVIF or HEIC"),
        (b"\0\0\0\x1cftypheic" + bytes(40), "picture is AVIF or HEIC"),
        (b"%PDF-1.7", "picture cannot be decoded"),
        (b"\xff\xd8\xff", "picture is cut off"),
        (b"\xff\xd8\xff\xda" + bytes(40) + b"\xff\xd9", "picture cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n", "picture is cut off"),
    ],
)
def test_what_is_no_picture_is_told_by_its_kind(data, reason):
    with pytest.raises(BadExample) as error:
        decode(data)
    assert error.value.reason == reason and "\n" not in str(error.value)


def test_a_broken_picture_is_told_of_the_op_that_began_it():
    ops = parse('decode|resize(8)|flip|normalize("clip")', where="config.input.preprocess")
    data = encoded(photo(), "JPEG")
    data = data[: data.index(b"\xff\xda")] + b"\xff\xd9"
    with pytest.raises(BadExample, match=r"^config.input.preprocess: decode: a picture of"):
        ops.apply({"image": [data]}, example_keys(0, np.arange(1), np.zeros(1, int)))


SAMPLES = [encoded(photo(24, 32), kind, **how) for kind, how in FORMATS.values()]
SAMPLES += [encoded(half_transparent("RGBA")), png(photo().astype(np.uint16) * 257, 2)]
SAMPLES += [encoded(photo(24, 32), "JPEG", exif=turned(6))]


@given(
    st.sampled_from(SAMPLES),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    st.floats(0, 1),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_whatever_the_bytes_it_is_a_picture_or_a_bad_example(data, flips, share, cut):
    data = bytearray(data[: int(share * len(data))] if cut else data)
    for place, value in flips:
        if data:
            # Half of them in the header, where a byte says most.
            place = place / 20 if value % 2 else place
            data[int(place * len(data))] = value
    try:
        found = decode(bytes(data))
        assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
    except BadExample:
        pass
