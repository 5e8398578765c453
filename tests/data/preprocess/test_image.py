import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.preprocess.color import _turn_hue
from data.preprocess.draws import example_keys
from data.preprocess.image import Planned
from data.preprocess.parse import parse

ALL = (
    "decode|pad(0.1)|random_resized_crop(12, scale=(0.2, 1))|flip|cutout(0.4)"
    "|color_jitter(0.4, 0.4, 0.4, 0.1)|grayscale(0.3)|mix_channels(0.2, 0.5)"
)


def pictures(count, height=16, width=16, seed=0):
    shape = (count, height, width, 3)
    return list(np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8))


def run(string, images, seed=0, ids=None):
    ids = np.arange(len(images)) if ids is None else ids
    ops = parse(string, where="config.input.preprocess")
    return ops.apply({"image": images}, example_keys(seed, ids, ids * 0))["image"]


def smooth_pictures(count, height=16, width=16, seed=0):
    """Without detail finer than the 1/32 of a pixel to which OpenCV rounds places."""
    coarse = pictures(count, 3, 3, seed)
    return [np.asarray(Image.fromarray(c).resize((width, height), Image.BICUBIC)) for c in coarse]


def sample(image, top, left, height, width, size):
    """float64 bilinear resampling of a box in pixels; pixels count at their centres."""
    rows = top + (np.arange(size) + 0.5) * height / size - 0.5
    columns = left + (np.arange(size) + 0.5) * width / size - 0.5

    def weights(places, length):
        places = np.clip(places, 0, length - 1)
        return np.maximum(1 - np.abs(places[:, None] - np.arange(length)), 0)

    image = image.astype(np.float64)
    return np.einsum(
        "yh,xw,hwc->yxc", weights(rows, image.shape[0]), weights(columns, image.shape[1]), image
    )


@given(st.integers(1, 40), st.integers(0, 2**32), st.data())
@settings(max_examples=25, deadline=None)
def test_a_picture_is_the_same_to_the_bit_among_any_others(count, seed, data):
    images = pictures(count, seed=seed)
    whole = run(ALL, images, seed)
    some = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=count, unique=True))
    part = run(ALL, [images[i] for i in some], seed, ids=np.array(some))
    np.testing.assert_array_equal(part, whole[some])


@pytest.mark.parametrize(
    "height, width, size", [(64, 64, 48), (100, 60, 24), (20, 30, 48), (9, 9, 9)]
)
def test_resize_is_that_of_pil(height, width, size):
    image = pictures(1, height, width)[0]
    expected = Image.fromarray(image).resize((size, size), Image.BILINEAR)
    np.testing.assert_array_equal(run(f"decode|resize({size})", [image])[0], expected)


def test_resize_of_a_padded_picture_sees_the_margin():
    images = pictures(2, 40, 20)
    canvas = [np.pad(x, ((10, 10), (5, 5), (0, 0)), constant_values=255) for x in images]
    found, expected = run("decode|pad(0.25)|resize(24)", images), run("decode|resize(24)", canvas)
    np.testing.assert_array_equal(found, expected)


SIDE = st.floats(0.4, 1.4)


