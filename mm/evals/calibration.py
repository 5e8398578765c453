"""Whether a model is as often right as it says: calibration, and the temperature that mends it."""

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from mm.evals.classes import found_class
from mm.report.outcomes import Outcome

_LEAST, _MOST = 1e-2, 1e2  # temperatures that are looked at


def calibration(
    ids: Int[np.ndarray, " n"], logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]
) -> dict[str, Outcome]:
    """Expected calibration error, Brier score and mean -log p(label), without and with temperature.

    What is "scaled/..." is of examples whose temperature (`fit_temperature`) was fitted without
    them: those at even places of the pool by that of the odd ones, and the other way round. Brier:
    the squared distance of the probabilities to the label's, summed over classes, 0 to 2 (Brier
    1950, equation 2). Right is what `found_class` finds.
    """
    right = found_class(logits) == labels
    even = np.arange(len(labels)) % 2 == 0
    scaled = np.array(logits, np.float64)
    for held_out in (even, ~even):
        if held_out.any() and not held_out.all():
            scaled[held_out] /= fit_temperature(logits[~held_out], labels[~held_out])
    found = {}
    for name, values in (("", logits), ("scaled/", scaled)):
        log_p = log_softmax(values.astype(np.float64), axis=1)
        p = np.exp(log_p)
        told = np.stack([p.max(1), right], axis=1)
        distance = ((p - np.eye(p.shape[1])[labels]) ** 2).sum(1)
        found |= {
            f"{name}ece": Outcome(ids, told, "calibration_error"),
            f"{name}brier": Outcome(ids, distance),
            f"{name}negative_log_likelihood": Outcome(ids, -log_p[np.arange(len(labels)), labels]),
        }
    return found


def fit_temperature(logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]) -> float:
    """The T for which -log softmax(logits / T) of the labels is least, from 0.01 to 100 (Guo et al.
    2017, section 4.2)."""
    logits, rows = logits.astype(np.float64), np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean()

    bounds = np.log(_LEAST), np.log(_MOST)
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
