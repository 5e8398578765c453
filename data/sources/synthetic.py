"""Pictures made up from their number: for tests and benchmarks, no file needed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from data.order import hash_seed, mix
from data.sources import Feature, Source
from data.sources.memory import InMemory
from mm import registry
from mm.config import BadInput

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 200, 40),
    "purple": (150, 60, 180),
    "orange": (240, 130, 30),
    "black": (20, 20, 20),
    "grey": (130, 130, 130),
}
SHAPES = ("circle", "square", "diamond", "cross")


@registry.register("source", "synthetic")
def synthetic(
    *, num_examples: int, image_size: int = 64, seed: int = 0, cache: bool = False
) -> Source:
    """Coloured shapes on white: `image` (PNG), `label`, `tags` and `concept` ("red circle").

    cache: keep pictures decoded in memory.
    """
    if num_examples < 1 or image_size < 4:
        raise BadInput(
            f"num_examples={num_examples}, image_size={image_size}: expected at least 1 and 4"
        )
    source = _Synthetic(num_examples, image_size, seed)
    return InMemory(source) if cache else source


class _Synthetic:
    features: Mapping[str, Feature] = {
        "image": Feature("image"),
        "label": Feature("text"),
        "tags": Feature("text", ragged=True),
        "concept": Feature("text"),
    }

    def __init__(self, num_examples: int, image_size: int, seed: int):
        self._num_examples, self._size, self._seed = num_examples, image_size, seed

    def __len__(self) -> int:
        return self._num_examples

    def read(self, ids: np.ndarray, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
        keys = self.features if keys is None else keys
        return [self._example(int(i), keys) for i in ids]

    def _example(self, index: int, keys: Sequence[str]) -> dict[str, Any]:
        rng = np.random.default_rng(mix(hash_seed(self._seed), np.array([index])))
        color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
        values = {
            "label": f"{color} {shape}",
            "tags": [str(color), str(shape), "shape", "colour"][: rng.integers(0, 5)],
            "concept": f"{color} {shape}",
        }
        if "image" in keys:
            values["image"] = tf.io.encode_png(self._draw(rng, color, shape)).numpy()
        return {key: values[key] for key in keys}

    def _draw(self, rng: np.random.Generator, color: str, shape: str) -> np.ndarray:
        center, radius = rng.uniform(0.4, 0.6, 2), rng.uniform(0.2, 0.35)
        noise = rng.integers(-15, 16, (self._size, self._size, 3))
        return draw(self._size, color, shape, center, radius, noise)


def draw(
    size: int, color: str, shape: str, center: np.ndarray, radius: float, noise: np.ndarray
) -> np.ndarray:
    """A picture, uint8 [size, size, 3]; center (y, x) and radius are shares of its side."""
    grid = (np.arange(size) + 0.5) / size
    y, x = np.abs(np.stack(np.meshgrid(grid, grid, indexing="ij")) - center.reshape(2, 1, 1))
    inside = {
        "circle": np.hypot(y, x) < radius,
        "square": np.maximum(y, x) < radius,
        "diamond": y + x < radius,
        "cross": (np.minimum(y, x) < radius / 3) & (np.maximum(y, x) < radius),
    }[shape]
    picture = np.where(inside[..., None], COLORS[color], 255) + noise
    return np.clip(picture, 0, 255).astype(np.uint8)
