import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from data.preprocess.augment import DISTORTIONS
from data.preprocess.draws import example_keys
from data.preprocess.parse import parse
from mm.config import BadInput


def photos(count, side=24):
    coarse = np.random.default_rng(0).integers(0, 256, (count, 5, 5, 3)).astype(np.uint8)
    return [np.asarray(Image.fromarray(c).resize((side, side), Image.BICUBIC)) for c in coarse]


def run(ops, images, ids=None, key="image"):
    ids = np.arange(len(images)) if ids is None else np.array(ids)
    keys = example_keys(0, ids, ids * 0)
    return parse(f"decode|{ops}", where="x").apply({"image": images}, keys)[key]


def test_blur_is_a_gaussian_of_that_width():
    images = photos(3)
    found = run("resize(24)|blur((1.5, 1.5), p=1.0)", images)
    for image, blurred in zip(images, found, strict=True):
        expected = ndimage.gaussian_filter(
            image.astype(np.float64), (1.5, 1.5, 0), mode="mirror", truncate=5 / 1.5
        )
        assert np.abs(blurred - expected).max() < 1.5


def test_blur_takes_about_its_share_of_the_pictures_and_widths_between():
    noise = list(np.random.default_rng(1).integers(0, 256, (300, 16, 16, 3)).astype(np.uint8))
    spread = run("resize(16)|blur((0.5, 2.0), p=0.4)", noise).std((1, 2, 3))
    touched = spread < 0.9 * np.stack(noise).std((1, 2, 3))
    assert 90 < touched.sum() < 150 and spread[touched].std() > 3


def test_solarize_inverts_what_is_bright():
    images = photos(2)
    found = run("resize(24)|solarize(100, p=1.0)", images)
    expected = np.where(np.stack(images) < 100, images, 255 - np.stack(images))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("op", ["blur", "solarize(p=0.5)", "rand_augment(2, 15)"])
def test_an_op_on_pixels_depends_on_no_neighbour_and_others_may_follow(op):
    images = photos(12)
    ops = f"random_resized_crop(16)|color_jitter(0.3)|{op}|flip|grayscale(0.5)|normalize('clip')"
    whole = run(ops, images)
    part = run(ops, [images[i] for i in (7, 2)], [7, 2])
    np.testing.assert_array_equal(part, whole[[7, 2]])


def sampled(image, down, right):
    """Bilinear, grey 128 outside; float64."""
    planes = [
        ndimage.map_coordinates(image[..., c].astype(float), [down, right], order=1, cval=128)
        for c in range(3)
    ]
    return np.stack(planes, axis=-1)


LUMA = np.array([0.299, 0.587, 0.114])


def references(image, x):
    """What RandAugment's ops do, from its authors' words, in float64."""
    height, width = image.shape[:2]
    y0, x0 = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    angle = np.deg2rad(30 * x)
    dy, dx = y0 - height / 2, x0 - width / 2
    values, grey = image.astype(float), image @ LUMA
    low, high = values.min((0, 1)), values.max((0, 1))
    places = {
        "rotate": (
            dx * np.sin(angle) + dy * np.cos(angle) + height / 2,
            dx * np.cos(angle) - dy * np.sin(angle) + width / 2,
        ),
        "shear_x": (y0, x0 + 0.3 * x * y0),
        "shear_y": (y0 + 0.3 * x * x0, x0),
        "translate_x": (y0, x0 + 150 / 331 * x * width),
        "translate_y": (y0 + 150 / 331 * x * height, x0),
    }
    return {
        "identity": values,
        "auto_contrast": (values - low) * 255 / (high - low),
        "solarize": np.where(values < 256 * (1 - abs(x)), values, 255 - values),
        "posterize": values // 2 ** round(4 * abs(x)) * 2 ** round(4 * abs(x)),
        "color": grey[..., None] + (1 + 0.9 * x) * (values - grey[..., None]),
        "contrast": grey.mean() + (1 + 0.9 * x) * (values - grey.mean()),
        "brightness": (1 + 0.9 * x) * values,
    } | {name: sampled(image, y - 0.5, x - 0.5) for name, (y, x) in places.items()}


@pytest.mark.parametrize("amount", [-0.6, 0.3, 1.0])
@pytest.mark.parametrize("name", sorted(set(DISTORTIONS) - {"equalize", "sharpness"}))
def test_an_op_of_rand_augment_does_what_its_authors_say(name, amount):
    image = photos(1, 40)[0]
    found = np.asarray(DISTORTIONS[name](Image.fromarray(image), amount)).astype(float)
    expected = np.clip(references(image, amount)[name], 0, 255)
    # At the border to what is outside, Pillow takes the nearest pixel instead of a mixture.
    assert np.median(np.abs(found - expected)) <= 1 and np.mean(np.abs(found - expected) > 2) < 0.08


