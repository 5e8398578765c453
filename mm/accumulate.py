"""The gradients of a whole batch from micro-batches: a contrastive loss keeps all its negatives.

GradCache (Gao et al. 2021, section 3.2), for a loss that sees the towers through their embeddings
alone. Pass 1 embeds every micro-batch and keeps nothing else; the loss of all embeddings gives its
slope at each; pass 2 embeds again and pulls the slopes back to the parameters. It costs one more
forward pass than the whole batch, and holds the activations of one micro-batch. Equal to the whole
batch because what a tower draws is keyed by the row.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mm.config import BadInput
from mm.models.encoder import Encoded
from mm.models.keys import Keys, example_keys
from mm.models.multimodal import Embedding
from mm.objectives.views import View, Views
from mm.sharding.mesh import batch_parts
from mm.sharding.rules import active_mesh, constrain

# state -> a module with `model` and `objectives`; state -> (what is trained, such a module of it);
# (state, module, batch, keys, ...) -> its views
Merge = Callable[[Any], Any]
Part = Callable[[Any], tuple[Any, Merge]]
See = Callable[..., Views]


class EmbeddingViews(Views):
    """Views of which only embeddings may be asked: those given, others computed."""

    def __init__(self, *args: Any, embeddings: Mapping[View, Embedding] = {}, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.embeddings |= embeddings

    def encode_all(self, views: Sequence[View]) -> list[Encoded]:
        """Refuses."""
        raise _TokensAsked(f"views.{views[0].tower}")


class _TokensAsked(Exception):
    pass


def wanted_views(merge: Merge, see: See, state: Any, batch: Mapping, steps: int) -> list[View]:
    """Which embeddings the objectives ask for; shapes suffice, nothing is computed.

    Raises BadInput for an objective that asks for anything else.
    """
    wanted: list[View] = []

    def ask(state: Any, batch: Mapping[str, Array]) -> None:
        system, key = merge(state), jax.random.key(0)
        keys = example_keys(key, len(batch["id"]))
        views = see(state, system, batch, keys, kind=EmbeddingViews)
        for name, objective in system.objectives.items():
            try:
                objective(views, key)
            except _TokensAsked as what:
                raise BadInput(
                    f"config.accumulation_steps={steps}: objective {name!r} reads tokens of the "
                    f"whole batch ({what}), of which micro-batches keep embeddings only; set "
                    "accumulation_steps=1"
                ) from what
        wanted.extend(views.embeddings)

    jax.eval_shape(ask, state, batch)
    return wanted


def accumulate(
    part: Part, see: See, wanted: Sequence[View], steps: int, shardings: Any
) -> Callable:
    """A function (loss, state, batch, keys of the rows) -> ((value, aux), gradients).

    Of loss(system, views of a system) over the whole batch, as `mm.steps.differentiated` does at
    once. `steps` divides each device's rows; `shardings` are those of the parameters that are
    trained, and of their gradients.
    """

    def gradients(loss: Callable, state: Any, batch: Mapping[str, Array], keys: Keys):
        own, merge = part(state)

        def embed(params: Any, rows: tuple[Mapping[str, Array], Keys]) -> list[Embedding]:
            views = Views(merge(params).model, *rows)
            return [views.embed(view) for view in wanted]

        parts = cut((batch, keys), steps)
        embeddings = join(jax.lax.map(partial(embed, own), parts))

        def from_embeddings(params: Any, embeddings: list[Embedding]):
            given = dict(zip(wanted, embeddings, strict=True))
            more = dict(kind=EmbeddingViews, embeddings=given)
            return loss(merge(params), lambda system: see(state, system, batch, keys, **more))

        # The objectives' own parameters get all of their gradient here, the towers' get zeros.
        result, (gradient, slopes) = jax.value_and_grad(from_embeddings, (0, 1), has_aux=True)(
            own, embeddings
        )

        def add(gradient: Any, piece: tuple) -> tuple[Any, None]:
            rows, slopes = piece
            _, pull = jax.vjp(lambda params: embed(params, rows), own)
            gradient = jax.tree.map(jnp.add, gradient, *pull(slopes))
            # Else each device could hold the sum whole, whatever its parameters' layout.
            return jax.lax.with_sharding_constraint(gradient, shardings), None

        return result, jax.lax.scan(add, gradient, (parts, cut(slopes, steps)))[0]

    return gradients


def cut(tree: Any, steps: int) -> Any:
    """Arrays [b, ...] to [steps, b / steps, ...], without moving a row to another device.

    A micro-batch takes its share of the rows of every device that splits the batch.
    """
    devices = _devices()

    def one(x: Array) -> Array:
        x = x.reshape(devices, steps, -1, *x.shape[1:])
        x = constrain(x, "batch").swapaxes(0, 1)
        return constrain(x.reshape(steps, -1, *x.shape[3:]), None, "batch")

    return jax.tree.map(one, tree)


def join(tree: Any) -> Any:
    """The inverse of `cut`."""
    devices = _devices()

    def one(x: Array) -> Array:
        x = x.reshape(len(x), devices, -1, *x.shape[2:])
        x = constrain(x, None, "batch").swapaxes(0, 1)
        return constrain(x.reshape(-1, *x.shape[3:]), "batch")

    return jax.tree.map(one, tree)


def _devices() -> int:
    mesh = active_mesh()
    return 1 if mesh is None else batch_parts(mesh)
