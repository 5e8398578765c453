"""One batch seen through the towers: each (tower, view) is computed once, when first asked for."""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
from jax import Array

from mm.models.encoder import Encoded
from mm.models.multimodal import Multimodal


class Views:
    """Lazy encodings of a batch. Objectives that ask for the same view share its computation.

    A view "clean" reads batch["image"]; another reads batch["image_<name>"] (likewise text). `rng`
    is None in evaluation. Randomness is keyed by tower and view, so it does not depend on which
    objective asks first.
    """

    def __init__(self, model: Multimodal, batch: Mapping[str, Array], rng: Array | None):
        self.model, self.batch, self._rng = model, batch, rng
        self._cache: dict[tuple[str, str], tuple[dict[str, Any], Encoded]] = {}

    def image(self, name: str = "clean", **how: Any) -> Encoded:
        """The encoded image of that view; `how` goes to `Multimodal.encode_image`."""
        return self._encode("image", name, how)

    def text(self, name: str = "clean", **how: Any) -> Encoded:
        """The encoded text of that view; `how` goes to `Multimodal.encode_text`."""
        mask = self.batch[_key("text", name) + "_mask"]
        return self._encode("text", name, how, mask=mask)

    def _encode(self, tower: str, name: str, how: dict[str, Any], **arrays: Array) -> Encoded:
        if (tower, name) not in self._cache:
            rng = self._rng
            if rng is not None:
                rng = jax.random.fold_in(rng, zlib.crc32(f"{tower}/{name}".encode()))
            encode = getattr(self.model, f"encode_{tower}")
            encoded = encode(self.batch[_key(tower, name)], **arrays, **how, rng=rng)
            self._cache[tower, name] = how, encoded
        asked, encoded = self._cache[tower, name]
        if asked != how:
            raise ValueError(
                f"view {name!r} of the {tower} is asked for with {how} and with {asked}; "
                f"give the second one a name of its own"
            )
        return encoded


def _key(tower: str, name: str) -> str:
    return tower if name == "clean" else f"{tower}_{name}"
