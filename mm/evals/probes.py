"""Probes: how much of the classes is in frozen features, by a few ways to read them out."""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from etils import epath
from jax import Array

from data.sources import Source, open_source
from data.sources.part import chosen
from mm import registry
from mm.config import BadInput, Count, Positive, Share
from mm.evals import few_shot, knn, linear_probe  # noqa: F401  (registers them)
from mm.evals.base import Model
from mm.evals.labelled import Labelled, by_class
from mm.evals.pool import pool_of, read_labels
from mm.evals.zero_shot import embed_image, seen
from mm.objectives.combine import System
from mm.objectives.views import Views
from mm.report.outcomes import Outcome


@registry.register("evaluator", "probes")
class Probes:
    """Classifiers on the features of pictures, learned on `train` and judged on `source`.

    train: a source, whose examples go through the same ops; label(FIELD, classes=...) says what
    they are. methods: {"few_shot": {"name": "few_shot", ...}, ...}, which share the features:
    `few_shot`, `linear_probe`, `knn`. features: "pooled", the vector of the image tower, or
    "embedding", normalized, in the space that it shares with texts. per_class: use at most so many
    training examples of a class, drawn by `seed`, which also draws what methods draw.
    max_bad_share: of broken examples, which are left out. Raises BadInput for what could not run: a
    label that is no class, no example, a class with fewer examples than a method needs.
    """

    reads = ("image",)

    def __init__(
        self,
        *,
        source: Any,
        preprocess: Any,
        batch_size: Positive,
        train: Mapping,
        methods: Mapping,
        features: Literal["pooled", "embedding"] = "pooled",
        per_class: Positive | None = None,
        seed: Count = 0,
        max_bad_share: Share = 0.01,
    ):
        if not methods:
            raise BadInput(f"methods: is empty; name some of {registry.names('probe')}")
        self.needs = ("image",) if features == "pooled" else ("image", "embed_dim")
        self.source, self.preprocess, self.batch_size = source, preprocess, batch_size
        self.features, self.seed, self.max_bad_share = features, seed, max_bad_share
        self.methods = {
            name: registry.build("probe", spec, f"methods.{name}") for name, spec in methods.items()
        }
        read_labels(source, preprocess, "probes")  # refuses what is no class
        training = open_source(train, "train")
        preprocess.check(training.features)
        labels = read_labels(training, preprocess, "probes: train")
        rows = np.flatnonzero(labels >= 0)
        if per_class is not None:
            orders = by_class(labels, len(preprocess.classes), (seed,))
            rows = np.sort(np.concatenate([some[:per_class] for some in orders]))
        self.train = chosen(training, rows)
        for name, method in self.methods.items():
            try:
                method.check(labels[rows], preprocess.classes)
            except BadInput as error:
                raise BadInput(f"methods.{name}: {error}") from error

    def run(self, model: Model, picture: epath.Path | None = None) -> dict[str, float]:
        """Returns "few_shot/4_shot/accuracy", "knn/accuracy" and so on, see the methods; and how
        many "examples", "train_examples" and "classes"; the same on every process."""
        train, _ = self._labelled(model, self.train)
        test, ids = self._labelled(model, self.source)
        outcomes, more = {}, {}
        for name, method in self.methods.items():
            found, rest = method.run(train, test, model.sharding.mesh, self.seed)
            for key, values in found.items():
                outcomes[f"{name}/{key}"] = Outcome(ids, values)
                if key.endswith("accuracy"):
                    pairs = np.stack([test.labels, values], axis=1)
                    outcomes[f"{name}/{key}_per_class"] = Outcome(ids, pairs, "per_class")
            more |= {f"{name}/{key}": value for key, value in rest.items()}
        sizes = {"examples": test, "train_examples": train}
        more |= {key: float(len(found.labels)) for key, found in sizes.items()}
        return model.metrics(outcomes) | more | {"classes": float(test.num_classes)}

    def _labelled(self, model: Model, source: Source) -> tuple[Labelled, np.ndarray]:
        see = model.apply(embed_image if self.features == "embedding" else pooled)
        pool = pool_of(self, model, functools.partial(seen, see), source=source)
        return Labelled(pool["seen"], pool["labels"], len(self.preprocess.classes)), pool["id"]


def pooled(_: System, views: Views) -> Array:
    return views.image().pooled
