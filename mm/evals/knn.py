"""Nearest neighbours: what the training examples most similar to a picture are."""

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int

from mm import registry
from mm.config import BadInput, Positive, Scale
from mm.evals.labelled import Labelled, check_counts, over_draws, ranks_of, redrawn
from mm.evals.ranks import nearest


@registry.register("probe", "knn")
class Knn:
    """The class with most votes among the k nearest by cosine, each weighted by exp(cosine / t).

    As Wu et al. 2018 (section 3.4) and DINO; temperature: t. draws: of the training examples of
    each class with replacement, for the spread. Raises BadInput when there are fewer than k
    examples, or a class has none.
    """

    def __init__(self, *, k: Positive = 20, temperature: Scale = 0.07, draws: Positive = 5):
        self.k, self.temperature, self.draws = k, temperature, draws

    def check(self, labels: Int[np.ndarray, " n"], names: tuple[str, ...]) -> None:
        """Raises BadInput when it could not vote over training examples of these classes."""
        check_counts(labels, names, 1, "knn")
        if (labels >= 0).sum() < self.k:
            raise BadInput(f"k={self.k}: there are {int((labels >= 0).sum())} training examples")

    def run(
        self, train: Labelled, test: Labelled, mesh: Mesh, seed: int
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """ "accuracy" of each test example; of the draws "redrawn/accuracy", the mean, and
        "redrawn/accuracy_spread"."""
        drawn = [
            self._right(train.take(redrawn(train.labels, train.num_classes, (seed, i))), test, mesh)
            for i in range(self.draws)
        ]
        right = self._right(train, test, mesh)
        return {"accuracy": right}, over_draws([each.mean() for each in drawn])

    def _right(self, train: Labelled, test: Labelled, mesh: Mesh) -> Bool[np.ndarray, " n"]:
        scores, rows = nearest(_unit(test.features), _unit(train.features), self.k, mesh)
        # by the nearest one's: exp of a large cosine over a small temperature would be infinite
        weights = np.exp((scores - scores[:, :1]) / self.temperature, dtype=np.float64)
        votes = np.zeros((len(rows), train.num_classes))
        np.add.at(votes, (np.arange(len(rows))[:, None], train.labels[rows]), weights)
        return ranks_of(votes, test.labels) < 1


def _unit(features: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(length, 1e-12)
