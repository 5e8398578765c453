import io
import types

import numpy as np
import pytest
from PIL import Image

from data.preprocess import geometry
from data.preprocess.draws import example_keys
from data.preprocess.image import Encoded
from data.preprocess.parse import parse
from data.sources import BadExample
from mm.config import BadInput


def photo(height, width, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.BICUBIC))


def run(ops, images, ids=None):
    ids = np.arange(len(images)) if ids is None else np.array(ids)
    keys = example_keys(0, ids, ids * 0)
    return parse(f"decode|{ops}", where="config.input.preprocess").apply({"image": images}, keys)[
        "image"
    ]


def jpeg(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG")
    return buffer.getvalue()


PAIRS = [("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)]


@pytest.mark.parametrize("method, resampling", PAIRS)
@pytest.mark.parametrize("height, width", [(60, 100), (99, 70), (24, 31)])
def test_shortest_and_center_crop_is_what_clip_does(height, width, method, resampling):
    image, size = photo(height, width), 32
    scale = size / min(height, width)
    sides = (size if s == min(height, width) else int(s * scale) for s in (width, height))
    resized = np.asarray(Image.fromarray(image).resize(tuple(sides), resampling))
    top, left = (round((side - size) / 2.0) for side in resized.shape[:2])
    expected = resized[top : top + size, left : left + size].astype(int)
    found = run(f"resize(32, mode='shortest', method='{method}')|center_crop(32)", [image])[0]
    assert np.abs(found - expected).max() <= 1 and np.mean(found != expected) < 0.05


def test_a_jpeg_is_resized_as_its_pixels_are():
    data = jpeg(photo(120, 200))
    image = np.asarray(Image.open(io.BytesIO(data)))
    for ops in ("resize(32)", "resize(32, mode='letterbox')", "resize((20, 30), method='bicubic')"):
        np.testing.assert_array_equal(run(ops, [data]), run(ops, [image]))
    crop = "resize(32, mode='shortest')|center_crop(32)"
    gap = np.abs(run(crop, [data]).astype(int) - run(crop, [image]))
    assert gap.max() <= 1 and (gap > 0).mean() < 0.05


@pytest.mark.parametrize("height, width", [(60, 100), (99, 70), (40, 40), (3, 200)])
def test_letterbox_keeps_the_ratio_and_fills_up_with_grey(height, width):
    image, (tall, wide) = photo(height, width), (32, 48)
    scale = min(tall / height, wide / width)
    inner = max(round(height * scale), 1), max(round(width * scale), 1)
    top, left = (tall - inner[0]) // 2, (wide - inner[1]) // 2
    expected = np.full((tall, wide, 3), 10, np.uint8)
    expected[top : top + inner[0], left : left + inner[1]] = Image.fromarray(image).resize(
        inner[::-1], Image.BILINEAR
    )
    found = run("resize((32, 48), mode='letterbox', value=10)", [image])[0]
    np.testing.assert_array_equal(found, expected)
    mirrored = run("resize((32, 48), mode='letterbox', value=10)|flip(1.0)", [image])[0]
    np.testing.assert_array_equal(mirrored, expected[:, ::-1])


@pytest.mark.parametrize("ops", ["resize((20, 36))", "random_resized_crop((20, 36))"])
def test_a_target_need_not_be_square(ops):
    found = run(f"{ops}|flip|color_jitter(0.4)|cutout", [photo(40, 50), photo(90, 30)])
    assert found.shape == (2, 20, 36, 3)


def test_without_antialiasing_fine_noise_stays():
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    plain, smooth = run("resize(31, antialias=False)", [noise]), run("resize(31)", [noise])
    assert plain.std() > 2 * smooth.std()


def test_a_letterbox_depends_on_no_neighbour():
    images = [photo(32, 32), photo(20, 60), photo(60, 20)]
    for antialias in (True, False):
        ops = f"resize(24, mode='letterbox', antialias={antialias})|flip"
        whole = run(ops, images)
        for i, image in enumerate(images):
            np.testing.assert_array_equal(run(ops, [image], [i])[0], whole[i])


@pytest.mark.parametrize("crop", ["center_crop", "random_crop"])
def test_a_crop_of_a_large_picture_is_a_part_of_it(crop):
    images = [photo(50, 70, seed) for seed in range(20)]
    found = run(f"{crop}((24, 30))", images)
    for image, part in zip(images, found, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(image, (24, 30, 3))[:, :, 0]
        assert (windows == part).all((2, 3, 4)).any()


def test_random_crops_reach_every_place_and_center_crop_the_middle():
    image = np.zeros((10, 12, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(10)[:, None], np.arange(12)
    found = run("random_crop((8, 9))", [image] * 400)
    places = {tuple(corner) for corner in found[:, 0, 0, :2].tolist()}
    assert places == {(y, x) for y in range(3) for x in range(4)}
    assert run("center_crop((8, 9))", [image])[0, 0, 0].tolist() == [1, 2, 0]


def test_a_picture_that_is_too_small_for_its_crop_is_a_bad_example():
    with pytest.raises(BadExample, match="picture of 20 x 30 is smaller than 24 x 24") as error:
        run("center_crop(24)", [photo(40, 40), photo(20, 30)])
    assert error.value.reason == "picture is smaller than its crop"


@pytest.mark.parametrize(
    "ops, message",
    [
        ("resize(24)|center_crop(32)", "is smaller than 32 x 32; make it larger in resize"),
        ("resize((2, 3), mode='shortest')", "expected one number with mode='shortest'"),
        ("resize(8, mode='squish')", "did you mean 'squash'"),
        ("resize((2, 3, 4))", r"size=\(2, 3, 4\): expected at least 1, or \(height, width\)"),
        ("resize(8, method='cubic')", "did you mean 'bicubic'"),
        ("resize(8, mode='letterbox', value=300)", "value=300.0: expected 0 .. 255"),
        ("resize(8)|cutout|center_crop(4)", "belongs before cutout and color_jitter"),
        ("resize(8, mode='shortest')", "'image'.*several sizes; put center_crop or random_crop"),
        ("resize(8, mode='shortest')|cutout", "cutout: the pictures have several sizes"),
        ("resize(8)|value_range(0, 1)|center_crop(4)", "belongs after decode, before value_range"),
    ],
)
def test_mistakes_are_told_where_they_stand(ops, message):
    with pytest.raises(BadInput, match=message) as error:
        run(ops, [photo(20, 30), photo(30, 40)])
    assert str(error.value).startswith("config.input.preprocess")


@pytest.mark.parametrize(
    "ops, mean, std",
    [
        ("'clip'", [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
        ("'imagenet'", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("(0.1, 0.2, 0.3), (0.4, 0.5, 0.6)", [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]),
    ],
)
def test_normalize_takes_the_mean_off_and_divides_by_the_deviation(ops, mean, std):
    image = photo(8, 8)
    found = run(f"resize(8)|normalize({ops})", [image])[0]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, (image / 255 - mean) / std, atol=1e-6)


@pytest.mark.parametrize(
    "ops", ["'clipp'", "'clip', (1, 1, 1)", "(0.5, 0.5)", "(1, 1, 1), (0, 1, 1)"]
)
def test_normalize_refuses_what_it_does_not_know(ops):
    with pytest.raises(BadInput, match=r"normalize\(.*expected"):
        parse(f"decode|resize(8)|normalize({ops})", where="config.input.preprocess")


def test_a_random_crop_of_many_pixels_ends_between_two_of_them():
    pictures = [np.zeros((300, 401, 3), np.uint8), np.zeros((90, 90, 3), np.uint8)] * 20
    rng = np.random.default_rng(0)
    draws = types.SimpleNamespace(uniform=lambda count: rng.random((count, len(pictures))))
    op = geometry.random_resized_crop(size=32, scale=(0.3, 1.0))
    boxes = op.apply({"image": Encoded(pictures)}, draws)["image"].boxes
    pixels = boxes * [picture.shape[:2] * 2 for picture in pictures]
    away = np.abs(pixels - np.round(pixels)).max(axis=1)
    assert away[::2].max() < 1e-3 and away[1::2].min() > 1e-3
