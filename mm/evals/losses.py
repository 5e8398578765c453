"""The objectives themselves on held-out examples, and on pairs that do not belong together."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import Array
from jax.sharding import NamedSharding

from mm import registry
from mm.config import BadInput, Share
from mm.evals.base import Model
from mm.evals.pool import fetched, place


@registry.register("evaluator", "losses")
class Losses:
    """The mean of every loss and metric over the whole batches of `source`.

    They hold `examples`; `left_out` is the rest: broken ones, and what is fewer than a batch, whose
    loss, with fewer negatives, would be another one. What a batch with a broken example has left
    waits until there is enough for a whole one.

    Without dropout, with the masks of a fixed seed, so checkpoints can be compared. shuffled: each
    picture comes with the text of another row: the control that a model which uses the pairing must
    fail. max_bad_share: of broken examples, which are left out. Raises BadInput when the source is
    less than a batch.
    """

    needs = ()
    reads = None  # all that a step reads

    def __init__(
        self,
        *,
        source: Any,
        preprocess: Any,
        batch_size: int,
        shuffled: bool = False,
        max_bad_share: Share = 0.01,
    ):
        if batch_size < 1 or len(source) < batch_size:
            raise BadInput(
                f"losses: batch_size={batch_size} must be from 1 to the {len(source)} examples of "
                "the source"
            )
        if shuffled and batch_size < 2:
            raise BadInput(f"losses: shuffled=True needs a batch_size of 2, given {batch_size}")
        self.source, self.preprocess, self.batch_size = source, preprocess, batch_size
        self.shuffled, self.max_bad_share = shuffled, max_bad_share

    def run(self, model: Model, picture: epath.Path | None = None) -> dict[str, float]:
        """Returns "contrastive/loss" and so on; the same on every process. No picture."""
        from data.loader import eval_batches  # here, since it loads TensorFlow

        batches = eval_batches(
            self.source,
            self.preprocess,
            batch_size=self.batch_size,
            sharding=model.sharding,
            max_bad_share=self.max_bad_share,
        )
        roll = jax.jit(shuffle, out_shardings=model.sharding)
        found = []
        with contextlib.closing(batches):
            for batch in _whole(batches, model.sharding, self.batch_size):
                found.append(jax.device_get(model.losses(roll(batch) if self.shuffled else batch)))
        if not found:
            raise BadInput(f"losses: fewer than batch_size={self.batch_size} examples are whole")
        means = {key: float(np.mean([metrics[key] for metrics in found])) for key in found[0]}
        examples = len(found) * self.batch_size
        return means | {"examples": examples, "left_out": len(self.source) - examples}


def _whole(
    batches: Iterator[Mapping[str, Array]], sharding: NamedSharding, batch_size: int
) -> Iterator[Mapping[str, Array]]:
    """The batches whose rows are all valid, and others made of the valid rows of the rest."""
    waiting: dict[str, np.ndarray] = {}
    for batch in batches:
        if not jnp.all(batch["valid"]):
            (rows,) = fetched(iter([batch]), sharding.mesh)
            valid = rows["valid"]
            waiting = {
                name: np.concatenate([*([waiting[name]] if waiting else []), x[valid]])
                for name, x in rows.items()
            }
            if len(waiting["valid"]) < batch_size:
                continue
            batch = {name: place(x[:batch_size], sharding) for name, x in waiting.items()}
            waiting = {name: x[batch_size:] for name, x in waiting.items()}
        yield batch


def shuffle(batch: Mapping[str, Array]) -> dict[str, Array]:
    """Texts, and all that is of them, moved half a batch further; first halves of pairs stay."""
    half = len(batch["id"]) // 2

    def moves(name: str) -> bool:
        return name.startswith(("text", "teacher_text", "entities")) and "_first" not in name

    return {name: jnp.roll(x, half, axis=0) if moves(name) else x for name, x in batch.items()}
