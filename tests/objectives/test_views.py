import jax
import jax.numpy as jnp
import numpy as np

from mm.models.encoder import Encoded
from mm.models.keys import example_keys, uniform
from mm.models.multimodal import Embedding, Multimodal
from mm.objectives import Views


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


def test_randomness_does_not_depend_on_who_asks_first():
    first, second = views(jax.random.key(0)), views(jax.random.key(0))
    first.image()
    np.testing.assert_array_equal(first.image(keep=0.5).pooled, second.image(keep=0.5).pooled)
    assert not np.array_equal(first.image().pooled, first.image(keep=0.5).pooled)


def test_randomness_does_not_depend_on_the_other_rows():
    whole, part = views(jax.random.key(0)), views(jax.random.key(0), slice(1, 3))
    np.testing.assert_array_equal(whole.image().pooled[1:3], part.image().pooled)
    assert len(np.unique(whole.image().pooled)) == 8  # and each row has its own
