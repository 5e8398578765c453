"""The keys of a config."""

import dataclasses
from collections.abc import Mapping

from mm.config import BadInput

# Keys of a stack that change how it is trained or computed, but not what it computes.
NO_FUNCTION = (
    "dtype", "remat", "attention", "unroll", "dropout", "drop_path", "pool_dropout",
    "embedding_std",
)  # fmt: skip
# The same of config.model.
SAME_FUNCTION = ("dtype",) + tuple(
    f"{tower}.{key}" for tower in ("image", "text", "fusion", "decoder") for key in NO_FUNCTION
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a config says. Each group is checked by what it builds.

    total_steps: 0 evaluates and saves what the run begins with.
    pod: the topology that the recipe is meant for, such as "v5e:16x16"; planning takes it.
    model_init: parameters to start from, of a run or of another library's model, "hf:PATH" or the
    keys of `mm.model_init.read_parameters`. adapt: what is added to the model to fine-tune it, see
    `mm.adapt`. accumulation_steps: in how many micro-batches a step computes its gradients, which
    are those of the whole batch. teacher: see `mm.objectives.
    teacher`. alternate: names of objectives, those of each step in turn.
    """

    seed: int
    total_steps: int
    global_batch_size: int
    accumulation_steps: int = 1
    model: Mapping
    objectives: Mapping
    optimizer: Mapping
    sharding: Mapping
    input: Mapping
    evals: Mapping
    checkpoint: Mapping
    log: Mapping
    pod: str | None = None
    model_init: str | Mapping | None = None
    adapt: Mapping | None = None
    teacher: Mapping | None = None
    alternate: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self):
        for key, least in (("total_steps", 0), ("accumulation_steps", 1)):
            if (value := getattr(self, key)) < least:
                raise BadInput(f"config.{key}={value}: must be at least {least}")
