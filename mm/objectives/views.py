"""One batch seen through the model: each (tower, view) is computed once, when first asked for."""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

from mm.config import BadInput
from mm.models.decoder import fused_memory
from mm.models.encoder import Encoded
from mm.models.fusion.base import Fused
from mm.models.inputs import Read
from mm.models.keys import Keys, fold_in
from mm.models.logits import Logits
from mm.models.multimodal import Embedding, Multimodal
from mm.sharding.ring import pick


class View(NamedTuple):
    """What is asked of a tower: a view's name, and a way (sorted, static keyword arguments)."""

    tower: str
    name: str = "clean"
    how: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return f"{self.tower}/{self.name}" + "".join(f" {key}={value}" for key, value in self.how)


IMAGE, TEXT = View("image"), View("text")


class Views:
    """Lazy encodings of a batch. Objectives that ask for the same share its computation.

    A view "clean" reads batch["image"]; another reads batch["image_<name>"] (likewise text), which
    the input makes or an objective derives. Asked for in another way (`how`), it is another
    encoding. `rng` are keys of the rows, None where nothing random may be asked; without `training`
    masks are drawn, but nothing is dropped. Randomness is keyed by row, tower, view and way, so it
    depends neither on which objective asks first nor on the other rows. An objective that needs no
    tokens asks for embeddings: then its batch can be made of micro-batches
    (`mm.accumulate`). `teacher` sees the same batch through the averaged or the given
    model, without gradient; `averaged` are the averaged objectives, by their keys.
    """

    def __init__(
        self,
        model: Multimodal,
        batch: Mapping[str, Array],
        rng: Keys | None,
        *,
        training: bool = True,
        teacher: "Views | None" = None,
        averaged: Mapping[str, Any] = {},
    ):
        self.model, self.batch, self._rng, self.training = model, dict(batch), rng, training
        self._teacher, self._averaged = teacher, averaged
        self._encoded: dict[View, Encoded] = {}
        self._extended: dict[View, Encoded] = {}
        self._fused: dict[tuple[View, View], Fused] = {}
        self.embeddings: dict[View, Embedding] = {}

    def image(self, name: str = "clean", **how: Any) -> Encoded:
        """The encoded image of that view; `how` goes to `Multimodal.encode_image`."""
        return self.encode(view("image", name, **how))

    def text(self, name: str = "clean", **how: Any) -> Encoded:
        """The encoded text of that view; `how` goes to `Multimodal.encode_text`."""
        return self.encode(view("text", name, **how))

    def image_embedding(self, name: str = "clean", **how: Any) -> Embedding:
        """The embedding of that view; `how` as for `image`."""
        return self.embed(view("image", name, **how))

    def text_embedding(self, name: str = "clean", **how: Any) -> Embedding:
        """The embedding of that view; `how` as for `text`."""
        return self.embed(view("text", name, **how))

    def embed(self, view: View) -> Embedding:
        """The embedding of either tower."""
        if view not in self.embeddings:
            self.embeddings[view] = self.model.project(view.tower, *self._encode([view]))
        return self.embeddings[view]

    def encode(self, view: View) -> Encoded:
        """The encoding of either tower."""
        return self.encode_all([view])[0]

    def encode_all(self, views: Sequence[View]) -> list[Encoded]:
        """Encodings of several views.

        Those that differ in their name alone are made in one pass: weights that are split over
        devices are gathered once for all.
        """
        return self._encode(views)

    def _encode(self, views: Sequence[View]) -> list[Encoded]:
        """Also for embeddings, where micro-batches refuse `encode_all`."""
        alike: dict[Any, list[View]] = {}
        for view in views:
            if view not in self._encoded:
                array = self.batch[batch_key(view)]
                kind = view._replace(name=""), array.shape, array.dtype
                alike.setdefault(kind, []).append(view)
        for (kind, *_), group in alike.items():
            reads = interleave(list(map(self._reads, group)))
            encoded = getattr(self.model, f"encode_{kind.tower}")(**dict(kind.how) | reads)
            self._encoded |= zip(group, separate(encoded, len(group)), strict=True)
        return [self._encoded[view] for view in views]

    def _reads(self, view: View) -> dict[str, Array | None]:
        """What the tower reads of each example, by argument."""
        key = batch_key(view)
        reads = {view.tower: self.batch[key], "rng": self._drops(str(view))}
        if view.tower == "text":
            reads["mask"] = self.batch[f"{key}_mask"]
            reads["segments"] = self.batch.get(f"{key}_segments")
        elif view.how:
            reads["draw"] = self.draws(f"draw {view}")
            reads |= {key: self.batch[name] for key, name in view.how if isinstance(name, str)}
        return reads

    def fuse(self, image: View = IMAGE, text: View = TEXT) -> Fused:
        """The fusion of two views, each row with its own."""
        if (image, text) not in self._fused:
            sides = self._extend(image), self._extend(text)
            [self._fused[image, text]] = self._fuse({f"fuse {image} {text}": sides})
        return self._fused[image, text]

    def fuse_others(self, text_rows: Int[Array, "b"], image_rows: Int[Array, "b"]) -> list[Fused]:
        """Of the clean views, three fusions that are made in one pass.

        The pairs, each image with a text, and each text with an image: those of the rows, which are
        numbers of rows of the global batch.
        """
        image, text = self._extend(IMAGE), self._extend(TEXT)
        name = f"fuse {IMAGE} {TEXT}"
        pairs = {
            name: (image, text),
            f"{name} text": (image, pick(text, text_rows)),
            f"{name} image": (pick(image, image_rows), text),
        }
        if known := self._fused.get((IMAGE, TEXT)):
            del pairs[name]
            return [known, *self._fuse(pairs)]
        self._fused[IMAGE, TEXT], *others = self._fuse(pairs)
        return [self._fused[IMAGE, TEXT], *others]

    def _fuse(self, pairs: Mapping[str, tuple[Encoded, Encoded]]) -> list[Fused]:
        """In one pass; what drops out is drawn under the names."""
        sides = (interleave(side) for side in zip(*pairs.values(), strict=True))
        fused = self.model.fuse(*sides, rng=interleave(list(map(self._drops, pairs))))
        return separate(fused, len(pairs))

    def _extend(self, view: View) -> Encoded:
        if view not in self._extended:
            encoded = self.encode(view)
            self._extended[view] = self.model.extend(view.tower, encoded, self.batch)
        return self._extended[view]

    def memory(self, image: View = IMAGE, source: View = TEXT) -> Encoded | None:
        """What the decoder reads: of a view of the image, of the text, of both or of none."""
        kind = self.model.decoder.memory
        if kind == "fused":
            sides = self.encode(image), self.encode(source)
            return fused_memory(self.fuse(image, source), *sides)
        return None if kind == "none" else self.encode(image if kind == "image" else source)

    def decode(
        self, text: View = TEXT, *, image: View = IMAGE, source: View = TEXT, **how: Any
    ) -> Logits:
        """Logits of each token of a text from those before it and from the `memory` of two views.

        `how` goes to `Multimodal.decode`. Nothing is kept: ask once.
        """
        memory = self.memory(image, source)
        goes_on = self.model.decoder.inputs == "text_tower"
        tokens = self.encode(text).tokens if goes_on else self.batch[batch_key(text)]
        rng = self._drops(f"decode {text} {image} {source}")
        return self.model.decode(tokens, memory, rng=rng, **how)

    def derive(self, name: str, make: Callable[[Keys], Mapping[str, Array]]) -> None:
        """Adds the arrays of a view to the batch: make(keys of the rows), once for each name."""
        if name not in self.batch:
            self.batch |= make(self.draws(name))

    def draws(self, name: str) -> Keys | None:
        """Keys of the rows for what is drawn under that name."""
        return None if self._rng is None else fold_in(self._rng, zlib.crc32(name.encode()))

    def _drops(self, name: str) -> Keys | None:
        """Keys of what drops out, in training only."""
        return self.draws(name) if self.training else None

    @property
    def teacher(self) -> "Views":
        """The same batch through config.teacher."""
        if self._teacher is None:
            raise BadInput("needs config.teacher, as dict(name='average', decay=0.996)")
        return self._teacher

    def averaged(self, objective: Any) -> Any:
        """The objective with the averages of its parameters."""
        if objective.key not in self._averaged:
            raise BadInput("needs config.teacher=dict(name='average', ...), heads and all")
        return self._averaged[objective.key]


