"""How embeddings lie in their space: what retrieval's numbers do not say.

All statistics are float64, on each host, of the embeddings of the whole source.
"""

from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from mm import registry
from mm.config import BadInput, Share
from mm.evals import examples
from mm.evals.base import Model, draw_later
from mm.evals.pool import embedded, pool_of
from mm.runtime.workdir import write_atomic

Rows = Float[np.ndarray, "n d"]
_SHOWN = 10  # pictures whose neighbours are drawn
_BLOCK = 256  # rows whose distances to all others are held at once


@registry.register("evaluator", "representation")
class Representation:
    """Alignment, uniformity, modality gap, effective rank and CKA of both towers' embeddings.

    batch_size examples at a time. max_bad_share: of broken examples, which are left out. Raises
    BadInput for fewer than two examples.
    """

    needs = ("image", "text", "embed_dim")  # of the model
    reads = ("image", "text", "text_mask")  # of a batch, where the model reads them

    def __init__(
        self, *, source: Any, preprocess: Any, batch_size: int, max_bad_share: Share = 0.01
    ):
        if len(source) < 2:
            raise BadInput(f"representation: needs 2 examples, the source has {len(source)}")
        self.source, self.preprocess, self.batch_size = source, preprocess, batch_size
        self.max_bad_share = max_bad_share

    def run(self, model: Model, picture: epath.Path | None = None) -> dict[str, float]:
        """Returns what `statistics` says; the same on every process.

        picture: a PNG of pictures spread evenly over the source, with the most similar ones.
        """
        pool = pool_of(self, model, embedded(model.embed))
        zimg, ztxt = pool["zimg"], pool["ztxt"]
        fields = examples.text_and_image(self.preprocess)

        def draw() -> None:
            rows = examples.spread(len(zimg), _SHOWN)
            scores = zimg[rows] @ zimg.T
            title = f"{len(zimg):,} pictures; each row begins with one, then those nearest to it"
            drawn = examples.sheet(self.source, fields, scores, rows, pool["id"], title)
            write_atomic(picture, drawn)

        if fields is not None:
            draw_later(model, picture, draw)
        return statistics(zimg.astype(np.float64), ztxt.astype(np.float64))


def statistics(zimg: Rows, ztxt: Rows) -> dict[str, float]:
    """All of this file, of pairs of unit vectors."""
    return {
        "alignment": alignment(zimg, ztxt),
        "image/uniformity": uniformity(zimg),
        "text/uniformity": uniformity(ztxt),
        "modality_gap": modality_gap(zimg, ztxt),
        "image/effective_rank": effective_rank(zimg),
        "text/effective_rank": effective_rank(ztxt),
        "cka": linear_cka(zimg, ztxt),
        "pool_size": float(len(zimg)),
    }


def alignment(zimg: Rows, ztxt: Rows) -> float:
    """Mean squared distance of pairs (Wang and Isola 2020, eq. 1 with alpha = 2); 0 is best."""
    return float(np.square(zimg - ztxt).sum(1).mean())


def uniformity(z: Rows, t: float = 2.0) -> float:
    """log of the mean of exp(-t |x - y|^2) over pairs of different rows; lower is more even.

    Wang and Isola 2020, eq. 2; unit vectors of one place have 0.
    """
    total, n = 0.0, len(z)
    for start in range(0, n, _BLOCK):  # never n x n
        block = z[start : start + _BLOCK]
        kernel = np.exp(-2 * t * np.maximum(1 - block @ z.T, 0))
        kernel[np.arange(len(block)), np.arange(start, start + len(block))] = 0
        total += kernel.sum()
    return float(np.log(total / (n * (n - 1))))


def modality_gap(zimg: Rows, ztxt: Rows) -> float:
    """The distance of the two towers' means (Liang et al. 2022, section 2)."""
    return float(np.linalg.norm(zimg.mean(0) - ztxt.mean(0)))


def effective_rank(z: Rows) -> float:
    """exp of the entropy of the singular values' shares (Roy and Vetterli 2007, definition 1).

    Of the rows less their mean, which alone would say how far the cone is from the origin. 1 to d;
    0 of rows that are all the same.
    """
    values = np.linalg.svd(_centred(z), compute_uv=False)
    if values.sum() < 1e-12 * len(z):
        return 0.0
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def linear_cka(x: Rows, y: Rows) -> float:
    """|Y'X|^2 / (|X'X| |Y'Y|) in Frobenius norms, of centred columns (Kornblith et al. 2019, 3.2).

    1 for the same up to rotation and scale; NaN where a side is constant.
    """
    x, y = _centred(x), _centred(y)
    both = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(y.T @ x) ** 2 / both) if both > 0 else float("nan")


def _centred(x: Rows) -> Rows:
    return x - x.mean(0)
