"""Attention to relevance, against the papers' equations in float64 with loops."""

import numpy as np
import pytest

from mm.evals.relevance import Step, positive, relevance, rollout, share


def weights(*shape, seed=0):
    x = np.random.default_rng(seed).random(shape)
    return (x / x.sum(-1, keepdims=True)).astype(np.float32)


def test_rollout_is_the_product_over_layers():
    layers = [weights(2, 3, 5, 5, seed=i) for i in range(3)]
    found = rollout(layers)
    for example in range(2):
        expected = np.eye(5)
        for layer in layers:
            expected = (layer[example].mean(0) / 2 + np.eye(5) / 2).astype(float) @ expected
        np.testing.assert_allclose(found[example], expected, rtol=1e-5)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)


def test_what_lowers_the_target_does_not_count():
    found = positive(np.full((1, 2, 1, 2), 0.5), np.array([[[[2.0, -2.0]], [[4.0, -9.0]]]]))
    np.testing.assert_allclose(found, [[[1.5, 0]]])


def bar(r):
    """Equations 8 and 9."""
    rest = r - np.eye(len(r))
    total = rest.sum(1, keepdims=True)
    return np.divide(rest, total, out=np.zeros_like(rest), where=total > 0) + np.eye(len(r))


def test_relevance_of_two_modalities_is_that_of_the_four_matrices():
    n, m = 4, 3
    image, text = (0, n), (n, n + m)
    spans = [(image, image), (text, text), (text, image), (image, text), (text, text)]
    steps = [
        Step(weights(1, b[1] - b[0], k[1] - k[0], seed=i), b, k) for i, (b, k) in enumerate(spans)
    ]
    own = {image: np.eye(n), text: np.eye(m)}
    cross = {(image, text): np.zeros((n, m)), (text, image): np.zeros((m, n))}
    for step in steps:
        a, s, q = step.weights[0].astype(float), step.queries, step.keys
        if s == q:
            other = text if s == image else image
            own[s], cross[s, other] = own[s] + a @ own[s], cross[s, other] + a @ cross[s, other]
        else:
            back = a @ cross[q, s]
            cross[s, q] = cross[s, q] + bar(own[s]).T @ a @ bar(own[q])
            own[s] = own[s] + back
    [found] = np.asarray(relevance(steps, 1, n + m))
    np.testing.assert_allclose(found[:n, :n], own[image], rtol=1e-5)
    np.testing.assert_allclose(found[n:, n:], own[text], rtol=1e-5)
    np.testing.assert_allclose(found[n:, :n], cross[text, image], rtol=1e-5)
    np.testing.assert_allclose(found[:n, n:], cross[image, text], rtol=1e-5)


def test_shares_are_of_what_is_positive():
    values = np.array([[1.0, 3.0, -5.0], [-1.0, -2.0, -3.0]])
    expected = [[0.25, 0.75, 0], [1 / 3] * 3]
    assert np.asarray(share(values)) == pytest.approx(np.array(expected))
