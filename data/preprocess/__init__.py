"""What happens to an example between the source and the batch, written as a string.

`decode|random_resized_crop(48)|flip|caption("label")|tokenize("emoji", 16)`: ops
from left to right, each a registered function (kind "op") called with literals. An op works on
columns, some examples at once, and draws what it needs from numbers keyed by seed, example and
epoch: what happens to an example never depends on its neighbours, to the last bit.

Ops are numpy, not TensorFlow, whose vectorized kernels change the last bit of a result with an
example's place among the others. (PyPI's TensorFlow, built without AVX, is also the slower one.)
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt64

from data.preprocess.draws import Draws
from data.profile import stage
from data.sources import BadExample, Feature
from data.tokenizers import Tokenizer
from mm.config import BadInput, suggest

Columns = dict[str, Any]  # name -> list of values, array, or what is Lazy


@runtime_checkable
class Lazy(Protocol):
    """A column that is made when no op has more to say about it."""

    def make(self, out: np.ndarray | None = None) -> np.ndarray:
        """The array [b, ...]: `out`, where that is given."""
        ...


class Op(NamedTuple):
    """apply: (columns, draws) -> columns. reads: the source's fields it takes. stage: see
    `data.profile`; by default "augment" of pictures and "text". classes: the names of those that
    it numbers."""

    apply: Callable[[Columns, Draws], Columns]
    reads: tuple[str, ...] = ()
    tokenizer: Tokenizer | None = None
    stage: str = "augment"
    classes: tuple[str, ...] | None = None


class Preprocess(NamedTuple):
    """A parsed string. `names[i]` is how op i is written in it. where: the config's key."""

    text: str
    where: str
    names: tuple[str, ...]
    ops: tuple[Op, ...]

    @property
    def reads(self) -> tuple[str, ...]:
        """The source's fields that the ops read."""
        return tuple(sorted({key for op in self.ops for key in op.reads}))

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What turns text to numbers: travels with the checkpoint."""
        return next((op.tokenizer for op in self.ops if op.tokenizer), None)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes that `label` or `labels` numbers; None without one."""
        return next((op.classes for op in self.ops if op.classes), None)

    @property
    def group(self) -> str:
        """The group of the config that the ops are in."""
        return self.where.rpartition(".")[0] or "input"

    def field_of(self, op_name: str) -> str | None:
        """The first field that the op of that name reads, e.g. of "caption"; None without one."""
        return next(
            (
                op.reads[0]
                for name, op in zip(self.names, self.ops, strict=True)
                if _kind(name) == op_name and op.reads
            ),
            None,
        )

    def without(self, op_name: str) -> "Preprocess":
        """The other ops."""
        return self._kept(lambda name, _: _kind(name) != op_name)

    def only(self, op_name: str) -> "Preprocess":
        """The ops of that name."""
        return self._kept(lambda name, _: _kind(name) == op_name)

    def of_texts(self) -> "Preprocess":
        """The ops that change `text` and make numbers of it, without those that read a field."""
        return self.without_pictures()._kept(lambda _, op: not op.reads)

    def without_pictures(self) -> "Preprocess":
        """The ops on texts, labels and numbers."""
        return self._kept(lambda _, op: op.stage in ("text", "tokenize"))

    def _kept(self, keep: Callable[[str, Op], bool]) -> "Preprocess":
        kept = [pair for pair in zip(self.names, self.ops, strict=True) if keep(*pair)]
        names, ops = zip(*kept, strict=True) if kept else ((), ())
        return self._replace(names=names, ops=ops)

    def insert(self, others: "Preprocess", before: Collection[str]) -> "Preprocess":
        """With other ops before the first that is called one of these, or at the end."""
        kinds = [_kind(name) for name in self.names]
        place = next((i for i, kind in enumerate(kinds) if kind in before), len(kinds))
        names = (*self.names[:place], *others.names, *self.names[place:])
        ops = (*self.ops[:place], *others.ops, *self.ops[place:])
        return self._replace(text="|".join(names), names=names, ops=ops)

    def check(self, features: Mapping[str, Feature]) -> None:
        """Raises BadInput if an op reads a field that a source with these features lacks."""
        for name, op in zip(self.names, self.ops, strict=True):
            for key in op.reads:
                if key not in features:
                    raise BadInput(
                        f"{self.where}: {name}: the source has no field {key!r}"
                        f"{suggest(key, features)} (have {sorted(features)})"
                    )

    def apply(
        self,
        columns: Columns,
        keys: UInt64[np.ndarray, " b"],
        out: Mapping[str, np.ndarray] = {},
    ) -> dict[str, np.ndarray]:
        """Runs the ops over b examples; returns the arrays [b, ...] that they wrote.

        columns: the fields `reads`, lists of b values. keys: one an example, see `draws`. out:
        arrays that what is made last of all, pictures, is written to. Raises BadInput for an op
        that reads a field which one before it has written over.
        """
        raw = dict(columns)
        seen: dict[str, int] = {}
        writers: dict[str, str] = {}  # the first op that wrote a column
        for name, op in zip(self.names, self.ops, strict=True):
            for key in op.reads:
                if key in writers:
                    raise BadInput(
                        f"{self.where}: {name}: reads the field {key!r}, which {writers[key]} "
                        f"has written over; put {name} before it"
                    )
            kind = _kind(name)
            seen[kind] = seen.get(kind, 0) + 1
            try:
                # Keyed by name and occurrence: adding an op leaves the draws of the others alone.
                with stage(op.stage):
                    columns = op.apply(columns, Draws(keys, f"{kind} {seen[kind]}"))
            except BadExample as error:
                message = f"{self.where}: {name}: {error}"
                raise BadExample(message, error.reason, error.always) from error
            except BadInput as error:
                raise BadInput(f"{self.where}: {name}: {error}") from error
            for key, value in columns.items():
                if raw.get(key) is not value:
                    writers.setdefault(key, name)
        written = {}
        for key in [key for key in writers if key in columns]:  # an op may take one away
            value = columns[key]
            try:
                with stage("augment"):
                    written[key] = value.make(out.get(key)) if isinstance(value, Lazy) else value
            except BadExample as error:
                message = f"{self.where}: {writers[key]}: {error}"
                raise BadExample(message, error.reason) from error
            except BadInput as error:
                raise BadInput(f"{self.where}: {key!r}: {error}") from error
            if not isinstance(written[key], np.ndarray):
                raise BadInput(f"{self.where}: {key!r} is not yet numbers{_NEXT.get(key, '')}")
        return written


def _kind(name: str) -> str:
    """The name of an op that is written like that."""
    return name.split("(")[0].strip()


_NEXT = {
    "image": "; put resize or random_resized_crop after decode",
    "text": "; put tokenize last",
}
