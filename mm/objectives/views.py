"""One batch seen through the towers: each (tower, view) is computed once, when first asked for."""

import zlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from jax import Array

from mm.models.encoder import Encoded
from mm.models.keys import Keys, fold_in
from mm.models.multimodal import Embedding, Multimodal


class View(NamedTuple):
    """What is asked of a tower: a view's name, and a way (sorted, static keyword arguments)."""

    tower: str
    name: str
    how: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        return f"{self.tower}/{self.name}" + "".join(f" {key}={value}" for key, value in self.how)


class Views:
    """Lazy encodings of a batch. Objectives that ask for the same share its computation.

    A view "clean" reads batch["image"]; another reads batch["image_<name>"] (likewise text). Asked
    for in another way (`how`), it is another encoding. `rng` are keys of the rows, None in
    evaluation. Randomness is keyed by row, tower, view and way, so it depends neither on which
    objective asks first nor on the other rows. An objective that needs no tokens asks for
    embeddings: then its batch can be made of micro-batches (`mm.objectives.accumulate`).
    """

    def __init__(self, model: Multimodal, batch: Mapping[str, Array], rng: Keys | None):
        self.model, self.batch, self._rng = model, batch, rng
        self._encoded: dict[View, Encoded] = {}
        self.embeddings: dict[View, Embedding] = {}

    def image(self, name: str = "clean", **how: Any) -> Encoded:
        """The encoded image of that view; `how` goes to `Multimodal.encode_image`."""
        return self._encode(_view("image", name, how))

    def text(self, name: str = "clean", **how: Any) -> Encoded:
        """The encoded text of that view; `how` goes to `Multimodal.encode_text`."""
        return self._encode(_view("text", name, how))

    def image_embedding(self, name: str = "clean", **how: Any) -> Embedding:
        """The embedding of that view; `how` as for `image`."""
        return self.embed(_view("image", name, how))

    def text_embedding(self, name: str = "clean", **how: Any) -> Embedding:
        """The embedding of that view; `how` as for `text`."""
        return self.embed(_view("text", name, how))

    def embed(self, view: View) -> Embedding:
        """The embedding of either tower."""
        if view not in self.embeddings:
            project = getattr(self.model, f"project_{view.tower}")
            self.embeddings[view] = project(self._encode(view))
        return self.embeddings[view]

    def training_flops(self, frozen: Collection[str] = ()) -> float:
        """Matmul FLOPs of both passes over one example, of all that was asked for.

        Without what is computed twice to save memory. A tower in `frozen` has no backward pass, two
        thirds of the work.
        """
        total = 0.0
        for view in self._encoded:
            flops = getattr(self.model, view.tower).training_flops(**dict(view.how))
            total += flops / 3 if view.tower in frozen else flops
        for view in self.embeddings:
            total += getattr(self.model, f"{view.tower}_projection").training_flops(1)
        return total

    def _encode(self, view: View) -> Encoded:
        if view not in self._encoded:
            key = view.tower if view.name == "clean" else f"{view.tower}_{view.name}"
            arguments = dict(view.how)
            if view.tower == "text":
                arguments["mask"] = self.batch[f"{key}_mask"]
            if self._rng is not None:
                arguments["rng"] = fold_in(self._rng, zlib.crc32(str(view).encode()))
            encode = getattr(self.model, f"encode_{view.tower}")
            self._encoded[view] = encode(self.batch[key], **arguments)
        return self._encoded[view]


def _view(tower: str, name: str, how: dict[str, Any]) -> View:
    return View(tower, name, tuple(sorted(how.items())))
