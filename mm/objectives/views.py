"""One batch seen through the towers: each (tower, view) is computed once, when first asked for."""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
from jax import Array

from mm.models.encoder import Encoded
from mm.models.multimodal import Multimodal


class Views:
    """Lazy encodings of a batch. Objectives that ask for the same share its computation.

    A view "clean" reads batch["image"]; another reads batch["image_<name>"] (likewise text). Asked
    for in another way (`how`), it is another encoding. `rng` is None in evaluation. Randomness is
    keyed by tower, view and way, so it does not depend on which objective asks first.
    """

    def __init__(self, model: Multimodal, batch: Mapping[str, Array], rng: Array | None):
        self.model, self.batch, self._rng = model, batch, rng
        self._cache: dict[str, Encoded] = {}

    def image(self, name: str = "clean", **how: Any) -> Encoded:
        """The encoded image of that view; `how` goes to `Multimodal.encode_image`."""
        return self._encode("image", name, how)

    def text(self, name: str = "clean", **how: Any) -> Encoded:
        """The encoded text of that view; `how` goes to `Multimodal.encode_text`."""
        mask = self.batch[_key("text", name) + "_mask"]
        return self._encode("text", name, how, mask=mask)

    def _encode(self, tower: str, name: str, how: dict[str, Any], **arrays: Array) -> Encoded:
        way = "".join(f" {key}={value}" for key, value in sorted(how.items()))
        key = f"{tower}/{name}{way}"
        if key not in self._cache:
            rng = self._rng
            if rng is not None:
                rng = jax.random.fold_in(rng, zlib.crc32(key.encode()))
            encode = getattr(self.model, f"encode_{tower}")
            self._cache[key] = encode(self.batch[_key(tower, name)], **arrays, **how, rng=rng)
        return self._cache[key]


def _key(tower: str, name: str) -> str:
    return tower if name == "clean" else f"{tower}_{name}"
