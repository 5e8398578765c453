"""Multi-head attention, and which kernel computes it where."""

import contextlib
import contextvars
import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Bool, Float

from mm.config import BadInput
from mm.kernels.short_attention import MAX_LENGTH, padded_length, short_attention
from mm.kernels.splash_attention import splash_attention
from mm.models.remat import counting
from mm.sharding.rules import active_mesh, active_rules, axis_size, platform

Kernel = Literal["auto", "einsum", "short", "splash", "cudnn"]
# True where a token may be seen: by every query of an example, or by each of its own.
Mask = Bool[Array, "b m"] | Bool[Array, "#b n m"]
Rotary = Float[Array, "n k"] | Float[Array, "b n k"]  # angles
_log = logging.getLogger("mm.attention")
_LANES = 128  # of a TPU's vector registers


class Weights(NamedTuple):
    """Who looked at what: of queries at keys, and whether those are of the same tokens."""

    weights: Float[Array, "b h n m"]
    of_itself: bool


class _Recorded(NamedTuple):
    found: list[Weights]
    probes: Sequence[Array]  # each as the weights that it is added to


_recorded: contextvars.ContextVar[_Recorded | None] = contextvars.ContextVar(
    "recorded", default=None
)


@contextlib.contextmanager
def recording(probes: Sequence[Array] = ()) -> Iterator[list[Weights]]:
    """Inside, each attention that is traced adds its weights to the list, in order.

    probes: zeros [b, h, n, m] that are added to the weights of the first, the second, ...: a
    gradient by one is a gradient by the weights. For looking at a model, not for training: stacks
    are not scanned, nothing is computed again, and no kernel is used, since those never hold the
    weights.
    """
    token = _recorded.set(_Recorded([], probes))
    try:
        yield _recorded.get().found
    finally:
        _recorded.reset(token)


def _record(weights: Float[Array, "b h n m"], of_itself: bool) -> Float[Array, "b h n m"]:
    """The weights to go on with."""
    if not is_recording():
        return weights
    found, probes = _recorded.get()
    if len(found) < len(probes):
        weights = weights + probes[len(found)]
    found.append(Weights(weights, of_itself))
    return weights


def is_recording() -> bool:
    """Whether weights are kept."""
    return _recorded.get() is not None


def rotate(
    x: Float[Array, "bn d"], rotary: Rotary, batch: int, num_heads: int
) -> Float[Array, "bn d"]:
    """Turns pairs (i, i + k/2) of each head by the angles [n, k/2] or [b, n, k/2] (RoFormer)."""
    angles = rotary if rotary.ndim == 3 else rotary[None]
    cosine, sine = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    halves = x.reshape(batch, -1, num_heads, 2, rotary.shape[-1])
    a, b = halves[..., 0, :], halves[..., 1, :]
    turned = jnp.stack([a * cosine - b * sine, a * sine + b * cosine], axis=-2)
    return turned.astype(x.dtype).reshape(x.shape)


def attend(
    q: Float[Array, "bn d"],
    k: Float[Array, "bm d"],
    v: Float[Array, "bm d"],
    mask: Mask | None = None,
    guide: Float[Array, "b m"] | None = None,
    *,
    batch: int,
    num_heads: int,
    causal: bool = False,
    kernel: Kernel = "auto",
    of_itself: bool = False,
) -> Float[Array, "bn d"]:
    """Attention with the heads side by side in d, softmax in float32.

    True in `mask`: may be seen, by all queries of an example, [b, m], or by each, [b or 1, n, m];
    causal: query i sees 0 .. i. `guide` is added to the scores of a key. With a mask by query or a
    guide, "auto" is two einsums. A query that may see nothing gets the mean of the values, or
    another finite vector. The result is the residual "attention". of_itself is told to `recording`.
    Raises BadInput when the kernel cannot run there.
    """
    queries, keys, head = len(q) // batch, len(k) // batch, q.shape[1] // num_heads
    by_query = guide is not None or (mask is not None and mask.ndim == 3)
    if by_query and kernel not in ("auto", "einsum"):
        raise BadInput(f"attention={kernel!r} takes no mask by query and no guide; use auto")
    if by_query or counting() or is_recording():
        kernel = "einsum"
    elif kernel == "auto" or queries == 1:  # a pooling probe is too small for any kernel
        kernel = choose(platform(), queries, keys, q.shape[1], q.dtype)
        sizes = q.shape[1], q.dtype
        if any(aligned_length(kernel, batch, n, *sizes) != n for n in (queries, keys)):
            kernel = "einsum"  # whoever called did not `align`
        _tell(kernel, platform(), queries, keys, head)
    if kernel == "splash":
        run = functools.partial(splash_attention, residual="attention")
        return _on_tpus(kernel, run, q, k, v, mask, batch, num_heads, causal)
    if kernel == "short":
        out = _on_tpus(kernel, short_attention, q, k, v, mask, batch, num_heads, causal)
        return checkpoint_name(out, "attention")
    heads = [x.reshape(batch, -1, num_heads, head) for x in (q, k, v)]
    if kernel == "einsum":
        weights = _record(find_weights(*heads[:2], mask, causal, guide), of_itself)
        out = _weigh(weights, heads[2])
    else:
        out = library_attention(*heads, mask, causal)
    return checkpoint_name(out.reshape(q.shape), "attention")


