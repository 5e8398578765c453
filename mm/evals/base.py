"""What an evaluator is given."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jax import Array
from jax.sharding import NamedSharding

# An evaluator also has `needs`, parts of the model (`System.need`), and `reads`, the arrays of
# a batch that it takes; None is all that a step reads.


class Model(NamedTuple):
    """A program with its parameters: functions of a batch, whose rows lie in `sharding`.

    embed(batch) -> (zimg, ztxt), normalized; losses(batch) -> metrics of the objectives;
    match(batch) -> [b], by how much row i's image and text belong together (a logit);
    apply(function) -> a function of a batch, function(system, views), rows over the devices.
    """

    embed: Callable[[Mapping], tuple[Array, Array]]
    losses: Callable[[Mapping], Mapping[str, Array]]
    match: Callable[[Mapping], Array]
    sharding: NamedSharding
    apply: Callable[[Callable], Callable[[Mapping], Any]] | None = None
