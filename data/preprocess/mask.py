"""Which patches of a picture are hidden from a model that has to predict them."""

from typing import Literal

import numpy as np
from jaxtyping import Float32

from data.preprocess import Columns, Op
from data.preprocess.draws import Draws
from data.preprocess.image import PLANNED, Planned, Valued, expect
from mm import registry
from mm.config import BadInput, Part, Positive

_LEAST_PATCHES = 16  # of a block, and what follows: Bao et al., "BEiT", 2021, algorithm 1
_LEAST_RATIO = 0.3
_BLOCKS = 64  # tries; what is missing then is drawn one by one


@registry.register("op", "patch_mask")
def patch_mask(
    *, patch_size: Positive, ratio: Part, kind: Literal["random", "block"] = "random"
) -> Op:
    """Writes `patch_mask`, bool [b, n], row by row: True for round(ratio * n) of the n patches.

    kind: "random" draws them one by one (He et al., "MAE", 2021), "block" hides rectangles of at
    least 16 patches and 0.3 .. 1/0.3 high by wide (Bao et al., "BEiT", 2021, algorithm 1); the last
    is cut so that the number is exact. Belongs after the op that gives the picture its size.
    """

    def apply(columns: Columns, draws: Draws) -> Columns:
        image = expect(columns, Planned | Valued, PLANNED.split(",")[0])
        height, width = (image.image if isinstance(image, Valued) else image).shape
        if height % patch_size or width % patch_size:
            raise BadInput(
                f"patch_size={patch_size}: does not divide the picture of {height} x {width}"
            )
        grid = height // patch_size, width // patch_size
        count = round(ratio * grid[0] * grid[1])
        order = draws.uniform(grid[0] * grid[1]).T
        if kind == "block":
            blocks = draws.uniform(4 * _BLOCKS).reshape(_BLOCKS, 4, -1)
            # What a block hides comes first, in the order of the blocks.
            order = order + np.stack(
                [_blocks(blocks[:, :, i], grid, count) for i in range(len(order))]
            )
        hidden = np.zeros(order.shape, bool)
        np.put_along_axis(hidden, np.argsort(order, axis=1, kind="stable")[:, :count], True, axis=1)
        return columns | {"patch_mask": hidden}

    return Op(apply)


def _blocks(
    u: Float32[np.ndarray, "blocks 4"], grid: tuple[int, int], count: int
) -> Float32[np.ndarray, " n"]:
    """The number of the first block that hides a patch, until `count` are hidden; else _BLOCKS."""
    first = np.full(grid, _BLOCKS, np.float32)
    for number, (area, ratio, y, x) in enumerate(u.tolist()):
        missing = count - int((first < _BLOCKS).sum())
        if missing <= 0:
            break
        least = min(_LEAST_PATCHES, missing)
        area = least + area * (missing - least)
        ratio = _LEAST_RATIO ** (1 - 2 * ratio)
        height = min(max(round((area * ratio) ** 0.5), 1), grid[0])
        width = min(max(round((area / ratio) ** 0.5), 1), grid[1])
        top, left = int(y * (grid[0] - height + 1)), int(x * (grid[1] - width + 1))
        block = first[top : top + height, left : left + width]
        block[block == _BLOCKS] = number
    return first.ravel()
