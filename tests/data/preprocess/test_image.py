import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.preprocess.draws import example_keys
from data.preprocess.image import _turn_hue
from data.preprocess.parse import parse

ALL = (
    "decode|pad(0.1)|random_resized_crop(12, scale=(0.2, 1))|flip|cutout(0.4)"
    "|color_jitter(0.4, 0.4, 0.4, 0.1)|grayscale(0.3)|mix_channels(0.2, 0.5)|value_range(-1, 1)"
)


def pictures(count, height=16, width=16, seed=0):
    shape = (count, 3, height, width)
    return list(np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8))


def run(string, images, seed=0, ids=None):
    ids = np.arange(len(images)) if ids is None else ids
    ops = parse(string, where="config.input.preprocess")
    return ops.apply({"image": images}, example_keys(seed, ids, ids * 0))["image"]


def as_hwc(images):
    return np.stack(images).transpose(0, 2, 3, 1)


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
    expected = Image.fromarray(image.transpose(1, 2, 0)).resize((size, size), Image.BILINEAR)
    found = run(f"decode|resize({size})|value_range(0, 255)", [image])[0]
    assert np.abs(found - np.asarray(expected, np.float32)).max() <= 1  # PIL rounds twice


@pytest.mark.parametrize("height, width, size", [(64, 64, 48), (40, 20, 24), (4, 4, 12)])
def test_a_padded_picture_is_one_with_a_margin_around_it(height, width, size):
    images = pictures(2, height, width)
    top, left = height // 4, width // 4
    canvas = [
        np.pad(image, ((0, 0), (top, top), (left, left)), constant_values=255) for image in images
    ]
    expected = run(f"decode|resize({size})|value_range(0, 255)", canvas)
    found = run(f"decode|pad(0.25)|resize({size})|value_range(0, 255)", images)
    # The edge of the canvas itself, where the weights of a cut triangle differ, is left out.
    edge = slice(1, -1)
    np.testing.assert_allclose(found[:, edge, edge], expected[:, edge, edge], atol=1e-3)


def test_resize_to_the_same_size_changes_nothing():
    images = pictures(3)
    found = run("decode|resize(16)|value_range(0, 255)", images)
    np.testing.assert_allclose(found, as_hwc(images), atol=1e-4)


def test_encoded_and_decoded_pictures_give_the_same():
    images = pictures(4)
    encoded = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    np.testing.assert_array_equal(run(ALL, encoded), run(ALL, images))


def test_pictures_of_several_sizes_go_together():
    images = [*pictures(2, 16, 16), *pictures(2, 30, 20), *pictures(1, 16, 16)]
    whole = run(ALL, images)
    for i, image in enumerate(images):
        np.testing.assert_array_equal(run(ALL, [image], ids=np.array([i])), whole[i : i + 1])


def test_flip_mirrors_about_half_and_only_left_and_right():
    images = pictures(400)
    plain = as_hwc(images).astype(np.float32)
    found = run("decode|resize(16)|flip|value_range(0, 255)", images)
    is_plain = np.abs(found - plain).max((1, 2, 3)) < 1e-3
    is_mirrored = np.abs(found - plain[:, :, ::-1]).max((1, 2, 3)) < 1e-3
    assert np.all(is_plain ^ is_mirrored) and 150 < is_plain.sum() < 250


def test_crops_have_the_area_and_ratio_asked_for():
    """On a picture of its own coordinates, the crop's slope is its side."""
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    image = np.stack([np.tile(ramp[:, None], (1, 64)), np.tile(ramp, (64, 1)), np.zeros((64, 64))])
    ops = "decode|random_resized_crop(32, scale=(0.3, 0.6), ratio=(0.8, 1.25))|value_range(0, 255)"
    found = run(ops, [image.astype(np.uint8)] * 300)
    height = (found[:, -4, 16, 0] - found[:, 3, 16, 0]) / 255 * 63 / 64 * 32 / 25
    width = (found[:, 16, -4, 1] - found[:, 16, 3, 1]) / 255 * 63 / 64 * 32 / 25
    area, ratio = height * width, width / height
    assert 0.28 < area.min() < 0.34 and 0.56 < area.max() < 0.62
    assert 0.77 < ratio.min() < 0.86 and 1.17 < ratio.max() < 1.3


