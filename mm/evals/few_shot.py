"""Few-shot classification: ridge regression on frozen features of k examples a class."""

from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from mm import registry
from mm.config import BadInput, Positive, Scale
from mm.evals.labelled import Labelled, by_class, check_counts, ranks_of, standardize

L2 = tuple(2.0**power for power in range(-10, 20))  # as big_vision sweeps


@registry.register("probe", "few_shot")
class FewShot:
    """Closed-form ridge, as big_vision's few-shot evaluator (Zhai et al. 2022, section 2.2).

    For each of `shots`, k examples a class are drawn `draws` times; k + 1 holds those of k. The
    features are standardized by them, the targets are 1 for the class and -1 for the others, the
    intercept is not penalized. l2: the penalty, or None: that of `L2` which is right most often
    about up to `held_out` other training examples a class, over all draws. Raises BadInput when a
    class has too few.
    """

    def __init__(
        self,
        *,
        shots: Sequence[int] = (1, 2, 4, 8, 16),
        draws: Positive = 5,
        l2: Scale | None = None,
        held_out: Positive = 16,
    ):
        if not shots or min(shots) < 1:
            raise BadInput(f"shots={shots!r}: expected numbers of examples, each at least 1")
        self.shots, self.draws = tuple(sorted(set(shots))), draws
        self.l2, self.held_out = l2, held_out

    def check(self, labels: Int[np.ndarray, " n"], names: tuple[str, ...]) -> None:
        """Raises BadInput when it could not draw from training examples of these classes."""
        more = " and one to choose l2 by" if self.l2 is None else ""
        least = self.shots[-1] + (self.l2 is None)
        check_counts(labels, names, least, f"shots={self.shots[-1]}{more}")

    def run(
        self, train: Labelled, test: Labelled, mesh: Mesh, seed: int
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """The share of draws that are right about each test example, as "4_shot/accuracy".

        And of those "accuracy_spread", the standard deviation over draws, and "l2".
        """
        outcomes, more = {}, {}
        orders = [by_class(train.labels, train.num_classes, (seed, i)) for i in range(self.draws)]
        last = self.shots[-1]
        held = [
            np.concatenate([rows[last : last + self.held_out] for rows in order])
            for order in orders
        ]
        for k in self.shots:
            drawn = [train.take(np.concatenate([rows[:k] for rows in order])) for order in orders]
            l2 = self.l2
            if l2 is None:
                pairs = zip(drawn, map(train.take, held), strict=True)
                right = np.mean([[r.mean() for r in answers(*pair, L2)] for pair in pairs], axis=0)
                l2 = L2[len(L2) - 1 - int(np.argmax(right[::-1]))]  # of equals the strongest
            found = np.stack([answers(shown, test, (l2,))[0] for shown in drawn])
            name = f"{k}_shot"
            outcomes[f"{name}/accuracy"] = found.mean(axis=0)
            if self.draws > 1:
                more[f"{name}/accuracy_spread"] = float(found.mean(axis=1).std(ddof=1))
            more[f"{name}/l2"] = l2
        return outcomes, more


def answers(train: Labelled, test: Labelled, l2: Sequence[float]) -> list[np.ndarray]:
    """Whether ridge of each penalty, fit to `train`, is right about each example of `test`."""
    shown, asked = standardize(train.features, test.features)
    targets = np.where(train.labels[:, None] == np.arange(train.num_classes), 1.0, -1.0)
    return [
        ranks_of(asked @ weights + bias, test.labels) < 1
        for weights, bias in ridge(shown, targets, l2)
    ]


def ridge(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n c"], l2: Sequence[float]
) -> list[tuple[Float[np.ndarray, "d c"], Float[np.ndarray, " c"]]]:
    """(W, b) of each penalty, which minimize |x W + b - y|^2 + l2 |W|^2 (Hoerl and Kennard 1970).

    By the singular values of x, once for all penalties.
    """
    mean, center = x.mean(axis=0), y.mean(axis=0)
    left, sizes, right = np.linalg.svd(x - mean, full_matrices=False)
    projected = left.T @ (y - center)
    found = []
    for penalty in l2:
        weights = right.T @ ((sizes / (sizes**2 + penalty))[:, None] * projected)
        found.append((weights, center - mean @ weights))
    return found
