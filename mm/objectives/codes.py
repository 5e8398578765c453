"""Tokenizers of image patches that need no download: the targets of masked patches.

Each takes features of patches, and a key that is the same on all devices, and returns their codes.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int, Key

from mm.models.multimodal import normalize
from mm.objectives.base import Buffer

_EXACT = jax.lax.Precision.HIGHEST  # on a TPU, too: a rounded product would be another code


class RandomProjection(nnx.Module):
    """The nearest of random codes to a random projection, both of length 1; nothing is learned.

    argmin_i || c_i / |c_i| - A x / |A x| || (BEST-RQ: Chiu et al. 2022, eq. 1), A Xavier uniform
    and c normal, of `code_dim` numbers.
    """

    def __init__(self, features: int, num_codes: int, *, code_dim: int = 16, rngs: nnx.Rngs):
        xavier, normal = jax.nn.initializers.xavier_uniform(), jax.random.normal
        self.projection = Buffer(xavier(rngs.params(), (features, code_dim), jnp.float32))
        self.codebook = Buffer(normalize(normal(rngs.params(), (num_codes, code_dim))))

    def __call__(self, features: Float[Array, "b n f"], key: Key[Array, ""]) -> Int[Array, "b n"]:
        projected = jnp.matmul(features, self.projection[...], precision=_EXACT)
        # The length of what is projected changes no order of its products with unit codes.
        products = jnp.matmul(projected, self.codebook[...].T, precision=_EXACT)
        return products.argmax(-1)


class KMeans(nnx.Module):
    """The nearest of codes that follow the means of what they stand for (VQ-VAE).

    N_i = decay N_i + (1 - decay) n_i, m_i = decay m_i + (1 - decay) sum x, e_i = m_i / N_i over the
    global batch (van den Oord et al. 2017, appendix A.1). A code is dead when N_i is less than
    `restart` of an equal share of the patches. Then it becomes a patch of the batch (Dhariwal et
    al. 2020, section 3.1), drawn by its squared distance from its own code (k-means++), at most one
    of the patches of any code: of many that are alike no second code is made. So all begin, twice
    as many with each of the first steps.
    """

    def __init__(
        self, features: int, num_codes: int, *, decay: float = 0.99, restart: float = 0.01
    ):
        self.codebook = Buffer(jnp.zeros((num_codes, features)))
        self.counts = Buffer(jnp.zeros(num_codes))
        self.decay, self.restart = decay, restart

    def __call__(self, features: Float[Array, "b n f"], key: Key[Array, ""]) -> Int[Array, "b n"]:
        book, counts = self.codebook[...], self.counts[...]
        products = jnp.matmul(features, book.T, precision=_EXACT)
        found = (products - jnp.square(book).sum(-1) / 2).argmax(-1)
        # A matmul, not a scatter: each device sums up its own rows.
        members = jax.nn.one_hot(found, len(counts), dtype=features.dtype)
        sums = jnp.einsum("bnk,bnf->kf", members, features, precision=_EXACT)
        new = self.decay * counts + (1 - self.decay) * members.sum((0, 1))
        sums = self.decay * counts[:, None] * book + (1 - self.decay) * sums
        means = jnp.where(new[:, None] > 0, sums / jnp.maximum(new, 1e-30)[:, None], book)
        distance = jnp.square(features - means[found]).sum(-1)
        rounding = 1e-6 * jnp.square(features).sum(-1)
        until = jnp.cumsum(jnp.where(distance > rounding, distance, 0).reshape(-1))
        drawn = jax.random.uniform(key, counts.shape) * until[-1]
        place = jnp.searchsorted(until, drawn, side="right")
        own, codes = found.reshape(-1)[place], jnp.arange(len(counts))
        least = self.restart * found.size / len(counts)
        dead = (new < least) & (until[-1] > 0)
        first = jnp.full_like(codes, len(codes)).at[own].min(jnp.where(dead, codes, len(codes)))
        born = dead & (first[own] == codes)
        patches = features.reshape(-1, features.shape[-1])
        self.codebook[...] = jnp.where(born[:, None], patches[place], means)
        self.counts[...] = jnp.where(born, 2 * least, new)
        return found
