import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.preprocess.sampling import Filter, sampler
from data.sources.pictures import read

QUICK = Filter()


def photo(height, width, seed=0):
    """Rough at all scales, as photos are."""
    rng, picture = np.random.default_rng(seed), np.full((height, width, 3), 128, np.float32)
    for level in range(1, 9):
        coarse = rng.normal(0, 90 * 2 ** (-0.75 * level), (2**level, 2**level, 3))
        picture += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)


def jpeg(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def draw(picture, box, size, filter=QUICK):
    out = np.empty((*size, 3), np.uint8)
    sampler([picture], np.array([box]), size, filter, None)(0, out)
    return out


def by_pillow(image, box, size, method=Image.Resampling.BILINEAR):
    height, width = image.shape[:2]
    corners = (box[1] * width, box[0] * height, box[3] * width, box[2] * height)
    return np.asarray(Image.fromarray(image).resize(size[::-1], method, corners))


BOX = (0.05, 0.1, 0.93, 0.88)
# Sizes of a picture and of the result; steps from 0.5 to 18, and others down than across.
SIZES = [
    ((100, 120), (112, 112)), ((150, 200), (112, 112)), ((230, 260), (112, 112)),
    ((270, 330), (112, 112)), ((375, 500), (112, 112)), ((600, 300), (56, 112)),
    ((900, 1100), (56, 56)),
]  # fmt: skip


@pytest.mark.parametrize("sides, size", SIZES)
@pytest.mark.parametrize("lazily", [False, True])
def test_the_quick_way_is_within_one_of_pillow_on_average(sides, size, lazily):
    data = jpeg(photo(*sides))
    image = np.asarray(Image.open(io.BytesIO(data)))
    expected = by_pillow(image, BOX, size).astype(np.float32)
    found = draw(read(data) if lazily else image, BOX, size)
    assert np.abs(found - expected).mean() < 1
    if sides[0] > 1.3 * size[0]:  # sampled without antialiasing, it is not
        plain = draw(image, BOX, size, Filter(antialias=False))
        assert np.abs(plain - expected).mean() > 1.5 * np.abs(found - expected).mean()


@pytest.mark.parametrize("sides, size", SIZES)
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_box_of_whole_pixels_is_within_one_of_pillow_too(sides, size, mirrored):
    """From 128 pixels on it is drawn another way."""
    image = photo(*sides)
    top, left, bottom, right = np.round(np.array(BOX) * (*sides, *sides)) / (*sides, *sides)
    box = (top, right, bottom, left) if mirrored else (top, left, bottom, right)
    expected = by_pillow(image, (top, left, bottom, right), size).astype(np.float32)
    found = draw(image, box, size)
    assert np.abs((found[:, ::-1] if mirrored else found) - expected).mean() < 1


@pytest.mark.parametrize("sides, size", SIZES)
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_the_exact_way_is_pillow_also_of_a_part_of_a_jpeg(sides, size, method):
    data = jpeg(photo(*sides))
    image = np.asarray(Image.open(io.BytesIO(data)))
    expected = by_pillow(image, BOX, size, Image.Resampling[method.upper()])
    found = draw(read(data), BOX, size, Filter(method, exact=True))
    gap = np.abs(found.astype(int) - expected)
    # Pillow rounds a box to float32, so that a part of the picture is off by 1e-5 of a pixel.
    assert gap.max() <= 1 and (gap > 0).mean() < 0.3


SHARE = st.floats(0.01, 1)


@given(SHARE, SHARE, st.floats(0, 1), st.floats(0, 1), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_mirrored_is_the_mirror_image(tall, wide, y, x, exact, lazily):
    top, left = y * (1 - tall), x * (1 - wide)
    image = photo(90, 130)
    picture = read(jpeg(image)) if lazily else image
    filter = Filter(exact=exact)
    plain = draw(picture, (top, left, top + tall, left + wide), (24, 30), filter)
    mirrored = draw(picture, (top, left + wide, top + tall, left), (24, 30), filter)
    gap = np.abs(mirrored[:, ::-1].astype(int) - plain)
    # The quick way looks up places to 1/32 of a pixel.
    assert gap.mean() <= (0.05 if exact else 1.5)


@pytest.mark.parametrize("mirrored", [False, True])
def test_what_only_moves_is_copied(mirrored):
    image = photo(33, 47)
    box = (0.0, 1.0, 1.0, 0.0) if mirrored else (0.0, 0.0, 1.0, 1.0)
    expected = image[:, ::-1] if mirrored else image
    np.testing.assert_array_equal(draw(image, box, (33, 47)), expected)


def test_noise_finer_than_the_result_averages_out():
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3)).astype(np.uint8)
    for side in (190, 150, 101, 90, 60, 20):
        found = draw(noise, (0.0, 0.0, 1.0, 1.0), (side, side)).std()
        expected = by_pillow(noise, (0, 0, 1, 1), (side, side)).std()
        assert abs(found / expected - 1) < 0.25
