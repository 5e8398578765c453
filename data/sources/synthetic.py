"""Pictures made up from their number: for tests and benchmarks, no file needed."""

from collections.abc import Callable, Mapping, Sequence
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
_FEATURES = {
    "image": Feature("image"),
    "label": Feature("text"),
    "tags": Feature("text", ragged=True),
    "concept": Feature("text"),
    "group": Feature("text"),
}


@registry.register("source", "synthetic")
def synthetic(
    *, num_examples: int, image_size: int = 64, seed: int = 0, cache: bool = False
) -> Source:
    """Coloured shapes on white: `image` (PNG), `label`, `tags`, `concept` ("red circle") and
    `group` ("circle").

    cache: keep pictures decoded in memory.
    """
    if num_examples < 1 or image_size < 4:
        raise BadInput(
            f"num_examples={num_examples}, image_size={image_size}: expected at least 1 and 4"
        )

    def make(rng: np.random.Generator, keys: Sequence[str]) -> dict[str, Any]:
        color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
        values = {
            "label": f"{color} {shape}",
            "tags": [str(color), str(shape), "shape", "colour"][: rng.integers(0, 5)],
            "concept": f"{color} {shape}",
            "group": str(shape),
        }
        if "image" in keys:
            center, radius = rng.uniform(0.4, 0.6, 2), rng.uniform(0.2, 0.35)
            noise = rng.integers(-15, 16, (image_size, image_size, 3))
            picture = draw(image_size, color, shape, center, radius, noise)
            values["image"] = tf.io.encode_png(picture).numpy()
        return values

    source = Made(_FEATURES, num_examples, seed, make)
    return InMemory(source) if cache else source


class Made:
    """Examples made up from their number. make: (random numbers of its own, which fields) -> at
    least those fields."""

    def __init__(
        self,
        features: Mapping[str, Feature],
        num_examples: int,
        seed: int,
        make: Callable[[np.random.Generator, Sequence[str]], dict[str, Any]],
    ):
        self.features = features
        self._num_examples, self._seed, self._make = num_examples, seed, make

    def __len__(self) -> int:
        return self._num_examples

    def read(self, ids: np.ndarray, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
        keys = tuple(self.features) if keys is None else keys
        keyed = mix(hash_seed(self._seed), np.asarray(ids))
        records = [self._make(np.random.default_rng(key), keys) for key in keyed[:, None]]
        return [{key: record[key] for key in keys} for record in records]


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
