"""A linear classifier on frozen features: logistic regression by L-BFGS."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import logsumexp

from mm import registry
from mm.config import BadInput, Part, Positive
from mm.evals.labelled import (
    Labelled,
    by_class,
    check_counts,
    over_draws,
    ranks_of,
    redrawn,
    standardize,
)

_TOP = 5


@registry.register("probe", "linear_probe")
class LinearProbe:
    """Multinomial logistic regression, as CLIP's linear probe (Radford et al. 2021, A.3).

    The mean cross-entropy plus l2 / 2 times the squared weights (not the bias) is minimized by
    L-BFGS in at most max_iterations; features are standardized. l2: penalties, of which the one
    that is right most often about the share `held_out` of the training examples of each class is
    fit again to all. draws: as often that is done with another part held out, and the fit is to
    training examples drawn of each class with replacement, for the spread. Raises BadInput when a
    class has too few examples.
    """

    def __init__(
        self,
        *,
        l2: Sequence[float] = (1e-3, 1e-2, 1e-1, 1.0),
        held_out: Part = 0.2,
        draws: Positive = 3,
        max_iterations: Positive = 1000,
    ):
        if not l2 or min(l2) <= 0:
            raise BadInput(f"l2={l2!r}: expected penalties above 0")
        self.l2, self.held_out = tuple(sorted(l2)), held_out
        self.draws, self.max_iterations = draws, max_iterations

    def check(self, labels: Int[np.ndarray, " n"], names: tuple[str, ...]) -> None:
        """Raises BadInput when it could not learn from training examples of these classes."""
        least = 2 if len(self.l2) > 1 else 1
        check_counts(labels, names, least, "linear_probe")

    def run(
        self, train: Labelled, test: Labelled, mesh: Mesh, seed: int
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """ "accuracy" and "accuracy@5" of each test example, by all training examples.

        Of the draws "redrawn/accuracy", the mean, and "redrawn/accuracy_spread"; and "l2".
        """
        l2, drawn = self._choose(train, (seed, 0)), []
        rank = self._ranks(train, test, l2)
        for draw in range(self.draws):
            other = self._choose(train, (seed, 1 + draw))
            rows = redrawn(train.labels, train.num_classes, (seed, draw))
            drawn.append((self._ranks(train.take(rows), test, other) < 1).mean())
        outcomes = {"accuracy": rank < 1}
        if train.num_classes > _TOP:
            outcomes[f"accuracy@{_TOP}"] = rank < _TOP
        return outcomes, over_draws(drawn) | {"l2": l2}

    def _ranks(self, train: Labelled, test: Labelled, l2: float) -> Int[np.ndarray, " m"]:
        return ranks_of(fit(train, test, (l2,), self.max_iterations)[0], test.labels)

    def _choose(self, train: Labelled, seed: tuple[int, int]) -> float:
        """The penalty by the examples that are held out; of equals the strongest."""
        if len(self.l2) == 1:
            return self.l2[0]
        orders = by_class(train.labels, train.num_classes, seed)
        cuts = [max(1, round(self.held_out * len(rows))) for rows in orders]
        cuts = [min(cut, len(rows) - 1) for cut, rows in zip(cuts, orders, strict=True)]
        pairs = [*zip(orders, cuts, strict=True)]
        held = train.take(np.concatenate([rows[:cut] for rows, cut in pairs]))
        rest = train.take(np.concatenate([rows[cut:] for rows, cut in pairs]))
        every = fit(rest, held, self.l2[::-1], self.max_iterations)
        right = [(ranks_of(scores, held.labels) < 1).mean() for scores in every]
        return self.l2[::-1][int(np.argmax(right))]


def fit(
    train: Labelled, test: Labelled, l2: Sequence[float], max_iterations: int
) -> list[Float[np.ndarray, "m c"]]:
    """The logits of `test` by the classifier of each penalty; each begins where the last ended.

    In float64: in float32 the end of the search, and so the answers, would depend on the order of
    sums. Each process has its share of the rows.
    """
    shown, asked = standardize(train.features, test.features)
    n, classes = len(shown), train.num_classes
    own = slice(jax.process_index(), None, jax.process_count())
    x, labels = np.ascontiguousarray(shown[own]), train.labels[own]
    rows = np.arange(len(x))

    def loss(flat: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
        matrix = flat.reshape(-1, classes)
        logits = x @ matrix[:-1] + matrix[-1]
        wrong = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
        entropy = -np.log(np.maximum(wrong[rows, labels], np.finfo(float).tiny)).sum()
        wrong[rows, labels] -= 1
        slope = np.concatenate([x.T @ wrong, wrong.sum(axis=0, keepdims=True)])
        found = summed(np.concatenate([[entropy], slope.ravel()])) / n
        decay = np.concatenate([matrix[:-1], np.zeros((1, classes))])
        value = found[0] + penalty / 2 * (decay**2).sum()
        return float(value), found[1:] + penalty * decay.ravel()

    found, at = [], np.zeros((shown.shape[1] + 1) * classes)
    how = dict(maxiter=max_iterations, maxfun=2 * max_iterations, gtol=1e-8, ftol=1e-14)
    for penalty in l2:
        at = minimize(loss, at, args=(penalty,), jac=True, method="L-BFGS-B", options=how).x
        matrix = at.reshape(-1, classes)
        found.append(asked @ matrix[:-1] + matrix[-1])
    return found


def summed(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Over all processes, in float64."""
    if jax.process_count() == 1:
        return values
    bits = multihost_utils.process_allgather(values.view(np.uint32))  # JAX would round float64
    return np.ascontiguousarray(bits).view(np.float64).sum(axis=0)