def test_equalize_makes_all_values_as_frequent_and_sharpness_works_both_ways():
    image = Image.fromarray(photos(1, 40)[0] // 3)
    values = np.asarray(DISTORTIONS["equalize"](image, 0.5))[..., 0].ravel()
    assert np.abs(np.quantile(values, [0.25, 0.5, 0.75]) - [64, 128, 191]).max() < 12
    edges = [
        np.abs(np.diff(np.asarray(DISTORTIONS["sharpness"](image, x), float), axis=0)).mean()
        for x in (-1.0, 0.0, 1.0)
    ]
    assert edges[0] < edges[1] < edges[2]


def test_rand_augment_draws_every_op_as_often_and_both_directions(monkeypatch):
    seen = []
    for name in DISTORTIONS:
        monkeypatch.setitem(
            DISTORTIONS, name, lambda image, x, name=name: seen.append((name, x)) or image
        )
    images = photos(1) * 1400
    np.testing.assert_array_equal(run("resize(24)|rand_augment(2, 12)", images), np.stack(images))
    names = [name for name, _ in seen]
    assert len(seen) == 2800 and {abs(x) for _, x in seen} == {0.4}
    assert all(150 < names.count(name) < 250 for name in DISTORTIONS)
    assert 1250 < sum(x > 0 for _, x in seen) < 1550
    first, second = names[0::2], names[1::2]
    assert 50 < sum(a == b for a, b in zip(first, second, strict=True)) < 150  # of 1400, 1 in 14


def test_magnitude_0_changes_no_picture_but_by_ops_without_one():
    images = photos(200)
    found = run("resize(24)|rand_augment(1, 0)", images)
    changed = [not np.array_equal(a, b) for a, b in zip(found, images, strict=True)]
    assert 10 < sum(changed) < 50  # auto_contrast and equalize: 2 of 14


@pytest.mark.parametrize("kind", ["random", "block"])
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.75])
def test_exactly_the_share_of_patches_is_hidden(kind, ratio):
    masks = run(f"resize((32, 64))|patch_mask(4, {ratio}, '{kind}')", photos(6), key="patch_mask")
    assert masks.shape == (6, 128) and masks.dtype == bool
    assert set(masks.sum(axis=1)) == {round(ratio * 128)}
    assert len(np.unique(masks, axis=0)) == 6


def test_blocks_hang_together_and_random_patches_do_not():
    def edges(kind):
        ops = f"resize(56)|patch_mask(4, 0.4, '{kind}')"
        masks = run(ops, photos(50), key="patch_mask").reshape(50, 14, 14)
        return np.mean(masks[:, 1:] != masks[:, :-1]) + np.mean(masks[:, :, 1:] != masks[:, :, :-1])

    assert edges("random") > 0.85 and edges("block") < 0.45


def test_all_patches_are_hidden_about_as_often():
    share = run("resize(32)|patch_mask(4, 0.5)", photos(1) * 400, key="patch_mask").mean(axis=0)
    assert 0.38 < share.min() and share.max() < 0.62


@pytest.mark.parametrize("kind", ["random", "block"])
def test_a_mask_depends_on_no_neighbour_and_leaves_the_picture_alone(kind):
    images = photos(6)
    ops = f"resize(24)|patch_mask(4, 0.4, '{kind}')|flip"
    whole = run(ops, images, key="patch_mask")
    np.testing.assert_array_equal(run(ops, [images[4]], [4], "patch_mask")[0], whole[4])
    np.testing.assert_array_equal(run(ops, images), run("resize(24)|flip", images))


@pytest.mark.parametrize(
    "ops, message",
    [
        ("resize(24)|patch_mask(5, 0.4)", "patch_size=5: does not divide the picture of 24 x 24"),
        ("resize(24)|patch_mask(4, 1.0)", "more than 0 and less than 1"),
        ("patch_mask(4, 0.5)|resize(24)", "belongs after resize or random_resized_crop"),
        ("resize(24)|rand_augment(2, 31)", "magnitude=31.0: expected at least 1, and 0 .. 30"),
        ("resize(24)|blur((0, 1))", r"sigma=\(0.0, 1.0\): expected \(least, greatest\)"),
        ("resize(24)|solarize(300)", "threshold=300: expected 0 .. 255"),
    ],
)
def test_mistakes_are_told_where_they_stand(ops, message):
    with pytest.raises(BadInput, match=message):
        run(ops, photos(1))
