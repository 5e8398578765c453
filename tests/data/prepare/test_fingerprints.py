"""Hashes of pictures and captions, against another package, PIL and sets."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.prepare import fingerprints
from data.prepare.fingerprints import band_rows, color_cells, minhash, ngrams, phash, pixel_digest

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/phash/hashes.json").read_text())


def picture(seed, height=64, width=64):
    """As tests/golden/phash/make.py draws it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = rng.uniform(-20, 20, (3, 12, 3))
    values = [sum(np.sin(a * x + b * y + c) for a, b, c in color) for color in waves]
    return np.clip(128 + 25 * np.stack(values, axis=-1), 0, 255).astype(np.uint8)


def symmetric(seed):
    half = picture(seed)[:, :32]
    return np.concatenate([half, half[:, ::-1]], axis=1)


def saved(pixels, quality):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def resized(pixels, size):
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.BICUBIC))


def distance(a, b, **kwargs):
    return (phash(a, **kwargs) ^ phash(b, **kwargs)).bit_count()


@pytest.mark.parametrize("key", GOLDEN)
def test_without_a_margin_the_hash_is_that_of_imagehash(key):
    assert f"{phash(picture(*map(int, key.split())), margin=0):016x}" == GOLDEN[key]


@pytest.mark.parametrize("change", [lambda p: saved(p, 70), lambda p: resized(p, 48)])
def test_a_hash_hardly_changes_with_the_encoding_and_the_size(change):
    pictures = [picture(seed) for seed in range(30)]
    assert max(distance(p, change(p)) for p in pictures) <= 4
    others = [distance(a, b) for a in pictures for b in pictures if a is not b]
    assert min(others) > 12


def test_a_margin_keeps_the_hash_of_a_symmetric_picture():
    pictures = [symmetric(seed) for seed in range(30)]
    far = [max(distance(p, saved(p, 90), margin=m) for p in pictures) for m in (0, 128)]
    assert far[0] > 4 >= far[1]


@pytest.mark.parametrize("value", [0, 7, 255])
def test_a_picture_of_one_colour_has_the_hash_of_any_such(value):
    flat = np.full((20, 30, 3), value, np.uint8)
    assert phash(flat) == (0 if value == 0 else 1 << 63)


def test_cells_are_the_means_of_a_sixteenth_each():
    pixels = picture(1, 32, 64)
    means = pixels.reshape(4, 8, 4, 16, 3).mean((1, 3), dtype=np.float64)
    assert np.abs(color_cells(pixels).reshape(4, 4, 3) - means).max() < 1  # rounded twice


def test_pixels_of_another_shape_are_not_the_same():
    pixels = np.zeros((2, 6, 3), np.uint8)
    assert pixel_digest(pixels).tolist() != pixel_digest(pixels.reshape(6, 2, 3)).tolist()


def test_ngrams_are_all_runs_of_characters():
    text = "a red red car"
    assert len(ngrams(text, 3)) == len({text[i : i + 3] for i in range(len(text) - 2)})
    assert set(ngrams("red c", 3)) <= set(ngrams(text, 3))


@pytest.mark.parametrize("other", ["A  RED car ", "a red\ncar", "\uff41 red car"])
def test_case_spaces_and_width_make_no_difference(other):
    assert ngrams("a red car", 4).tolist() == ngrams(other, 4).tolist()


@pytest.mark.parametrize("text", ["", "ab", "\ud800"])
def test_a_text_shorter_than_a_run_has_one(text):
    assert len(ngrams(text, 4)) == 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 400), st.integers(0, 2**32))
def test_the_share_of_equal_places_is_the_jaccard_index(common, seed):
    values = np.random.default_rng(seed).integers(0, 2**63, 800).astype(np.uint64)
    a, b = values[:400], values[400 - common : 800 - common]
    jaccard = common / (800 - common)
    error = math.sqrt(jaccard * (1 - jaccard) / fingerprints.NUM_PERMUTATIONS)
    assert abs((minhash(a) == minhash(b)).mean() - jaccard) <= 5 * error + 1e-9


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.9, 0.95])
def test_bands_have_as_many_rows_as_still_find_pairs_at_the_threshold(threshold):
    rows = band_rows(threshold)
    bands = fingerprints.NUM_PERMUTATIONS // rows
    assert 1 - (1 - threshold**rows) ** bands >= 0.99
    assert 1 - (1 - threshold ** (rows + 1)) ** (fingerprints.NUM_PERMUTATIONS // (rows + 1)) < 0.99


def test_bands_are_equal_where_their_rows_are():
    a, b = np.arange(64, dtype=np.uint64), np.arange(64, dtype=np.uint64)
    b[7] = 99
    same = fingerprints.band_keys(a, 5) == fingerprints.band_keys(b, 5)
    assert same.tolist() == [True, False] + [True] * 10
    assert len(set(fingerprints.band_keys(np.zeros(64, np.uint64), 5))) == 12  # no two alike
