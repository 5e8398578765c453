"""Does a picture fit its caption better than one that is wrong by one thing?

As ARO (Yuksekgonul et al. 2023) and SugarCrepe (Hsieh et al. 2023) ask it, with wrong captions that
the op `hard_negative` makes. A model that takes a caption for a bag of words fails where the words
are the same.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Bool, Float

from data.preprocess import Preprocess
from data.preprocess.draws import example_keys
from data.preprocess.negatives import KINDS, Kind
from data.sources import BadExample, read_each
from mm import registry
from mm.config import BadInput, Share
from mm.evals.base import Model
from mm.evals.examples import spread
from mm.evals.pool import pool_of
from mm.report.outcomes import Outcome

# Scores nearer than this tie: of the same words in another order, a bag's sum in float32 differs in
# its last bits, and so would be right by chance.
_TIE = 1e-5
_LOOKED_AT = 2000  # captions in which words of each kind are looked for


@registry.register("evaluator", "compositional")
class Compositional:
    """How often the caption of a picture scores higher than a hard negative of it; chance is half.

    kinds: rules of the op `hard_negative`, by default all that change some caption. match: ask the
    matching head, too. A caption that a rule leaves as it is does not count; a tie is a failure.
    Raises BadInput for a kind that changes none of 2,000 captions all over the source.
    """

    needs = ("image", "text", "embed_dim")  # of the model
    reads = ("image", "text", "text_mask")  # of a batch, where the model reads them
    score = "accuracy"

    def __init__(
        self,
        *,
        source: Any,
        preprocess: Preprocess,
        batch_size: int,
        kinds: tuple[Kind, ...] | None = None,
        match: bool = False,
        max_bad_share: Share = 0.01,
    ):
        from data.preprocess.parse import parse  # here, since it loads TensorFlow

        if preprocess.tokenizer is None:
            raise BadInput("compositional: needs the op tokenize")
        self.source, self.preprocess, self.batch_size = source, preprocess, batch_size
        self.match, self.max_bad_share = match, max_bad_share
        self.wrong = {}
        for kind in KINDS if kinds is None else kinds:
            op = parse(f"hard_negative({kind!r})", where=preprocess.where)
            wrong = preprocess.insert(op, before=("tokenize",))
            if _changes(source, wrong):
                self.wrong[kind] = wrong
            elif kinds is not None:
                raise BadInput(f"kinds: no caption has what {kind!r} changes; leave it out")
        if not self.wrong:
            raise BadInput(f"compositional: no caption has what any of {list(KINDS)} changes")
        if match:
            self.needs, self.reads = (*self.needs, "match"), (*self.reads, "entities")

    def run(self, model: Model, picture: epath.Path | None = None) -> dict[str, float]:
        """Returns "<kind>/accuracy" and "<kind>/count", and "accuracy", the mean over kinds.

        With `match` also "match/<kind>/accuracy" and "match/accuracy". No picture.
        """
        own = self._scores(model, self.preprocess)
        ids, rights = {}, {}
        for kind, preprocess in self.wrong.items():
            other = self._scores(model, preprocess)
            # An example may be broken with one text and whole with the other.
            both, left, right = np.intersect1d(own["id"], other["id"], return_indices=True)
            changed = other["changed"][right]
            ids[kind] = both[changed]
            rights[kind] = higher(own["scores"][left], other["scores"][right])[changed]
        found, every = {}, np.concatenate(list(ids.values()))
        numbers = np.repeat(np.arange(len(ids)), [len(each) for each in ids.values()])
        for column, name in enumerate(("", "match/") if self.match else ("",)):
            right = np.concatenate([each[:, column] for each in rights.values()])
            pairs = np.stack([numbers, right], axis=1)
            found[f"{name}accuracy"] = Outcome(every, pairs, "per_class", every)
            for kind in ids:
                found[f"{name}{kind}/accuracy"] = Outcome(ids[kind], rights[kind][:, column])
        counts = {f"{kind}/count": float(len(each)) for kind, each in ids.items()}
        return model.metrics(found) | counts

    def _scores(self, model: Model, preprocess: Preprocess) -> dict[str, np.ndarray]:
        """Of each picture and its text "scores", [n], similarity and the logit of matching, and
        whether the text is "changed"."""

        def score(batch):
            read = {name: batch[name] for name in self.reads if name in batch}
            zimg, ztxt = model.embed(read)
            scores = [jnp.einsum("be,be->b", zimg, ztxt, precision="highest")]
            scores += [model.match(read)] if self.match else []
            changed = batch.get("text_changed", jnp.zeros(len(zimg), bool))
            return {"scores": jnp.stack(scores, 1), "changed": changed}

        return pool_of(self, model, score, preprocess=preprocess)


def higher(
    own: Float[np.ndarray, "*rows"], other: Float[np.ndarray, "*rows"]
) -> Bool[np.ndarray, "*rows"]:
    """Where the first score is higher, by more than rounding."""
    return own - other > _TIE


def _changes(source: Any, preprocess: Preprocess) -> bool:
    """Whether any caption of some, all over the source, is changed."""
    of_text = [
        (name, op)
        for name, op in zip(preprocess.names, preprocess.ops, strict=True)
        if op.stage in ("text", "tokenize")
    ]
    names, ops = zip(*of_text, strict=True)
    preprocess = preprocess._replace(names=names, ops=ops)
    ids = np.array(spread(len(source), _LOOKED_AT))
    records = read_each(source, ids, preprocess.reads)
    rows = [i for i, record in enumerate(records) if not isinstance(record, BadExample)]
    columns = {key: [records[i][key] for i in rows] for key in preprocess.reads}
    keys = example_keys(0, ids[rows], np.zeros(len(rows), np.int64))
    return bool(rows) and bool(preprocess.apply(columns, keys)["text_changed"].any())
