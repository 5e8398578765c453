"""Numbers by which equal and nearly equal pictures and captions are found."""

import hashlib
import unicodedata

import numpy as np
from jaxtyping import Bool, Float64, UInt8, UInt64
from PIL import Image

from data.order import splitmix64

# A coefficient counts as above the median from this much on, in sums over 32 x 32 grey values: half
# of what a pattern of a quarter of a grey value makes. Half of the coefficients of a symmetric
# picture are 0, and so is the median: without a margin those bits are the noise of the encoder. Of
# 1,500 emoji saved as JPEG of quality 90, 89% were found at a distance of 4 at most without it, all
# with it.
PHASH_MARGIN = 128.0
_SIDE, _LOW = 32, 8
CELLS = 4
NUM_PERMUTATIONS = 64


def digest(data: bytes) -> UInt64[np.ndarray, "2"]:
    """The first 128 bits of SHA-256."""
    return np.frombuffer(hashlib.sha256(data).digest()[:16], np.uint64)


def pixel_digest(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt64[np.ndarray, "2"]:
    """As `digest`, of the size and the decoded pixels."""
    height, width, _ = pixels.shape
    return digest(b"%d %d " % (height, width) + pixels.tobytes())


def phash(pixels: UInt8[np.ndarray, "h w 3"], margin: float = PHASH_MARGIN) -> int:
    """64 bits that stay nearly the same when a picture is resized, recompressed or a bit cropped.

    Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010, as in the
    package imagehash, whose hash it is with margin=0: the 8 x 8 lowest frequencies of the cosine
    transform of 32 x 32 grey values, each compared with their median, the first bit the highest.
    """
    grey = Image.fromarray(pixels).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    low = _COSINES @ np.asarray(grey, np.float64) @ _COSINES.T
    median = np.sort(low, axis=None)[31:33].mean()  # numpy's median takes eight times as long
    return int.from_bytes(np.packbits(low - median > margin).tobytes(), "big")


def color_cells(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "48"]:
    """The mean colours of 4 x 4 cells. `phash` is blind to colour, and nearly so to flat shapes."""
    cells = Image.fromarray(pixels).resize((CELLS, CELLS), Image.Resampling.BOX)
    return np.asarray(cells).reshape(-1)


def ngrams(caption: str, length: int) -> UInt64[np.ndarray, " n"]:
    """Hashes of all runs of `length` characters, sorted, each once; of a shorter text, one of it.

    Case, accents' encoding and white space make no difference.
    """
    text = " ".join(unicodedata.normalize("NFKC", caption).casefold().split())
    characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    if len(characters) < length:
        return digest(text.encode("utf-8", "surrogatepass"))[:1]
    runs = np.lib.stride_tricks.sliding_window_view(characters, length).astype(np.uint64)
    hashes = np.zeros(len(runs), np.uint64)
    for column in runs.T:
        hashes = splitmix64(hashes ^ column)
    return np.unique(hashes)


def minhash(items: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, "64"]:
    """The least of each of 64 hashes: two sets agree in a place with the chance of their Jaccard
    index (Broder, "On the resemblance and containment of documents", 1997)."""
    return splitmix64(items ^ _SEEDS[:, None]).min(axis=1)


def band_keys(signature: UInt64[np.ndarray, "64"], rows: int) -> UInt64[np.ndarray, " bands"]:
    """One hash for each `rows` places of a signature; what is left over is not used."""
    bands = signature[: len(signature) // rows * rows].reshape(-1, rows)
    keys = np.arange(len(bands), dtype=np.uint64)
    for column in bands.T:
        keys = splitmix64(keys ^ column)
    return keys


def band_rows(threshold: float) -> int:
    """The most rows in a band with which a pair at the threshold is found 99 times in 100.

    With b bands of r rows, a pair of Jaccard index s shares a band with the probability
    1 - (1 - s^r)^b (Leskovec, Rajaraman and Ullman, "Mining of massive datasets", section 3.4).
    """
    found = [r for r in range(1, NUM_PERMUTATIONS + 1) if _found(threshold, r) >= 0.99]
    return max(found, default=1)


def _found(similarity: float, rows: int) -> float:
    return 1 - (1 - similarity**rows) ** (NUM_PERMUTATIONS // rows)


def hamming(a: UInt64[np.ndarray, "..."], b: UInt64[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """In how many bits two hashes differ."""
    return np.bitwise_count(a ^ b)


def cells_near(
    a: UInt8[np.ndarray, "n 48"], b: UInt8[np.ndarray, "n 48"], most: int
) -> Bool[np.ndarray, " n"]:
    """Whether no colour of no cell differs by more than `most` of 255."""
    return np.abs(a.astype(np.int16) - b).max(axis=1, initial=0) <= most


def _cosines() -> Float64[np.ndarray, "8 32"]:
    frequency, place = np.mgrid[:_LOW, :_SIDE]
    return 2 * np.cos(np.pi * frequency * (2 * place + 1) / (2 * _SIDE))


_COSINES = _cosines()
_SEEDS = splitmix64(np.arange(NUM_PERMUTATIONS, dtype=np.uint64))