def interleave(trees: Sequence[Any]) -> Any:
    """Trees of arrays [b, ...] as one of [n b, ...], for one pass over all.

    What is of one example lies side by side, so that no row moves to another device.
    """
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *x: jnp.stack(x, 1).reshape(-1, *x[0].shape[1:]), *trees)


def separate(tree: Any, count: int) -> list[Any]:
    """The inverse of `interleave`."""
    if count == 1:
        return [tree]
    cut = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]), tree)
    return [jax.tree.map(lambda x, i=i: x[:, i], cut) for i in range(count)]


def view(tower: str, name: str = "clean", **how: Any) -> View:
    """The view of a tower in some way."""
    return View(tower, name, tuple(sorted(how.items())))


def image_view(keep: float = 1.0, replace: float | str = 0.0) -> View:
    """The clean image of which a share `keep` of patches is read, or a share `replace` hidden,
    or those that the batch names under `replace`.

    Raises BadInput for both at once, in the words of `image_keep` and `image_replace`.
    """
    if keep < 1 and replace:
        raise BadInput(f"image_keep={keep}, image_replace={replace}: drop patches or hide them")
    how = {"keep": keep} if keep < 1 else {"replace": replace} if replace else {}
    return view("image", **how)


def mask_reads(view: View, model: Multimodal) -> tuple[Read, ...]:
    """What a view of the image takes from the batch to hide patches. Raises BadInput if the tower
    has none."""
    names = [value for _, value in view.how if isinstance(value, str)]
    if names and not hasattr(model.image, "grid"):
        raise BadInput(f"{names[0]}: the image tower has no patches to hide; use a vit")
    return tuple(Read(name, (math.prod(model.image.grid),), "bool") for name in names)


def batch_key(view: View) -> str:
    """The array of a batch that a view reads."""
    return view.tower if view.name == "clean" else f"{view.tower}_{view.name}"
