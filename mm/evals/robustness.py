"""Any evaluator on pictures that are corrupted more and more, as ImageNet-C (Hendrycks 2019)."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from data.preprocess.corrupt import CORRUPTIONS, FAMILIES, STRENGTHS
from mm import registry
from mm.config import BadInput, suggest
from mm.evals.base import Model, draw_later
from mm.report.outcomes import Outcome
from mm.runtime.workdir import write_atomic

Scores = Mapping[str, Sequence[float]]  # of each corruption, by strength


@registry.register("evaluator", "robustness")
class Robustness:
    """What another evaluator says of `source`, clean and under each corruption and strength.

    of: the evaluator, such as dict(name="retrieval"), with keys of its own; it has to have a
    `score`. corruptions, strengths: those of `data.preprocess.corrupt`, by default all fifteen at
    all five: 76 times the work of the evaluator alone. The op `corrupt` goes behind the ops on
    pictures, where the paper has it: the corruption is of the picture as the model sees it.
    """

    def __init__(
        self,
        *,
        source: Any,
        preprocess: Any,
        batch_size: int,
        of: Mapping,
        corruptions: tuple[str, ...] = CORRUPTIONS,
        strengths: tuple[int, ...] = STRENGTHS,
    ):
        from data.preprocess.parse import parse  # here, since it loads TensorFlow

        for name in corruptions:
            if name not in CORRUPTIONS:
                near = suggest(name, CORRUPTIONS)
                raise BadInput(f"corruptions: no {name!r}{near} (have {list(CORRUPTIONS)})")
        if not corruptions or not strengths or not {*strengths} <= {*STRENGTHS}:
            raise BadInput(
                f"corruptions={corruptions}, strengths={strengths}: expected at least one of each, "
                "strengths from 1 to 5"
            )
        if preprocess.field_of("decode") is None:
            raise BadInput(f"{preprocess.where}: has no op decode, and so no picture to corrupt")

        def build(preprocess: Any) -> Any:
            given = dict(source=source, preprocess=preprocess, batch_size=batch_size)
            return registry.build("evaluator", of, "of", **given)

        def corrupted(name: str, strength: int) -> Any:
            op = parse(f"corrupt({name!r}, {strength})", where=preprocess.where)
            return build(preprocess.insert(op, before=("value_range", "normalize")))

        self.source, self.batch_size = source, batch_size
        self.clean = build(preprocess)
        if not getattr(self.clean, "score", None):
            raise BadInput(
                f"of.name={of['name']!r}: has no score that could fall; take "
                "retrieval, zero_shot or classification"
            )
        self.needs, self.reads, self.score = self.clean.needs, self.clean.reads, self.clean.score
        self.max_bad_share = self.clean.max_bad_share
        self.strengths = tuple(sorted({*strengths}))
        self.corrupted = {
            name: [corrupted(name, strength) for strength in self.strengths]
            for name in CORRUPTIONS
            if name in corruptions
        }

    def run(self, model: Model, picture: epath.Path | None = None) -> dict[str, float]:
        """Returns the score clean, by strength and by corruption, and what `errors` says.

        picture: a PNG of the score against the strength; beside it a CSV with every score.
        """
        kept: dict[str, Outcome] = {}
        inner = model._replace(keep=kept.update)

        def run(evaluator: Any) -> tuple[float, Outcome]:
            return evaluator.run(inner)[self.score], kept[self.score]

        clean, of_clean = run(self.clean)
        found = {name: [run(each) for each in every] for name, every in self.corrupted.items()}
        scores = {name: [score for score, _ in each] for name, each in found.items()}
        draw_later(model, picture, lambda: self._draw(clean, scores, picture))
        by_strength = np.mean(list(scores.values()), axis=0)
        results = {f"{self.score}/clean": clean}
        for strength, score in zip(self.strengths, by_strength, strict=True):
            results[f"{self.score}/strength_{strength}"] = float(score)
        results |= {f"{self.score}/{name}": float(np.mean(each)) for name, each in scores.items()}
        results |= errors(clean, scores)
        every = {name: [outcome for _, outcome in each] for name, each in found.items()}
        return results | model.metrics(self._outcomes(of_clean, every))

    def _outcomes(
        self, clean: Outcome, found: Mapping[str, Sequence[Outcome]]
    ) -> dict[str, Outcome]:
        """Of the metrics, which are means of means over the same examples; {} where they are not:
        where the score is no mean, or an example is broken under some corruption alone."""
        every = [clean, *(outcome for each in found.values() for outcome in each)]
        if any(x.kind != "mean" or not np.array_equal(x.ids, clean.ids) for x in every):
            return {}
        values = {
            name: np.stack([np.asarray(x.values, np.float64) for x in each])
            for name, each in found.items()
        }
        whole = np.stack(list(values.values()))  # [corruptions strengths n]
        error = 1 - whole.mean((0, 1))
        made = {f"{self.score}/clean": clean.values, "mean_corruption_error": error}
        made["relative_corruption_error"] = error - (1 - np.asarray(clean.values, np.float64))
        for i, strength in enumerate(self.strengths):
            made[f"{self.score}/strength_{strength}"] = whole[:, i].mean(0)
        made |= {f"{self.score}/{name}": each.mean(0) for name, each in values.items()}
        return {name: clean._replace(values=x) for name, x in made.items()}

    def _draw(self, clean: float, scores: Scores, path: epath.Path) -> None:
        from mm.report import chart  # here, since it loads matplotlib

        def mean(names: Sequence[str]) -> list[tuple[float, float]]:
            values = 100 * np.mean([(clean, *scores[name]) for name in names], axis=0)
            return list(zip((0, *self.strengths), values.tolist(), strict=True))

        families = {
            family: mean([name for name in names if name in scores])
            for family, names in FAMILIES.items()
            if {*names} & {*scores}
        }
        figure = chart.lines(
            {f"all {len(scores)}": mean(list(scores)), **families},
            x="strength of the corruption (0: clean)",
            y=f"{self.score}, %",
        )
        write_atomic(path, chart.png(figure))
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["corruption", *self.strengths])
        table.writerow(["clean", *[clean] * len(self.strengths)])
        table.writerows([name, *values] for name, values in scores.items())
        write_atomic(path.with_suffix(".csv"), text.getvalue())


def errors(clean: float, scores: Scores) -> dict[str, float]:
    """The mean corruption error, and by how much it is above the clean error.

    The error is 1 - score. Means over strengths, then over corruptions (Hendrycks and Dietterich
    2019, section 4.2). They divide by the errors of AlexNet, which has none here: these are the
    plain means, as their CIFAR-10-C has them.
    """
    corrupted = float(np.mean([1 - np.mean(each) for each in scores.values()]))
    return {
        "mean_corruption_error": corrupted,
        "relative_corruption_error": corrupted - (1 - clean),
    }
