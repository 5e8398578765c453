"""What an evaluator is given, and what it leaves."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from etils import epath
from jax import Array
from jax.sharding import NamedSharding

from mm.report import outcomes
from mm.report.outcomes import Outcome
from mm.runtime.workdir import write_json

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
    when all is saved, on every process in the same order;
    keep(found): what became of each example, by which `mm.report.compare` compares two runs.
    """

    embed: Callable[[Mapping], tuple[Array, Array]]
    losses: Callable[[Mapping], Mapping[str, Array]]
    match: Callable[[Mapping], Array]
    sharding: NamedSharding
    apply: Callable[[Callable], Callable[[Mapping], Any]] | None = None
    later: Callable[[Callable[[], None]], None] = lambda draw: draw()
    keep: Callable[[Mapping[str, Outcome]], None] = lambda found: None

    def metrics(self, found: Mapping[str, Outcome]) -> dict[str, float]:
        """The metrics; what they are made of is kept."""
        self.keep(found)
        return outcomes.metrics(found)


def draw_later(
    model: Model,
    picture: epath.Path | None,
    draw: Callable[[], None],
    what: str = "pictures",
    together: bool = False,
) -> None:
    """Has draw() called when all is saved, on process 0, or on all `together`; says if it fails.

    picture: where it draws to; without one nothing is drawn.
    """

    def guarded() -> None:
        try:
            if together or jax.process_index() == 0:
                draw()
        except Exception as error:  # a picture is no reason to fail
            print(f"warning: no {what} of {picture.stem}: {type(error).__name__}: {error}")

    if picture is not None:
        model.later(guarded)


def leave_page(picture: epath.Path, shown: Mapping[str, Any]) -> None:
    """Writes what the run's page shows of an evaluation, `report/<its name>.json` beside its
    picture."""
    page = picture.parent / "report" / f"{picture.stem}.json"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_json(page, shown)
