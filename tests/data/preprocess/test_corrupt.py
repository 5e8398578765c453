"""The corruptions of ImageNet-C, each by its definition or another library."""

import colorsys
import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from data.preprocess import corrupt
from data.preprocess.corrupt import CORRUPTIONS, STRENGTHS, constants, corrupted
from data.preprocess.parse import parse
from mm.config import BadInput
from tests.data.preprocess.test_augment import photos, run


def rng(key=0):
    return np.random.Generator(np.random.Philox(key=key))


def squared_error(found, image):
    return ((found - image) ** 2).mean()


def lost_correlation(found, image):
    return 1 - np.corrcoef(found.ravel(), image.ravel())[0, 1]


def damage(name, side, measure=squared_error):
    """Mean over a few pictures, by strength."""
    images = [np.uint8(40 + 0.6 * image) for image in photos(8, side)]
    return [
        np.mean(
            [
                measure(corrupted(image, name, k, rng(i)).astype(float), image.astype(float))
                for i, image in enumerate(images)
            ]
        )
        for k in STRENGTHS
    ]


# The authors' constants of these are ordered by something else, see the tests below.
OTHERS = {"frost", "fog", "glass_blur", "elastic_transform", "pixelate"}


@pytest.mark.parametrize("side", [32, 48, 224])
@pytest.mark.parametrize("name", sorted({*CORRUPTIONS} - OTHERS))
def test_more_strength_is_more_squared_error(name, side):
    steps = np.diff([0, *damage(name, side)])
    # At 32 pixels strengths 2 and 3 of motion round to one kernel, but for the tail of it.
    assert (steps > 0).all() or (name, side) == ("motion_blur", 32) and (steps >= 0).all()


@pytest.mark.parametrize("side", [32, 48, 224])
@pytest.mark.parametrize("name", ["frost", "fog"])
def test_more_frost_and_fog_leave_less_of_the_picture(name, side):
    """They make it darker, too, which may bring it nearer in squared error."""
    assert (np.diff([0, *damage(name, side, lost_correlation)]) > 0).all()


@pytest.mark.parametrize(("name", "side"), [("glass_blur", 128), ("pixelate", 48)])
def test_the_last_strength_is_more_than_the_first(name, side):
    """Those of glass between have other rounds; how the blocks lie matters to pixelate."""
    found = damage(name, side)
    assert found[4] > found[0] > 0


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_any_size_stays_and_values_are_bytes(name):
    [image] = np.random.default_rng(0).integers(0, 256, (1, 21, 34, 3)).astype(np.uint8)
    for strength in (1, 5):
        found = corrupted(image, name, strength, rng())
        assert found.dtype == np.uint8 and found.shape == image.shape
        assert (found != image).any()
    for flat in (np.zeros_like(image), np.full_like(image, 255)):
        assert np.isfinite(corrupted(flat, name, 5, rng())).all()


def test_constants_are_the_authors_at_32_and_224_pixels_and_between_them_between():
    assert constants("shot_noise", 1, 32) == constants("shot_noise", 1, 20) == (500,)
    assert constants("shot_noise", 1, 224) == pytest.approx((60,))
    assert constants("shot_noise", 1, 85) == pytest.approx(((500 * 60) ** 0.5,), rel=0.01)
    assert constants("defocus_blur", 5, 448) == pytest.approx((20, 0.5))  # a length and another
    assert constants("snow", 1, 448)[0] == pytest.approx(0.1)


def test_noise_has_the_variance_that_its_constant_says():
    grey = np.full((200, 200, 3), 0.5, np.float32)
    assert corrupt._gaussian_noise(grey, rng(), 0.1).std() == pytest.approx(0.1, rel=0.02)
    assert corrupt._shot_noise(grey, rng(), 60).var() == pytest.approx(0.5 / 60, rel=0.02)
    lost = corrupt._impulse_noise(grey, rng(), 0.2)
    assert (lost == 0).mean() == pytest.approx(0.1, rel=0.05) == (lost == 1).mean()
    assert (lost == 0.5).mean() == pytest.approx(0.8, rel=0.02)


def test_defocus_is_a_disc():
    x = np.float32(photos(1, 40)[0]) / 255
    rows, columns = np.mgrid[-8:9, -8:9]
    disc = (np.hypot(rows, columns) <= 5).astype(float)
    disc = ndimage.gaussian_filter(disc / disc.sum(), 0.5, truncate=2, mode="constant")
    expected = ndimage.convolve(x.astype(float), disc[..., None], mode="mirror")
    np.testing.assert_allclose(corrupt._defocus_blur(x, rng(), 5.0, 0.5), expected, atol=2e-3)


def test_motion_is_half_a_gaussian_along_a_line():
    x = np.float32(photos(1, 40)[0]) / 255
    half = np.exp(-(np.arange(13) ** 2) / (2 * 3.0**2))
    kernel = np.concatenate([np.zeros(12), half / half.sum()])
    expected = ndimage.correlate1d(x.astype(float), kernel, axis=1, mode="nearest")
    np.testing.assert_allclose(corrupt._streaked(x, 6, 3.0, 0.0), expected, atol=1e-5)
    point = np.zeros((31, 31), np.float32)
    point[15, 15] = 1
    down, right = ndimage.center_of_mass(corrupt._streaked(point, 5, 4.0, 45.0))
    assert down < 14 and right == pytest.approx(down, abs=1e-3)  # a diagonal


