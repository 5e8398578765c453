"""What of a retrieval is kept for the page."""

import base64
import io

import numpy as np
from PIL import Image

from data.preprocess.parse import parse
from mm.evals import retrieval
from mm.evals.examples import examples, spread, thumbnail
from tests.evals.test_retrieval import _mesh


class Source:
    """Pictures of one grey each, and captions that name it."""

    def read(self, ids, fields):
        made = {
            "image": lambda i: np.full((10, 20, 3), i, np.uint8),
            "label": lambda i: f"grey {i}",
        }
        return [{field: made[field](i) for field in fields} for i in ids]


def found(zimg, ztxt):
    ids = np.arange(len(zimg)) + 100
    ranks = {
        name: retrieval.ranks(*sides, _mesh(1))
        for name, sides in retrieval.directions(zimg, ztxt).items()
    }
    ops = parse('decode|resize(16)|caption("label")', where="test")
    return ranks, examples(Source(), ops, zimg, ztxt, ids, ranks)


def test_the_worst_are_those_whose_own_is_found_last():
    rng = np.random.default_rng(0)
    zimg, ztxt = rng.normal(size=(2, 40, 4)).astype(np.float32)
    ranks, shown = found(zimg, ztxt)
    for name in ("text_to_image", "image_to_text"):
        rank = ranks[name]
        listed = shown[name]["worst"]
        assert [row["rank"] for row in listed] == sorted(rank, reverse=True)[:8]
        assert all(row["rank"] == rank[row["query"]] for row in listed)
        assert [row["query"] for row in shown[name]["even"]] == spread(40, 8)


def test_what_is_found_is_the_best_with_their_scores():
    rng = np.random.default_rng(0)
    zimg, ztxt = rng.normal(size=(2, 40, 4)).astype(np.float32)
    _, shown = found(zimg, ztxt)
    row = shown["text_to_image"]["even"][3]
    scores = zimg @ ztxt[row["query"]]
    assert [place for place, _ in row["found"]] == np.argsort(-scores)[:5].tolist()
    np.testing.assert_allclose(
        [score for _, score in row["found"]], np.sort(-scores)[:5] * -1, atol=1e-4
    )
    assert abs(row["score"] - scores[row["query"]]) < 1e-4


def test_every_picture_and_caption_that_is_shown_is_there():
    rng = np.random.default_rng(0)
    zimg, ztxt = rng.normal(size=(2, 40, 4)).astype(np.float32)
    _, shown = found(zimg, ztxt)
    for kind in ("even", "worst"):
        for row in shown["text_to_image"][kind]:
            assert str(row["query"]) in shown["captions"]
            assert {str(i) for i, _ in row["found"]} | {str(row["query"])} <= shown[
                "pictures"
            ].keys()
        for row in shown["image_to_text"][kind]:
            assert str(row["query"]) in shown["pictures"]
            assert {str(i) for i, _ in row["found"]} | {str(row["query"])} <= shown[
                "captions"
            ].keys()
    assert shown["captions"]["0"] == "grey 100"
    image = Image.open(io.BytesIO(base64.b64decode(shown["pictures"]["0"])))
    assert image.size == (20, 10) and abs(np.asarray(image).mean() - 100) < 3


def test_a_perfect_model_has_no_failures():
    eye = np.eye(12, dtype=np.float32)
    _, shown = found(eye, eye)
    assert shown["text_to_image"]["worst"] == [] and len(shown["text_to_image"]["even"]) == 8
    assert np.array_equal(shown["similarity"]["scores"], np.eye(12))


def test_what_is_transparent_is_white():
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    found = Image.open(io.BytesIO(base64.b64decode(thumbnail(image))))
    assert np.asarray(found).min() > 250