def aligned_length(kernel: Kernel, batch: int, length: int, width: int, dtype: DTypeLike) -> int:
    """How many tokens to fill up an example to, for the kernel that self-attention takes."""
    if kernel == "auto":
        kernel = choose(platform(), length, length, width, dtype)
    if kernel != "short" or is_recording():
        return length
    mesh, rules = active_mesh(), active_rules()
    parts = 1 if mesh is None else axis_size(mesh, rules.activations.get("batch"))
    return padded_length(batch // parts, length, width)


def choose(platform: str, queries: int, keys: int, width: int, dtype: DTypeLike) -> Kernel:
    """The kernel for such sizes.

    On a TPU one that holds an example's scores on the chip, up to MAX_LENGTH, and JAX's splash
    attention beyond. On a GPU cuDNN's, for the types that it knows. Two einsums on a CPU, and for a
    few queries, as in pooling.
    """
    if queries < 8:
        return "einsum"
    if platform == "gpu":
        return "cudnn" if dtype in (jnp.bfloat16, jnp.float16) else "einsum"
    if platform != "tpu":
        return "einsum"
    if max(queries, keys) > MAX_LENGTH:
        return "splash"
    return "short" if width % _LANES == 0 else "einsum"


@functools.cache
def _tell(kernel: str, platform: str, queries: int, keys: int, head: int) -> None:
    _log.info("%s on %s: %d queries, %d keys, heads of %d", kernel, platform, queries, keys, head)


def einsum_attention(
    q: Float[Array, "b n h k"],
    k: Float[Array, "b m h k"],
    v: Float[Array, "b m h k"],
    mask: Mask | None = None,
    causal: bool = False,
    guide: Float[Array, "b m"] | None = None,
) -> Float[Array, "b n h k"]:
    """By two einsums, which hold all scores [b, h, n, m]."""
    return _weigh(find_weights(q, k, mask, causal, guide), v)


def _weigh(weights: Float[Array, "b h n m"], v: Float[Array, "b m h k"]) -> Float[Array, "b n h k"]:
    return jnp.einsum("bhnm,bmhk->bnhk", weights.astype(v.dtype), v)


def find_weights(
    q: Float[Array, "b n h k"],
    k: Float[Array, "b m h k"],
    mask: Mask | None = None,
    causal: bool = False,
    guide: Float[Array, "b m"] | None = None,
) -> Float[Array, "b h n m"]:
    """softmax(q k / sqrt(d_head)) over what may be seen, in float32 at least."""
    scores = jnp.einsum("bnhk,bmhk->bhnm", q * (q.shape[-1] ** -0.5), k)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    if guide is not None:
        scores = scores + guide[:, None, None].astype(scores.dtype)
    if (seen := visible(scores.shape, mask, causal)) is not None:
        scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
    return jax.nn.softmax(scores, axis=-1)


def visible(shape: tuple[int, ...], mask: Array | None, causal: bool) -> Array | None:
    """Which scores [b, h, n, m] count, broadcast; None for all."""
    past = jnp.tril(jnp.ones(shape[2:], bool))[None, None] if causal else None
    if mask is None:
        return past
    seen = mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]
    return seen if past is None else seen & past


def library_attention(
    q: Float[Array, "b n h k"],
    k: Float[Array, "b m h k"],
    v: Float[Array, "b m h k"],
    mask: Bool[Array, "b m"] | None = None,
    causal: bool = False,
    implementation: str = "cudnn",
) -> Float[Array, "b n h k"]:
    """JAX's own: cuDNN's flash attention on a GPU."""
    seen = None if mask is None else mask[:, None, None, :]
    return jax.nn.dot_product_attention(
        q, k, v, mask=seen, is_causal=causal, implementation=implementation
    )


def _on_tpus(kernel, function, q, k, v, mask, batch, num_heads, causal):
    """The compiler does not split a Pallas kernel: each device runs it on its part."""
    if platform() != "tpu":
        raise BadInput(f"attention={kernel!r} runs on TPUs; use auto, einsum or cudnn")
    if kernel == "short" and max(len(q), len(k)) > batch * MAX_LENGTH:
        raise BadInput(f"attention='short' takes at most {MAX_LENGTH} tokens; use auto or splash")
    mesh, rules = active_mesh(), active_rules()
    arrays = (q, k, v) if mask is None else (q, k, v, mask)
    run = functools.partial(function, causal=causal)
    if mesh is None:
        return run(*arrays, batch=batch, num_heads=num_heads)
    rows, heads = rules.activations.get("batch"), rules.parameters.get("heads")
    if num_heads % axis_size(mesh, heads):
        heads = None  # they cannot be split over these axes
    sizes = dict(
        batch=batch // axis_size(mesh, rows), num_heads=num_heads // axis_size(mesh, heads)
    )
    spec, run = P(rows, heads), functools.partial(run, **sizes)
    specs = dict(in_specs=(spec, spec, spec, P(rows))[: len(arrays)], out_specs=spec)
    return jax.shard_map(run, mesh=mesh, check_vma=False, **specs)(*arrays)
