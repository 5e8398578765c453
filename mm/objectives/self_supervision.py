"""Self-supervision of one tower: two views of a picture, or of a text, find each other (SimCLR)."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float

from mm import registry
from mm.config import BadInput, Positive, Rate, Scale
from mm.models.inputs import GROUP, images, texts
from mm.models.keys import Keys
from mm.models.layers import Dtype
from mm.models.multimodal import Multimodal, normalize
from mm.objectives.base import Loss, Objective
from mm.objectives.contrastive import nt_xent
from mm.objectives.heads import Projector
from mm.objectives.views import Views, batch_key, view


@registry.register("objective", "simclr")
class SimCLR(Objective):
    """NT-Xent between two views, over the global batch (Chen et al. 2020, eq. 1; SLIP, Mu et al.
    2022, beside a contrastive objective).

    `views` are read from the batch: image_one and image_two, which the op `view` makes, or text_one
    and text_two with their masks. With `spans` > 0 (texts only) they are made here: each hides that
    share of the tokens in random spans, never one of the ids `special`, see `choose_spans`. Rows of
    the same `same` ("id", or "group" where several rows have one text) are positives of each other,
    never negatives. The projector reads the tower's pooled vector; its defaults are SLIP's.
    Metrics: `accuracy` at finding the other view; `feature_std`, 1 for projections that fill the
    sphere evenly, 0 for collapsed ones.
    """

    def __init__(
        self,
        *,
        tower: Literal["image", "text"] = "image",
        views: tuple[str, ...] = ("one", "two"),
        spans: Rate = 0.0,
        special: tuple[int, ...] = (),
        same: Literal["id", "group"] = "id",
        temperature: Scale = 0.1,
        hidden: Positive = 4096,
        out: Positive = 256,
        layers: Positive = 3,
        dtype: Dtype = "float32",
        model: Multimodal,
        rngs: nnx.Rngs,
    ):
        model.need("simclr", tower)
        if len(views) != 2 or views[0] == views[1]:
            raise BadInput(f"views={views}: expected the names of two views, as ('one', 'two')")
        if tower == "image" and (spans or special):
            raise BadInput(f"spans={spans}, special={special}: are of tower='text'")
        read = getattr(model, tower)
        self.projector = Projector(
            read.pooled_width, hidden, out, layers=layers, dtype=dtype, rngs=rngs
        )
        self.tower, self.names, self.same = tower, tuple(views), same
        self.spans, self.special, self.temperature = spans, tuple(special), temperature
        names = [] if spans else [batch_key(view(tower, name)) for name in views]
        made = images(read.image_shape, *names) if tower == "image" else texts(read.length, *names)
        self.reads = made + ((GROUP,) if same == "group" else ())

    def __call__(self, views: Views, rng: Array) -> Loss:
        names = self.names
        if self.spans:
            names = tuple(f"{self.key}_{name}" for name in names)
            for name in names:
                views.derive(f"text_{name}", partial(self._hide, views.batch, f"text_{name}"))
        encoded = views.encode_all([view(self.tower, name) for name in names])
        # The two views of a row side by side: no row moves to another device.
        z = normalize(self.projector(jnp.stack([x.pooled for x in encoded], axis=1)))
        z = z.reshape(-1, z.shape[-1])
        group = views.batch[self.same].astype(jnp.int32).repeat(2)
        loss, accuracy = nt_xent(z, group, jnp.asarray(1 / self.temperature, z.dtype))
        metrics = {"accuracy": accuracy, "feature_std": feature_std(z)}
        return Loss(loss, jax.lax.stop_gradient(metrics))

    def _hide(self, batch: Mapping[str, Array], name: str, keys: Keys) -> dict[str, Array]:
        text, mask = batch["text"], batch["text_mask"]
        free = mask & ~jnp.isin(text, jnp.array(self.special, text.dtype))
        return {name: text, f"{name}_mask": mask & ~choose_spans(keys, free, self.spans)}


def feature_std(z: Float[Array, "b e"]) -> Float[Array, ""]:
    """sqrt(e) x the mean over dimensions of the deviation of unit vectors: 0 is collapse.

    About 1 for vectors in all directions alike (Chen and He 2021, section 4.1).
    """
    return math.sqrt(z.shape[1]) * z.std(0).mean()


def choose_spans(
    keys: Keys, free: Bool[Array, "b l"], share: float, *, stop: float = 0.2, longest: int = 10
) -> Bool[Array, "b l"]:
    """True for round(share x count) of the `free` tokens of each row, in random spans.

    At least one where there are two, and never all. A span's length is geometric, `stop` the chance
    to end after each token, at most `longest`; starts are uniform; spans are drawn until there are
    enough tokens, and the last one is cut (SpanBERT, Joshi et al. 2020, section 3.1). Tokens that
    are not free do not count: a span goes on behind them.
    """
    length = free.shape[1]

    def one(key: Array, free: Bool[Array, "l"]) -> Bool[Array, "l"]:
        count, place = free.sum(), jnp.cumsum(free) - 1
        wanted = jnp.minimum(jnp.maximum(jnp.round(share * count), 1), count - 1)
        where, how_long = jax.random.uniform(key, (2, length, 1))
        start = jnp.floor(where * count)
        size = jnp.minimum(1 + jnp.floor(jnp.log1p(-how_long) / math.log1p(-stop)), longest)
        inside = free & (place >= start) & (place < start + size)
        drawn = jnp.where(inside.any(0), inside.argmax(0), length)  # by which span, of `length`
        order = jnp.where(free, drawn * length + place, length * (length + 1))
        return free & (jnp.argsort(jnp.argsort(order)) < wanted)

    return jax.vmap(one)(keys, free)