def test_value_range_maps_black_and_white_to_its_ends():
    black, white = np.zeros((3, 8, 8), np.uint8), np.full((3, 8, 8), 255, np.uint8)
    found = run("decode|resize(8)|value_range(-1, 1)", [black, white])
    assert np.all(found[0] == -1) and np.all(found[1] == 1) and found.dtype == np.float32


def test_jitter_of_nothing_changes_nothing():
    images = pictures(3)
    plain = run("decode|resize(16)|value_range(0, 1)", images)
    found = run("decode|resize(16)|color_jitter()|mix_channels(0.0)|value_range(0, 1)", images)
    np.testing.assert_allclose(found, plain, atol=1e-6)


def test_brightness_scales_all_pixels_of_a_picture_by_one_factor():
    images = [np.full((3, 8, 8), 100, np.uint8)] * 200
    found = run("decode|resize(8)|color_jitter(brightness=0.3)|value_range(0, 255)", images)
    factor = found[:, 0, 0, 0] / 100
    np.testing.assert_allclose(
        found, np.broadcast_to(factor[:, None, None, None], found.shape) * 100
    )
    assert 0.7 <= factor.min() < 0.73 and 1.27 < factor.max() <= 1.3


def test_contrast_keeps_the_mean_grey():
    images = [image // 4 + 96 for image in pictures(20)]  # far from clipping
    luma = [0.299, 0.587, 0.114]
    found = run("decode|resize(16)|color_jitter(contrast=0.5)|value_range(0, 255)", images)
    np.testing.assert_allclose(
        (found @ luma).mean((1, 2)), (as_hwc(images) @ luma).mean((1, 2)), rtol=1e-4
    )
    spread = found.std((1, 2, 3)) / as_hwc(images).std((1, 2, 3))
    assert spread.min() < 0.75 and spread.max() > 1.25


def test_grayscale_leaves_three_equal_channels():
    found = run("decode|resize(16)|grayscale(1.0)|value_range(0, 255)", pictures(3))
    np.testing.assert_allclose(
        found, as_hwc(pictures(3)) @ [[0.299] * 3, [0.587] * 3, [0.114] * 3], atol=1e-3
    )


@pytest.mark.parametrize(
    "op", ["color_jitter(hue=0.5)", "color_jitter(saturation=1.0)", "mix_channels(0.5)"]
)
def test_ops_on_colour_leave_grey_alone_and_change_colour(op):
    grey, red = np.full((3, 8, 8), 90, np.uint8), np.zeros((3, 8, 8), np.uint8)
    red[0] = 120
    found = run(f"decode|resize(8)|{op}|value_range(0, 255)", [grey, red] * 20)
    np.testing.assert_allclose(found[0::2], 90, atol=1e-3)
    assert np.median(np.abs(found[1::2] - [120, 0, 0]).max((1, 2, 3))) > 10


def test_a_third_of_a_turn_of_hue_moves_red_to_green():
    turned = _turn_hue(np.array([2 * np.pi / 3], np.float32))[0] @ np.array([255.0, 0, 0])
    np.testing.assert_allclose(turned, [0, 255, 0], atol=1e-3)


def test_cutout_paints_squares_of_the_size_asked_for():
    images = [np.zeros((3, 16, 16), np.uint8)] * 100
    found = run("decode|resize(16)|cutout(0.5, p=0.5, value=255)|value_range(0, 1)", images)
    painted = found[..., 0].sum((1, 2))
    assert 30 < np.sum(painted > 0) < 70 and painted.max() == 64
