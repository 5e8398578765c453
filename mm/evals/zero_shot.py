"""Zero-shot classification: pictures beside the names of their classes (Radford et al. 2021)."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jax import Array
from jaxtyping import Float, Int

from data.preprocess.draws import example_keys
from mm import registry
from mm.config import BadInput, Positive, Share
from mm.evals.base import Model
from mm.evals.pool import in_batches, pool_of, read_labels
from mm.evals.ranks import ranks
from mm.objectives.combine import System
from mm.objectives.views import Views
from mm.report.measures import measure, resample
from mm.report.outcomes import Outcome

_TOP = 5


@registry.register("evaluator", "zero_shot")
class ZeroShot:
    """The class whose name is most similar to a picture, of those that the op `label` numbers.

    Each name is put into all `templates`; the vector of a class is the mean of the normalized
    embeddings of its texts, normalized (Radford et al. 2021, section 3.1.4). The texts are made by
    the ops of `preprocess` after the one that writes `text`, as in
    `decode|resize(48)|caption("group")|tokenize("emoji", 24)|label("group", classes=...)`.
    max_bad_share: of broken examples, which are left out. Raises BadInput for what could not run:
    no example, a label that is no class, a template without a place for the name.
    """

    needs = ("image", "text", "embed_dim")
    reads = ("image", "text", "text_mask")
    score = "accuracy"

    def __init__(
        self,
        *,
        source: Any,
        preprocess: Any,
        batch_size: Positive,
        templates: Sequence[str] = ("{}",),
        max_bad_share: Share = 0.01,
    ):
        if not templates or any(template.count("{}") != 1 for template in templates):
            raise BadInput(f"templates={templates!r}: expected {{}} once in each, for the name")
        self.source, self.preprocess, self.batch_size = source, preprocess, batch_size
        self.max_bad_share = max_bad_share
        read_labels(source, preprocess, "zero_shot")  # refuses what is no class
        self.num_classes = len(preprocess.classes)
        if preprocess.tokenizer is None:
            raise BadInput("zero_shot: the ops make no text; add caption(FIELD)|tokenize(NAME, l)")
        texts = [
            template.replace("{}", name) for name in preprocess.classes for template in templates
        ]
        keys = example_keys(0, np.arange(len(texts)), np.zeros(len(texts), np.int64))
        made = preprocess.of_texts().apply({"text": texts}, keys)
        self.prompts = {name: made[name] for name in ("text", "text_mask")}

    def run(self, model: Model, picture: epath.Path | None = None) -> dict[str, float]:
        """Returns "accuracy", "accuracy@5" (of more than 5 classes), "accuracy_per_class", the mean
        over classes that have examples, "accuracy_spread" (`spread_over_classes`), and how many
        "examples" and "classes"; the same on every process."""
        ztxt = self._embed_prompts(model)
        weights = class_vectors(ztxt.reshape(self.num_classes, -1, ztxt.shape[-1]))
        embed = model.apply(embed_image)
        pool = pool_of(self, model, functools.partial(seen, embed))
        zimg, labels, ids = pool["seen"], pool["labels"], pool["id"]
        classes = np.arange(self.num_classes)
        rank = ranks(zimg, weights, model.sharding.mesh, own=labels, of=classes)
        found = {"accuracy": Outcome(ids, rank < 1)}
        if self.num_classes > _TOP:
            found[f"accuracy@{_TOP}"] = Outcome(ids, rank < _TOP)
        pairs = np.stack([labels, rank < 1], axis=1)
        found["accuracy_per_class"] = Outcome(ids, pairs, "per_class")
        results = model.metrics(found) | {"accuracy_spread": spread_over_classes(pairs)}
        return results | {"examples": float(len(ids)), "classes": float(self.num_classes)}

    def _embed_prompts(self, model: Model) -> Float[np.ndarray, "n d"]:
        """Of each class and template; every process has all."""

        def take(rows: np.ndarray) -> dict[str, np.ndarray]:
            return {name: x[rows] for name, x in self.prompts.items()}

        count = len(self.prompts["text"])
        return in_batches(model.apply(embed_text), take, count, model.sharding, self.batch_size)


def spread_over_classes(pairs: Int[np.ndarray, "n 2"], draws: int = 1000) -> float:
    """The standard deviation of the accuracy over draws of as many classes with replacement.

    pairs: class, and whether it was found. All names stay rivals: it says what other classes of the
    same kind would have given. 0 of a single class.
    """
    counts = resample(np.random.default_rng(0), draws, np.ones(len(pairs), int), pairs[:, 0])
    return float(measure("mean", pairs[:, 1], counts).std())


def class_vectors(ztxt: Float[np.ndarray, "c t d"]) -> Float[np.ndarray, "c d"]:
    """The mean of each class's normalized embeddings, normalized."""
    mean = ztxt.astype(np.float64).mean(axis=1)
    length = np.linalg.norm(mean, axis=1, keepdims=True)
    return (mean / np.maximum(length, 1e-12)).astype(np.float32)


def seen(see: Callable[[Mapping], Array], batch: Mapping[str, Array]) -> dict[str, Array]:
    """For `pool_of`: what of the pictures of a batch is seen, and their classes."""
    return {"seen": see({"image": batch["image"]}), "labels": batch["label"]}


def embed_image(_: System, views: Views) -> Array:
    return views.image_embedding().z


def embed_text(_: System, views: Views) -> Array:
    return views.text_embedding().z