def test_zoom_is_the_mean_of_enlargements():
    x = np.float32(photos(1, 33)[0]) / 255
    near = [
        ndimage.affine_transform(
            x.astype(float), [1 / f, 1 / f, 1], [16 * (1 - 1 / f)] * 2 + [0], order=1
        )
        for f in (1.0, 1.1, 1.2)
    ]
    expected = (x + sum(near)) / 4
    np.testing.assert_allclose(corrupt._zoom_blur(x, rng(), 1.2, 3), expected, atol=0.01)


def test_brightness_is_added_to_the_value_of_hsv():
    x = np.random.default_rng(0).random((5, 5, 3), np.float32)
    x[0, 0] = 0
    expected = [
        colorsys.hsv_to_rgb(h, s, min(v + 0.3, 1))
        for h, s, v in (colorsys.rgb_to_hsv(*p) for p in x.reshape(-1, 3).astype(float))
    ]
    found = corrupt._brightness(x, rng(), 0.3).reshape(-1, 3)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_contrast_is_about_the_mean_of_each_channel():
    x = np.float32([[[0.0, 0.5, 1.0], [1.0, 0.5, 0.0]]])
    expected = [[[0.375, 0.5, 0.625], [0.625, 0.5, 0.375]]]
    np.testing.assert_allclose(corrupt._contrast(x, rng(), 0.25), expected)


def test_half_the_pixels_are_the_means_of_blocks():
    image = photos(1, 16)[0]
    found = corrupt._pixelate(np.float32(image) / 255, rng(), 0.5) * 255
    blocks = image.reshape(8, 2, 8, 2, 3).mean((1, 3)).repeat(2, 0).repeat(2, 1)
    assert np.abs(found - blocks).max() <= 1  # Pillow rounds up, by rows and by columns


def test_jpeg_is_that_of_its_quality():
    [image] = photos(1, 224)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=10)
    found = corrupted(image, "jpeg_compression", 4, rng())
    np.testing.assert_array_equal(found, np.asarray(Image.open(buffer)))


def test_fog_and_frost_lay_a_texture_over_the_picture():
    x = np.full((48, 48, 3), 0.5, np.float32)
    fog = corrupt._fog(x, rng(), 1.0, 2.0)
    assert fog.min() == pytest.approx(0.5 / 3, abs=0.01) and fog.max() <= 0.5001
    assert np.ptp(fog, axis=2).max() < 1e-6
    frost = corrupt._frost(x, rng(), 0.8, 0.5)
    assert 0.4 + 0.15 * 0.85 - 1e-5 <= frost.min() and frost.max() <= 0.9001
    assert (frost[..., 2] > frost[..., 0]).all()
    assert ndimage.laplace(frost[..., 0]).std() > 0.01


def test_a_fractal_with_more_decay_is_smoother():
    x = np.zeros((64, 64, 3), np.float32)
    rough, smooth = (corrupt._fractal(x, rng(), decay) for decay in (1.2, 3.0))
    assert rough.min() == smooth.min() == 0
    assert np.abs(np.diff(rough)).mean() > 3 * np.abs(np.diff(smooth)).mean()


def test_an_elastic_without_noise_is_a_plane_for_a_plane():
    rows, columns = np.mgrid[:60, :60].astype(np.float32)
    x = np.stack([columns, rows, rows + columns], -1) / 120
    still = corrupt._elastic_transform(x, rng(), 0.0, 0.0, 0.0)
    np.testing.assert_allclose(still, x, atol=1e-3)
    moved = corrupt._elastic_transform(x, rng(), 0.0, 0.0, 0.05)[15:45, 15:45]
    assert np.abs(moved - x[15:45, 15:45]).max() > 0.01
    assert np.abs(np.diff(moved, 2, axis=0)).max() < 1e-3  # still a plane


def test_an_elastic_moves_pixels_as_far_as_smoothed_noise_says():
    """Uniform noise has the deviation 3^-0.5; smoothed by s in two dimensions, / (2 s pi^0.5)."""
    side, smoothness, amount = 128, 0.02, 0.1
    x = np.tile(np.arange(side, dtype=np.float32)[None, :, None] / side, (side, 1, 3))
    found = corrupt._elastic_transform(x, rng(), amount, smoothness, 0.0)
    expected = amount * side / 3**0.5 / (2 * smoothness * side * np.pi**0.5)
    moved = ((found - x) * side)[10:-10, 10:-10]
    assert moved.std() == pytest.approx(expected, rel=0.1)


def test_strengths_share_their_draws_and_neighbours_do_not():
    image = np.full((32, 32, 3), 128, np.uint8)
    weak, strong = (
        run(f'resize(32)|corrupt("gaussian_noise", {k})', [image, image]).astype(float) - 128
        for k in (1, 5)
    )
    assert np.corrcoef(weak[0].ravel(), strong[0].ravel())[0, 1] > 0.99
    assert abs(np.corrcoef(weak[0].ravel(), weak[1].ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("name", ["gaussian_noise", "fog", "elastic_transform"])
def test_an_example_depends_on_no_neighbour_before_and_after_resize(name):
    images = photos(4)
    for ops in (f'corrupt("{name}", 3)|resize(16)', f'resize(16)|corrupt("{name}", 3)|flip'):
        part, whole = run(ops, [images[2]], [2]), run(ops, images)
        np.testing.assert_array_equal(part[0], whole[2])


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ('decode|corrupt("gausian_noise", 3)', "did you mean 'gaussian_noise'"),
        ('decode|corrupt("fog", 6)', "strength=6: expected 1 to 5"),
    ],
)
def test_mistakes_are_refused(ops, message):
    with pytest.raises(BadInput, match=message):
        parse(ops, where="x")


def test_after_numbers_it_is_too_late():
    with pytest.raises(BadInput, match="belongs after decode or resize"):
        run('resize(8)|value_range(0, 1)|corrupt("fog")', photos(1))
