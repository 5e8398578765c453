"""What evaluators of written texts share: the decoder that writes, and what a person looks at."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import Array
from jaxtyping import Int

from data.sources import BadExample, Source, read_each
from data.tokenizers import Tokenizer
from mm.config import BadInput, suggest
from mm.evals import examples
from mm.evals.base import Model, draw_later, leave_page
from mm.generation import Beam, Generated, Greedy, Method, Prompt, generate
from mm.objectives.combine import System
from mm.objectives.views import Views

_AT_ONCE = 1024  # records read
_SHOWN = 24  # on the page
_SIDE = 96  # pixels of a picture there


def read_references(source: Source, field: str, ids: Int[np.ndarray, " n"]) -> list[list[str]]:
    """What people wrote of each example, one text or several.

    Raises BadInput where the source has no such field, or an example no text.
    """
    if field not in source.features:
        near = suggest(field, source.features)
        raise BadInput(f"references={field!r}: the source has no such field{near}")
    found = []
    for start in range(0, len(ids), _AT_ONCE):
        part = ids[start : start + _AT_ONCE]
        for number, record in zip(part.tolist(), read_each(source, part, (field,)), strict=True):
            if isinstance(record, BadExample):  # told of where examples are counted
                found.append([])
                continue
            texts = [record[field]] if isinstance(record[field], str) else list(record[field] or ())
            if not texts:
                raise BadInput(f"references={field!r}: example {number} has no text; leave it out")
            found.append(texts)
    return found


@dataclasses.dataclass(frozen=True)
class Writer:
    """function(system, views) -> what the decoder writes, by `beam` sequences at a time.

    answers: after the instructions in batch["text"]. Equal writers are one compiled function.
    """

    end_id: int
    pad_id: int
    beam: int = 1
    answers: bool = False

    def __call__(self, system: System, views: Views) -> dict[str, Array]:
        ids, prompt = self.write(views).ids, None
        if not self.answers:
            return {"ids": ids}
        batch, prompt = views.batch, self.prompt(views)
        given = jnp.where(batch["text_answer"], batch["text"], self.pad_id)
        return {
            "ids": jnp.where(prompt.mask, self.pad_id, ids),
            "answers": given,
            "instructions": jnp.where(prompt.mask, batch["text"], self.pad_id),
        }

    def write(self, views: Views) -> Generated:
        """Token ids, prompt and all."""
        memory = views.memory()
        method: Method = Greedy() if self.beam == 1 else Beam(width=self.beam)
        return generate(
            views.model,
            memory,
            method,
            end_id=self.end_id,
            pad_id=self.pad_id,
            batch_size=None if memory is not None else len(jax.tree.leaves(views.batch)[0]),
            prompt=self.prompt(views) if self.answers else None,
        )

    def prompt(self, views: Views) -> Prompt:
        """The instructions of a batch."""
        batch = views.batch
        return Prompt(batch["text"], batch["text_mask"] & ~batch["text_answer"])


def find_tokenizer(preprocess: Any, what: str) -> Tokenizer:
    """That of the ops. Raises BadInput, which `what` begins, if none is, or it cannot be read."""
    tokenizer = preprocess.tokenizer
    if tokenizer is None:
        raise BadInput(f"{what}: the ops have no tokenizer, which makes words of what is written")
    if not tokenizer.manifest()["ids_after"]:
        raise BadInput(f"{what}: the tokenizer has no end mark, so that no text would end")
    try:
        tokenizer.check_spells()
    except BadInput as error:
        raise BadInput(f"{what}: {error}") from error
    return tokenizer


def writer(tokenizer: Tokenizer, beam: int, answers: bool = False) -> Writer:
    """One that ends as the tokenizer's texts do."""
    marks = tokenizer.manifest()
    return Writer(marks["ids_after"][-1], marks["pad_id"], beam, answers)


def leave_texts(
    evaluator: Any,
    model: Model,
    picture: epath.Path | None,
    ids: np.ndarray,
    rows: Sequence[dict[str, Any]],
) -> None:
    """Writes some of the rows with their pictures for the run's page: a row has "written",
    "references", and what else is shown."""
    field = evaluator.preprocess.field_of("decode")

    def leave() -> None:
        places = examples.spread(len(ids), _SHOWN)
        records = evaluator.source.read(ids[places], (field,))
        thumbnail = functools.partial(examples.thumbnail, side=_SIDE)
        shown = [
            rows[place] | {"picture": thumbnail(examples.to_image(record[field]))}
            for place, record in zip(places, records, strict=True)
        ]
        leave_page(picture, {"kind": "texts", "examples": len(ids), "rows": shown})

    if field is not None:
        draw_later(model, picture, leave, "texts")
