"""Maps of which patches count for a text, drawn over pictures."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from etils import epath
from jaxtyping import Float

from data.sources import BadExample, read_each
from mm import registry
from mm.config import BadInput, Positive
from mm.evals import examples
from mm.evals.base import Model, draw_later
from mm.evals.patch_maps import METHODS, patch_maps, random_maps
from mm.evals.word_maps import arrays_of, gathered
from mm.report import explanations as report
from mm.runtime.workdir import write_atomic

Method = Literal["rollout", "gradient", "similarity"]


@registry.register("evaluator", "explanations")
class Explanations:
    """Maps by attention rollout, gradient-weighted attention and similarity of patches.

    See `mm.evals.patch_maps`. count: pictures, spread evenly over the source; ids: these instead.
    texts: each is looked for in each picture; by default a picture's own. batch_size: so many at
    once, at most. The image tower has to be
    a ViT of pictures. Raises BadInput for a picture that the source does not have or that is
    broken; of those that are spread, broken ones are left out.
    """

    needs = ("image", "text", "embed_dim")  # of the model
    reads = ("image", "text", "text_mask")  # of a batch, where the model reads them

    def __init__(
        self,
        *,
        source: Any,
        preprocess: Any,
        batch_size: Positive,
        count: Positive = 6,
        ids: tuple[int, ...] = (),
        texts: tuple[str, ...] = (),
        methods: tuple[Method, ...] = METHODS,
    ):
        if wrong := [i for i in ids if not 0 <= i < len(source)]:
            raise BadInput(f"ids: {wrong} are not in 0 .. {len(source) - 1}, those of the source")
        self.field = examples.text_field(preprocess)
        if self.field is None or preprocess.field_of("decode") is None:
            raise BadInput(f"{preprocess.where}: needs the ops decode and caption")
        self.source, self.preprocess, self.batch_size = source, preprocess, batch_size
        self.methods = methods
        # Read now: what is broken must not end a training.
        chosen = np.array(ids or examples.spread(len(source), count))
        found = read_each(source, chosen, preprocess.reads)
        whole = [record for record in found if not isinstance(record, BadExample)]
        if not whole or (ids and len(whole) < len(found)):
            raise next(record for record in found if isinstance(record, BadExample))
        self.records = [
            examples.say(record, self.field, text) for record in whole for text in texts
        ] or whole

    def check(self, model: Any) -> None:
        """Raises BadInput for a model (config.model) without patches."""
        image = model["image"]
        if image.get("name") != "vit" or image.get("frames"):
            raise BadInput("explanations: config.model.image has no patches of a picture; take vit")

    def run(self, model: Model, picture: epath.Path | None = None) -> dict[str, float]:
        """Returns "<method>/random_correlation", the same on every process.

        That is the rank correlation of the maps with those of a model of random weights, a mean
        over pictures: near 1, a map does not depend on what was learned. picture: a PNG to write.
        """
        arrays = arrays_of(self.preprocess, self.records)
        maps, randomized = (
            gathered(model.apply(look), model.sharding, arrays, self.batch_size)
            for look in (patch_maps, random_maps)
        )
        methods = [name for name in self.methods if name in maps]
        if missing := [name for name in self.methods if name not in maps]:
            print(f"note: no map by {' and '.join(missing)}: the image tower does not attend")

        def draw() -> None:
            field = self.preprocess.field_of("decode")
            pictures = [examples.to_image(record[field]) for record in self.records]
            captions = [examples.caption_of(record[self.field]) for record in self.records]
            shown = {name: maps[name] for name in methods}
            write_atomic(picture, report.draw(captions, pictures, shown))

        draw_later(model, picture, draw)
        return {
            f"{name}/random_correlation": correlation(maps[name], randomized[name])
            for name in methods
        }


def correlation(
    maps: Float[np.ndarray, "n rows columns"], others: Float[np.ndarray, "n rows columns"]
) -> float:
    """Spearman's rank correlation of each two maps, the mean; that of a flat map is 0."""
    from scipy.stats import rankdata  # here, since it takes a second to import

    def ranked(maps: Sequence[np.ndarray]) -> np.ndarray:
        ranks = rankdata(np.reshape(maps, (len(maps), -1)), axis=1)
        ranks -= ranks.mean(1, keepdims=True)
        return ranks / np.maximum(np.linalg.norm(ranks, axis=1, keepdims=True), 1e-12)

    return float((ranked(maps) * ranked(others)).sum(1).mean())
