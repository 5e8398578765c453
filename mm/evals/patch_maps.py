"""Which patches of a picture count for its text, by three methods; what `Model.apply` looks at."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from mm.evals.relevance import Step, positive, relevance, rollout, share
from mm.models.attention import recording
from mm.models.encoder import Encoded
from mm.models.multimodal import Multimodal
from mm.models.pool import mean_pool
from mm.objectives.combine import System
from mm.objectives.views import Views

METHODS = ("rollout", "gradient", "similarity")
Maps = dict[str, Float[Array, "b rows columns"]]
Kinds = dict[str, list[bool]]  # of each part, whether an attention is of its own tokens
Shape = tuple[int, ...]
Spans = list[tuple[tuple[int, int], tuple[int, int]]]  # queries and keys


def patch_maps(system: System, views: Views) -> Maps:
    """A map for each of METHODS, of each row's picture and text; "rollout" knows no text.

    Without "rollout" where the image tower does not attend, without "gradient" where nothing does.
    """
    model = views.model
    found = {"similarity": _similarity(model, views)}
    with recording() as weights:
        Views(model, views.batch, None, training=False).image()
    own = [each.weights for each in weights if each.of_itself]
    if own:
        attends = weights[-1].weights.mean(1)[:, 0] if model.image.pool == "map" else None
        whole = rollout(own)
        rows = _read(model, views.image(), attends, jnp.ones(whole.shape[:2]))
        found["rollout"] = jnp.einsum("bn,bnm->bm", rows, whole)
        found["gradient"] = _gradient(system, views)
    places = model.image.grid[0] * model.image.grid[1]
    return {name: x[:, -places:].reshape(-1, *model.image.grid) for name, x in found.items()}


def random_maps(system: System, views: Views) -> Maps:
    """The maps of a model with random numbers, of the same mean and deviation in each array.

    A map that stays as it was is one of the picture, not of what was learned (Adebayo et al. 2018).
    """
    graphdef, state = nnx.split(system)
    leaves, tree = jax.tree.flatten(state)
    alike: dict[tuple[int, ...], list[int]] = {}  # one draw a shape: each is a program to compile
    for place, x in enumerate(leaves):
        alike.setdefault(x.shape, []).append(place)
    for number, (shape, places) in enumerate(alike.items()):
        key = jax.random.key(number)
        ends = dict(minval=-(3**0.5), maxval=3**0.5)  # deviation 1
        for place, drawn in zip(
            places, jax.random.uniform(key, (len(places), *shape), **ends), strict=True
        ):
            x = leaves[place]
            leaves[place] = (x.mean() + x.std() * drawn).astype(x.dtype)
    system = nnx.merge(graphdef, jax.tree.unflatten(tree, leaves))
    return patch_maps(system, Views(system.model, views.batch, None, training=False))


def _read(
    model: Multimodal,
    image: Encoded,
    attends: Float[Array, "b n"] | None,
    counts: Float[Array, "b n"],
) -> Float[Array, "b n"]:
    """By how much the pooled vector reads each token of the image tower, registers and all.

    attends: the weights of pooling by attention. counts: of the tokens, for pools that have none.
    """
    if model.image.pool == "map":
        return jnp.pad(attends, ((0, 0), (counts.shape[1] - attends.shape[1], 0)))
    if model.image.pool == "cls":
        return jnp.zeros_like(counts).at[:, 0].set(1)
    return share(counts)


def _similarity(model: Multimodal, views: Views) -> Float[Array, "b n"]:
    """The cosine of the text with each patch, put in the place of the pooled vector.

    With pool="map" the pool reads the patch alone. With "flatten", whose weights know the place, it
    is by how much the similarity of the whole falls when the patch gets the mean of all.
    """
    tower, image = model.image, views.image()
    tokens, ztxt = image.tokens, views.text_embedding().z

    def against(pooled: Array) -> Array:
        z = model.project("image", image._replace(pooled=pooled)).z
        return jnp.einsum("be,be->b", z, ztxt)

    if tower.pool == "flatten":
        mean = tokens.mean(1)

        def without(place: Array) -> Array:
            return against(tower.flatten_pool(tokens.at[:, place].set(mean)))

        whole = against(tower.flatten_pool(tokens))
        places = jnp.arange(tokens.shape[1])
        return whole[:, None] - jax.lax.map(without, places).T
    pool = _pool(model)
    alone = jax.lax.map(lambda x: against(pool(x[:, None])), tokens.swapaxes(0, 1))
    return alone.T


def _pool(model: Multimodal) -> Any:
    """tokens -> the pooled vector, as the image tower makes it."""
    tower = model.image
    if tower.pool == "cls":
        return lambda x: x[:, 0] if tower.pooler is None else tower.pooler(x[:, 0])
    return {
        "map": lambda x: tower.attention_pool(x),
        "flatten": lambda x: tower.flatten_pool(x),
        "mean": mean_pool,
    }[tower.pool]


def _gradient(system: System, views: Views) -> Float[Array, "b n"]:
    """Weights of attention times their gradients, layer by layer; see `relevance`.

    Of the logit of matching, where a fusion is asked for it, and the map is what the text's tokens
    owe to the patches; else of the similarity of the embeddings.
    """
    model = views.model
    kinds: Kinds = {}

    def target(probes: Mapping[str, Sequence[Array]], fused: bool) -> tuple[Array, Any]:
        seen, weights = Views(model, views.batch, None, training=False), {}
        asked = {"image": seen.image, "text": seen.text} | ({"fusion": seen.fuse} if fused else {})
        for part, ask in asked.items():
            with recording(probes.get(part, ())) as found:
                ask()
            weights[part] = [each.weights for each in found]
            kinds[part] = [each.of_itself for each in found]
        if fused:
            return system.first("match").match(seen).sum(), weights
        return jnp.sum(seen.image_embedding().z * seen.text_embedding().z), weights

    spans, fused = None, model.fusion is not None and system.first("match") is not None
    shapes = jax.eval_shape(lambda: target({}, fused)[1])
    if fused:
        listed = [x.shape for x in shapes["fusion"]]
        spans = _spans(model, views, list(zip(listed, kinds["fusion"], strict=True)))
    if fused and not spans:
        del shapes["fusion"]
    probes = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    gradients, weights = jax.grad(target, has_aux=True)(probes, bool(spans))
    raised = {
        part: [positive(*pair) for pair in zip(weights[part], gradients[part], strict=True)]
        for part in weights
    }
    if spans:
        return _of_fusion(model, views, raised, kinds, spans)
    return _of_tower(model, views, raised["image"], kinds["image"])


def _of_tower(
    model: Multimodal, views: Views, raised: list[Array], kinds: list[bool]
) -> Float[Array, "b n"]:
    """What the pooled vector of the image owes to its tokens."""
    image, ztxt = views.image(), views.text_embedding().z
    own = [x for x, of_itself in zip(raised, kinds, strict=True) if of_itself]
    batch, count = own[0].shape[:2]
    found = relevance([Step(x, (0, count), (0, count)) for x in own], batch, count)

    def similarity(tokens: Array) -> Array:
        pooled = _pool(model)(tokens)
        return jnp.sum(model.project("image", image._replace(pooled=pooled)).z * ztxt)

    counts = (jax.grad(similarity)(image.tokens) * image.tokens).sum(-1)
    prefix = model.image.prefix
    others = jnp.zeros((batch, count - counts.shape[1]))  # registers, which no pool reads
    counts = jnp.concatenate([counts[:, :prefix], others, counts[:, prefix:]], axis=1)
    rows = _read(model, image, raised[-1][:, 0] if model.image.pool == "map" else None, counts)
    return jnp.einsum("bn,bnm->bm", rows, found)


def _spans(model: Multimodal, views: Views, shapes: Sequence[tuple[Shape, bool]]) -> Spans | None:
    """Of each attention of the fusion, the tokens that look and are looked at; None if not known.

    In one row of all tokens: the image's, the text's, and perhaps one that the fusion learned.
    """
    places, length = views.image().tokens.shape[1], views.text().mask.shape[1]
    image, text, found = (0, places), (places, places + length), []
    for (*_, queries, keys), of_itself in shapes:
        joint = queries - places - length in (0, 1) and len(model.fusion.fuses) == 2
        if of_itself and joint:
            found.append(((0, queries), (0, queries)))
        elif of_itself and queries in (places, length):
            found.append((text, text) if queries == length else (image, image))
        elif not of_itself and queries == length and keys >= places:
            found.append((text, image))
        elif not of_itself and queries == places and keys >= length:
            found.append((image, text))
        else:
            return None
    return None if places == length else found


def _of_fusion(
    model: Multimodal, views: Views, raised: Mapping[str, list[Array]], kinds: Kinds, spans: Spans
) -> Float[Array, "b n"]:
    """What the fused vector owes to the image's tokens, those without registers."""
    mask = views.text().mask
    (batch, length), places = mask.shape, views.image().tokens.shape[1]
    image, text = (0, places), (places, places + length)
    steps, count = [], places + length
    for part, span in (("image", image), ("text", text)):
        for x, of_itself in zip(raised[part], kinds[part], strict=True):
            if of_itself:
                x = _without_registers(x, model.image.prefix, places) if span == image else x
                steps.append(Step(x, span, span))
    for x, (queries, keys) in zip(raised["fusion"], spans, strict=True):
        if queries == keys and queries not in (image, text):
            learned = x.shape[1] - count
            x = jnp.roll(x, (-learned, -learned), (1, 2))  # it is the first one there
            count = x.shape[1]
        x = x[:, :, : keys[1] - keys[0]]  # a memory may have more, behind those of the tower
        steps.append(Step(x, queries, keys))
    found = relevance(steps, batch, count)
    if count > places + length:
        return found[:, -1, :places]
    if "text" not in model.fusion.fuses:
        return found[:, :places, :places].mean(1)
    rows = mask / jnp.maximum(mask.sum(1, keepdims=True), 1)
    return jnp.einsum("bl,bln->bn", rows, found[:, slice(*text), :places])


def _without_registers(x: Array, prefix: int, places: int) -> Array:
    kept = jnp.concatenate([jnp.arange(prefix), jnp.arange(x.shape[1])[prefix - places :]])
    return x[:, kept][:, :, kept]
