import jax
import jax.numpy as jnp
import numpy as np

from mm.models.encoder import Encoded
from mm.models.keys import example_keys, uniform
from mm.models.multimodal import Embedding, Multimodal
from mm.objectives import Views
from mm.objectives.views import view
from tests.tiny import model


class Towers(Multimodal):
    """Counts its calls, and returns what it was given."""

    def __init__(self):  # without the towers
        self.calls = 0

    def encode_image(self, image, *, keep=1.0, draw=None, rng=None):
        self.calls += 1
        noise = jnp.zeros((len(image), 2)) if rng is None else uniform(rng, (2,))
        return Encoded(image * keep, noise, None)

    def project(self, tower, encoded):
        self.calls += 1
        return Embedding(encoded.pooled + 1, encoded.pooled[:, 0])


def views(rng=None, rows=slice(None)):
    batch = {"image": jnp.ones((4, 1, 1)), "image_second": jnp.full((4, 1, 1), 2.0)}
    keys = None if rng is None else example_keys(rng, 4)[rows]
    return Views(Towers(), {name: x[rows] for name, x in batch.items()}, keys)


def test_the_same_view_is_encoded_once():
    seen = views()
    assert seen.image() is seen.image() and seen.model.calls == 1


def test_another_way_or_view_is_another_encoding():
    seen = views()
    assert (seen.image(keep=0.5).tokens == 0.5).all() and (seen.image().tokens == 1).all()
    assert (seen.image("second").tokens == 2).all() and seen.model.calls == 3


def test_an_embedding_is_that_of_the_view_and_made_once():
    seen = views(jax.random.key(0))
    z = seen.image_embedding(keep=0.5).z
    np.testing.assert_array_equal(z, seen.image(keep=0.5).pooled + 1)
    assert seen.image_embedding(keep=0.5).z is z and seen.model.calls == 2


def test_views_together_are_what_each_is_alone_and_made_in_one_pass():
    apart, together = views(jax.random.key(0)), views(jax.random.key(0))
    asked = [view("image"), view("image", "second")]
    for one, found in zip(asked, together.encode_all(asked), strict=True):
        np.testing.assert_array_equal(found.tokens, apart.encode(one).tokens)
        np.testing.assert_array_equal(found.pooled, apart.encode(one).pooled)
    assert together.model.calls == 1 and apart.model.calls == 2
    assert together.image("second") is together.encode_all(asked)[1] and together.model.calls == 1


def test_of_views_together_only_those_that_are_missing_are_made():
    seen = views(jax.random.key(0))
    first = seen.image()
    found = seen.encode_all([view("image"), view("image", "second")])
    assert found[0] is first and (found[1].tokens == 2).all() and seen.model.calls == 2


def test_views_of_another_way_size_or_type_are_made_apart():
    seen = views()
    seen.batch["image_small"] = jnp.ones((4, 1, 2))
    seen.batch["image_bytes"] = jnp.full((4, 1, 1), 3, jnp.uint8)
    asked = [
        view("image"),
        view("image", "second", keep=0.5),
        view("image", "small"),
        view("image", "bytes"),
        view("image", "second"),
    ]
    found = [x.tokens for x in seen.encode_all(asked)]
    assert [float(x.mean()) for x in found] == [1, 1, 1, 3, 2]
    assert found[2].shape == (4, 1, 2) and seen.model.calls == 4


FUSED = dict(fusion=dict(name="cross", width=16, depth=1, num_heads=2, dropout=0.3))
TEXT_ROWS, IMAGE_ROWS = jnp.array([1, 2, 3, 0]), jnp.array([2, 3, 0, 1])


def pairs(seed=None):
    """Views of pictures and words of noise."""
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.standard_normal((4, 16, 16, 3)), jnp.float32),
        "text": jnp.asarray(rng.integers(1, 64, (4, 8)), jnp.int32),
        "text_mask": jnp.arange(8) < jnp.array([[8], [5], [3], [6]]),
    }
    keys = None if seed is None else example_keys(jax.random.key(seed), 4)
    return Views(model(**FUSED), batch, keys)


def test_a_pair_and_its_others_are_fused_as_each_would_be_alone():
    own, text, image = pairs().fuse_others(TEXT_ROWS, IMAGE_ROWS)
    plain, swapped, turned = pairs(), pairs(), pairs()
    for key in ("text", "text_mask"):
        swapped.batch[key] = swapped.batch[key][TEXT_ROWS]
    turned.batch["image"] = turned.batch["image"][IMAGE_ROWS]
    for found, want in ((own, plain), (text, swapped), (image, turned)):
        np.testing.assert_allclose(found.pooled, want.fuse().pooled, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.text, want.fuse().text, rtol=1e-5, atol=1e-6)


def test_others_are_the_same_if_the_pair_is_known():
    fresh, known = pairs(seed=1), pairs(seed=1)
    first = known.fuse()
    want, found = (seen.fuse_others(TEXT_ROWS, IMAGE_ROWS) for seen in (fresh, known))
    assert found[0] is first and fresh.fuse() is want[0]
    for a, b in zip(want, found, strict=True):
        np.testing.assert_allclose(a.pooled, b.pooled, rtol=1e-5, atol=1e-6)
    still = pairs().fuse_others(TEXT_ROWS, IMAGE_ROWS)
    assert all(np.abs(a.pooled - b.pooled).max() > 1e-3 for a, b in zip(still, found, strict=True))


def test_randomness_does_not_depend_on_who_asks_first():
    first, second = views(jax.random.key(0)), views(jax.random.key(0))
    first.image()
    np.testing.assert_array_equal(first.image(keep=0.5).pooled, second.image(keep=0.5).pooled)
    assert not np.array_equal(first.image().pooled, first.image(keep=0.5).pooled)


def test_randomness_does_not_depend_on_the_other_rows():
    whole, part = views(jax.random.key(0)), views(jax.random.key(0), slice(1, 3))
    np.testing.assert_array_equal(whole.image().pooled[1:3], part.image().pooled)
    assert len(np.unique(whole.image().pooled)) == 8  # and each row has its own