@given(st.integers(0, 1000), st.integers(20, 40), st.integers(20, 40), SIDE, SIDE, st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_box_is_sampled_bilinearly_within_the_margin_and_mirrored(
    seed, height, width, tall, wide, mirrored
):
    image = smooth_pictures(1, height, width, seed)[0]
    box = [0.5 - tall / 2, 0.5 - wide / 2, 0.5 + tall / 2, 0.5 + wide / 2]
    ends = [box[0], box[3], box[2], box[1]] if mirrored else box
    boxes = np.array([ends], np.float32)
    found = Planned([image], boxes, 32, margin=0.3, outside=255.0).make()[0]
    canvas = np.pad(image, ((height,) * 2, (width,) * 2, (0, 0)), constant_values=255)
    expected = sample(
        canvas, (box[0] + 1) * height, (box[1] + 1) * width, tall * height, wide * width, 32
    )
    expected = expected[:, ::-1] if mirrored else expected
    assert np.abs(found - expected).mean() < 1
    assert np.abs(found - expected).max() <= 255 / 32 + 2  # at the edge of the margin


@pytest.mark.parametrize("height, width, size", [(400, 300, 24), (90, 400, 12), (50, 49, 24)])
def test_a_crop_of_a_large_picture_skips_no_pixel(height, width, size):
    """Fine noise averages out; sampled without shrinking first it would keep its spread."""
    image = pictures(1, height, width)[0]
    found = run(f"decode|random_resized_crop({size}, scale=(1, 1), ratio=(1, 1))", [image])[0]
    whole = Image.fromarray(image).resize((size, size), Image.BOX)
    assert found.std() < 1.5 * np.asarray(whole, np.float32).std() + 1
    assert abs(found.mean() - image.mean()) < 2


def test_resize_to_the_same_size_changes_nothing():
    images = pictures(3)
    np.testing.assert_array_equal(run("decode|resize(16)", images), np.stack(images))


def test_encoded_and_decoded_pictures_give_the_same():
    images = pictures(4)
    encoded = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    np.testing.assert_array_equal(run(ALL, encoded), run(ALL, images))


def test_pictures_of_several_sizes_go_together():
    images = [*pictures(2, 16, 16), *pictures(2, 30, 20), *pictures(1, 16, 16)]
    whole = run(ALL, images)
    for i, image in enumerate(images):
        np.testing.assert_array_equal(run(ALL, [image], ids=np.array([i])), whole[i : i + 1])


def test_flip_mirrors_about_half_and_only_left_and_right():
    images = pictures(400)
    plain = np.stack(images).astype(np.float32)
    found = run("decode|resize(16)|flip", images).astype(np.float32)
    is_plain = np.abs(found - plain).max((1, 2, 3)) < 1e-3
    is_mirrored = np.abs(found - plain[:, :, ::-1]).max((1, 2, 3)) < 1e-3
    assert np.all(is_plain ^ is_mirrored) and 150 < is_plain.sum() < 250


def test_crops_have_the_area_and_ratio_asked_for():
    """On a picture of its own coordinates, the crop's slope is its side."""
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    image = np.stack(
        [np.tile(ramp[:, None], (1, 64)), np.tile(ramp, (64, 1)), np.zeros((64, 64))], axis=-1
    )
    ops = "decode|random_resized_crop(32, scale=(0.3, 0.6), ratio=(0.8, 1.25))"
    found = run(ops, [image.astype(np.uint8)] * 300).astype(np.float32)
    height = (found[:, -4, 16, 0] - found[:, 3, 16, 0]) / 255 * 63 / 64 * 32 / 25
    width = (found[:, 16, -4, 1] - found[:, 16, 3, 1]) / 255 * 63 / 64 * 32 / 25
    area, ratio = height * width, width / height
    assert 0.28 < area.min() < 0.34 and 0.56 < area.max() < 0.62
    assert 0.77 < ratio.min() < 0.86 and 1.17 < ratio.max() < 1.3


@pytest.mark.parametrize("height, width", [(40, 80), (90, 60)])
def test_the_ratio_of_a_crop_is_that_of_its_pixels(height, width):
    """So that what is square in the picture stays square, whatever the picture's shape."""
    down, right = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    image = np.stack([2 * down, 2 * right, np.zeros((height, width))], axis=-1).astype(np.uint8)
    ops = "decode|random_resized_crop(32, scale=(0.2, 0.3), ratio=(1, 1))"
    found = run(ops, [image] * 50).astype(np.float32)
    tall = found[:, -4, 16, 0] - found[:, 3, 16, 0]
    wide = found[:, 16, -4, 1] - found[:, 16, 3, 1]
    assert tall.min() > 20 and np.abs(tall - wide).max() <= 2


@pytest.mark.parametrize("height, width", [(60, 60), (60, 90), (120, 40)])
def test_a_crop_of_a_long_picture_is_as_large_as_that_of_a_square(height, width):
    down, right = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    image = np.stack([2 * down, 2 * right, np.zeros((height, width))], axis=-1).astype(np.uint8)
    found = run("decode|random_resized_crop(32, scale=(0.9, 1.0))", [image] * 100)
    found = found.astype(np.float32)
    tall = (found[:, -4, 16, 0] - found[:, 3, 16, 0]) / (2 * height) * 32 / 25
    wide = (found[:, 16, -4, 1] - found[:, 16, 3, 1]) / (2 * width) * 32 / 25
    assert (tall * wide).min() > 0.78 and (tall * wide).mean() > 0.88


def test_value_range_maps_black_and_white_to_its_ends():
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    found = run("decode|resize(8)|value_range(-1, 1)", [black, white])
    assert np.all(found[0] == -1) and np.all(found[1] == 1) and found.dtype == np.float32


def test_jitter_of_nothing_changes_nothing():
    images = pictures(3)
    plain = run("decode|resize(16)", images)
    found = run("decode|resize(16)|color_jitter()|mix_channels(0.0)", images)
    np.testing.assert_array_equal(found, plain)


def test_brightness_scales_all_pixels_of_a_picture_by_one_factor():
    image = np.full((8, 8, 3), 50, np.uint8)
    image[4:] = 100
    found = run("decode|resize(8)|color_jitter(brightness=0.3)", [image] * 200).astype(np.float32)
    factor = found[:, 7, 0, 0] / 100
    assert np.abs(found - image * factor[:, None, None, None]).max() <= 1
    assert 0.7 <= factor.min() < 0.73 and 1.27 < factor.max() <= 1.3


def test_contrast_keeps_the_mean_grey():
    images = [image // 4 + 96 for image in pictures(20)]  # far from clipping
    luma = [0.299, 0.587, 0.114]
    found = run("decode|resize(16)|color_jitter(contrast=0.5)", images)
    np.testing.assert_allclose(
        (found @ luma).mean((1, 2)), (np.stack(images) @ luma).mean((1, 2)), atol=0.2
    )
    spread = found.std((1, 2, 3)) / np.stack(images).std((1, 2, 3))
    assert spread.min() < 0.75 and spread.max() > 1.25


def test_grayscale_leaves_three_equal_channels():
    found = run("decode|resize(16)|grayscale(1.0)", pictures(3))
    np.testing.assert_allclose(
        found, np.stack(pictures(3)) @ [[0.299] * 3, [0.587] * 3, [0.114] * 3], atol=1
    )


@pytest.mark.parametrize(
    "op", ["color_jitter(hue=0.5)", "color_jitter(saturation=1.0)", "mix_channels(0.5)"]
)
def test_ops_on_colour_leave_grey_alone_and_change_colour(op):
    grey, red = np.full((8, 8, 3), 90, np.uint8), np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 120
    found = run(f"decode|resize(8)|{op}", [grey, red] * 20)
    np.testing.assert_allclose(found[0::2], 90, atol=1)
    assert np.median(np.abs(found[1::2] - [120, 0, 0]).max((1, 2, 3))) > 10


def test_a_third_of_a_turn_of_hue_moves_red_to_green():
    turned = _turn_hue(np.array([2 * np.pi / 3], np.float32))[0] @ np.array([255.0, 0, 0])
    np.testing.assert_allclose(turned, [0, 255, 0], atol=1e-3)


def test_cutout_paints_squares_of_the_size_asked_for():
    images = [np.zeros((16, 16, 3), np.uint8)] * 100
    found = run("decode|resize(16)|cutout(0.5, p=0.5, value=255)|value_range(0, 1)", images)
    painted = found[..., 0].sum((1, 2))
    assert 30 < np.sum(painted > 0) < 70 and painted.max() == 64
