"""Whether a model is as often right as it says: calibration, and the temperature that mends it."""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

_LEAST, _MOST = 1e-2, 1e2  # temperatures that are looked at


def calibration(
    logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]
) -> dict[str, float]:
    """Expected calibration error, Brier score and mean -log p(label), without and with temperature.

    "temperature" divides logits so that the last is least (Guo et al. 2017, section 4.2). What is
    "scaled/..." is of examples whose temperature was fitted without them: those at even places of
    the pool by that of the odd ones, and the other way round.
    """
    even = np.arange(len(labels)) % 2 == 0
    scaled = np.array(logits, np.float64)
    for held_out in (even, ~even):
        if held_out.any() and not held_out.all():
            scaled[held_out] /= fit_temperature(logits[~held_out], labels[~held_out])
    results = {"temperature": fit_temperature(logits, labels)}
    for name, values in (("", logits), ("scaled/", scaled)):
        log_p = log_softmax(values.astype(np.float64), axis=1)
        p, right = np.exp(log_p), log_p.argmax(1) == labels
        results |= {
            f"{name}ece": expected_calibration_error(p.max(1), right),
            f"{name}brier": brier(p, labels),
            f"{name}negative_log_likelihood": float(-log_p[np.arange(len(labels)), labels].mean()),
        }
    return results


def expected_calibration_error(
    confidence: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], bins: int = 15
) -> float:
    """Mean |accuracy - confidence| of bins of one width, (a, b], weighted by what is in them.

    Guo et al. 2017, equations 3 and 5, with the 15 bins of their section 4.
    """
    place = np.ceil(confidence * bins).astype(int)
    gaps = np.bincount(place, right - confidence, bins + 1)
    return float(np.abs(gaps).sum() / len(right))


def brier(p: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]) -> float:
    """Mean squared distance of the probabilities to the label's, summed over classes: 0 to 2 (Brier
    1950, equation 2)."""
    return float(((p - np.eye(p.shape[1])[labels]) ** 2).sum(1).mean())


def fit_temperature(logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]) -> float:
    """The T for which -log softmax(logits / T) of the labels is least, from 0.01 to 100."""
    logits, rows = logits.astype(np.float64), np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean()

    bounds = np.log(_LEAST), np.log(_MOST)
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
