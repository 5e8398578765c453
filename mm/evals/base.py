"""What an evaluator is given, and what it leaves."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from etils import epath
from jax import Array
from jax.sharding import NamedSharding

from mm.report import outcomes
from mm.report.outcomes import Outcome

# An evaluator also has `needs`, parts of the model (`System.need`), and `reads`, the arrays of
# a batch that it takes; None is all that a step reads. `score`, if it has one, is the key of its
# results that says how good a model is, as a share; `check(config.model)` refuses a model that it
# cannot evaluate.


class Model(NamedTuple):
    """A program with its parameters: functions of a batch, whose rows lie in `sharding`.

    embed(batch) -> (zimg, ztxt), normalized; losses(batch) -> metrics of the objectives;
    match(batch) -> [b], by how much row i's image and text belong together (a logit);
    apply(function) -> a function of a batch, function(system, views), rows over the devices;
    later(draw): what only draws, and may take its time or fail: at the end of training it is called
    when all is saved, on every process in the same order.
    """

    embed: Callable[[Mapping], tuple[Array, Array]]
    losses: Callable[[Mapping], Mapping[str, Array]]
    match: Callable[[Mapping], Array]
    sharding: NamedSharding
    apply: Callable[[Callable], Callable[[Mapping], Any]] | None = None
    later: Callable[[Callable[[], None]], None] = lambda draw: draw()


def leave_outcomes(picture: epath.Path | None, found: Mapping[str, Outcome]) -> dict[str, float]:
    """The metrics, which are the means of what is found of each example.

    And where the evaluation has a `picture`, `outcomes/<its name>.npz` beside it (process 0): by
    that two runs are compared, see `mm.report.compare`.
    """
    if picture is not None and jax.process_index() == 0:
        outcomes.write(picture.parent / outcomes.FOLDER / f"{picture.stem}.npz", found)
    return outcomes.means(found)
