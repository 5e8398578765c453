"""Makes hashes.json beside it: perceptual hashes of pictures, as another package computes them.

    python tests/golden/phash/make.py     # in an environment of its own, never that of the suite

Made with Python 3.11, imagehash 4.3.2, pillow 13.0.0, numpy 2.4.6 and scipy 1.17.1. The pictures
are drawn from formulas by `picture`, which the test has again: a sum of waves, different in each
colour.
"""

import json
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image

SIZES = [(64, 64), (37, 100), (80, 31), (240, 320), (32, 32), (8, 8)]


def picture(seed, height, width):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = rng.uniform(-20, 20, (3, 12, 3))
    values = [sum(np.sin(a * x + b * y + c) for a, b, c in color) for color in waves]
    return np.clip(128 + 25 * np.stack(values, axis=-1), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    hashes = {
        f"{seed} {height} {width}": str(
            imagehash.phash(Image.fromarray(picture(seed, height, width)))
        )
        for seed, (height, width) in enumerate(SIZES * 4)
    }
    path = Path(__file__).with_name("hashes.json")
    path.write_text(json.dumps(hashes, indent=1) + "\n")
