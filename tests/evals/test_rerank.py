"""Reranking by a matching head, against loops over every query."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from mm.config import BadInput
from mm.evals.rerank import reranked
from mm.evals.retrieval import belonging
from mm.evaluate import open_evaluations
from mm.program import build_program
from tests.evals.test_retrieval import _mesh
from tests.tiny import get_config

N, D = 23, 3
SHARDING = NamedSharding(_mesh(8), PartitionSpec(("a", "b")))
POOL = {name: np.arange(N) for name in ("image", "text")}
EACH = dict(own=np.arange(N), of=np.arange(N))


def reference(scores, matches, ranks, top):
    """Of one direction: queries are the rows of both matrices."""
    found = []
    for i in range(N):
        first = sorted(range(N), key=lambda j: (-scores[i, j], j))[:top]
        if i not in first:
            found.append(max(ranks[i], top))
        else:
            found.append(sum(j != i and matches[i, j] >= matches[i, i] for j in first))
    return found


@settings(max_examples=20, deadline=None)
@given(top=st.sampled_from([1, 4, 23, 40]), of_texts=st.booleans(), seed=st.integers(0, 10**6))
def test_the_first_are_sorted_by_their_match(top, of_texts, seed):
    rng = np.random.default_rng(seed)
    queries, candidates = rng.integers(-3, 4, (2, N, D)).astype(np.float32)  # many ties
    matches = rng.integers(0, 9, (N, N)).astype(np.float32)  # [image, text]
    ranks = rng.integers(0, N, N)

    def match(batch):
        return jnp.asarray(matches)[batch["image"], batch["text"]]

    found = reranked(
        match, POOL, queries, candidates, ranks,
        of_texts=of_texts, top=top, batch_size=16, sharding=SHARDING, **EACH,
    )  # fmt: skip
    turned = matches.T if of_texts else matches
    np.testing.assert_array_equal(
        found, reference(queries @ candidates.T, turned, ranks, min(top, N))
    )


def test_a_match_of_nan_is_last():
    eye = np.eye(N, dtype=np.float32)
    found = reranked(
        lambda batch: jnp.full(len(batch["image"]), jnp.nan), POOL, eye, eye, np.zeros(N, int),
        of_texts=True, top=4, batch_size=8, sharding=SHARDING, **EACH,
    )  # fmt: skip
    np.testing.assert_array_equal(found, N)


@pytest.mark.parametrize("of_texts", [True, False])
def test_any_of_several_of_its_own_is_right(of_texts):
    rng = np.random.default_rng(4)
    shows = np.arange(N) % 5
    matches = rng.integers(0, 9, (5, N)).astype(np.float32)  # [image, text]
    zimg, ztxt = (rng.integers(-3, 4, (n, D)).astype(np.float32) for n in (5, N))
    sides = (ztxt, zimg) if of_texts else (zimg, ztxt)
    own = belonging(shows)["text_to_image" if of_texts else "image_to_text"]
    before = rng.integers(0, N, len(sides[0]))
    found = reranked(
        lambda batch: jnp.asarray(matches)[batch["image"], batch["text"]],
        {"image": np.arange(5), "text": np.arange(N)}, *sides, before,
        of_texts=of_texts, top=4, batch_size=8, sharding=SHARDING, **own,
    )  # fmt: skip
    turned = matches.T if of_texts else matches
    scores = sides[0] @ sides[1].T
    for i, mine in enumerate(own["own"]):
        first = sorted(range(len(sides[1])), key=lambda j: (-scores[i, j], j))[:4]
        best = [turned[i, j] for j in first if own["of"][j] == mine]
        others = [turned[i, j] for j in first if own["of"][j] != mine]
        want = sum(x >= max(best) for x in others) if best else max(before[i], 4)
        assert found[i] == want


def test_reranking_without_an_objective_that_matches_is_refused(tokenizer):
    config = get_config(f"tokenizer={tokenizer}")
    config.evals.held_out.rerank = 3
    with pytest.raises(BadInput, match=r"config.evals.held_out: needs an objective that matches"):
        open_evaluations(build_program(config))
