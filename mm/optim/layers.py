"""Learning rates that fall from a tower's last layer to its first."""

from collections.abc import Collection
from typing import Any

import numpy as np

from mm.config import BadInput
from mm.optim.paths import flatten

_FIRST = (
    *("stem", "position_embedding", "cls", "registers", "mask_token", "pre_norm"),
    *("embedding", "segment_embedding"),
)
_LAST = ("attention_pool", "flatten_pool", "pooler", "prompts", "context")


def layer_factors(
    params: Any, decay: float, frozen: Collection[str] = ()
) -> dict[str, np.ndarray | float]:
    """Path name -> factor of the learning rate, for the image and the text tower.

    Of block i of a tower of n it is decay^(n - i), of what comes before the first block
    decay^(n + 1), of what comes after the last, and of all outside of towers, 1 (ELECTRA: Clark et
    al. 2020, appendix A; BEiT, its released code). Of stacked blocks, [n, ...], it is an array that
    differs along the stack. What is `frozen`, names, has none. Raises BadInput for a tower that is
    trained and no such stack.
    """
    leaves, factors = flatten(params), {}
    if decay == 1:
        return factors
    for tower in ("model/image/", "model/text/"):
        own = {name: leaf for name, leaf in leaves.items() if name.startswith(tower)}
        stacked = [leaf for name, leaf in own.items() if name.startswith(f"{tower}encoder/blocks/")]
        depth = stacked[0].shape[0] if stacked else 0
        for name, leaf in own.items():
            if name in frozen:
                continue
            part = name.removeprefix(tower).split("/")
            if part[:2] == ["encoder", "blocks"]:
                factor = decay ** np.arange(depth, 0, -1, dtype=np.float32)
                factors[name] = factor.reshape(-1, *(1,) * (leaf.ndim - 1))
            elif part[0] in _FIRST:
                factors[name] = decay ** (depth + 1)
            elif part[0] not in (*_LAST, "encoder"):
                raise BadInput(
                    f"layer_decay={decay}: {name} has no place among layers; towers of name='vit' "
                    "and 'transformer' do; set it to 1, or learning_rate_factors"
                )
    return factors
