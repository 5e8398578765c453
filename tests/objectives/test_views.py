import jax
import jax.numpy as jnp
import numpy as np

from mm.models.encoder import Encoded
from mm.models.multimodal import Multimodal
from mm.objectives import Views


class Towers(Multimodal):
    """Counts its calls, and returns what it was given."""

    def __init__(self):  # without the towers
        self.calls = 0

    def encode_image(self, image, *, keep=1.0, rng=None):
        self.calls += 1
        noise = jnp.zeros(2) if rng is None else jax.random.uniform(rng, (2,))
        return Encoded(image * keep, noise, None)


def views(rng=None):
    batch = {"image": jnp.ones((1, 1, 1)), "image_second": jnp.full((1, 1, 1), 2.0)}
    return Views(Towers(), batch, rng)


def test_the_same_view_is_encoded_once():
    seen = views()
    assert seen.image() is seen.image() and seen.model.calls == 1


def test_another_way_or_view_is_another_encoding():
    seen = views()
    assert seen.image(keep=0.5).tokens.item() == 0.5 and seen.image().tokens.item() == 1
    assert seen.image("second").tokens.item() == 2 and seen.model.calls == 3


def test_randomness_does_not_depend_on_who_asks_first():
    first, second = views(jax.random.key(0)), views(jax.random.key(0))
    first.image()
    np.testing.assert_array_equal(first.image(keep=0.5).pooled, second.image(keep=0.5).pooled)
    assert not np.array_equal(first.image().pooled, first.image(keep=0.5).pooled)
