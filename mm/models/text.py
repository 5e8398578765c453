"""Text Transformer: bidirectional (as SigLIP) or causal (as CLIP); depth 0 is a bag of words."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Int

from mm import registry
from mm.models.encoder import AttentionPool, Encoded, Encoder, Remat, last_pool, mean_pool
from mm.models.layers import Activation, Dtype, Norm, check_rate, dropout, param
from mm.sharding.rules import constrain


@registry.register("text_encoder", "transformer")
class TextTransformer(nnx.Module):
    """Token ids [b, length] to tokens [b, length, width] and a pooled [b, width].

    Padding (False in the mask) is neither attended to nor pooled. `pool` is "last" (the last real
    token, where the tokenizer puts its end mark), "mean" or "map". At depth 0 there is no final
    norm either: the length of a word's embedding is its weight in the mean.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        length: int,
        width: int,
        depth: int,
        num_heads: int,
        mlp_dim: int | None = None,
        causal: bool = False,
        pool: Literal["last", "mean", "map"] = "last",
        position: Literal["learned", "none"] = "learned",
        embedding_std: float = 0.02,
        activation: Activation = "gelu",
        norm: Norm = "layer_norm",
        dropout: float = 0.0,
        remat: Remat = "none",
        unroll: int = 1,
        dtype: Dtype = "float32",
        rngs: nnx.Rngs,
    ):
        check_rate("dropout", dropout)
        self.vocab_size, self.length, self.width = vocab_size, length, width
        self.causal, self.pool, self.dropout_rate = causal, pool, dropout
        self.dtype = jnp.dtype(dtype)
        normal = jax.nn.initializers.normal
        self.embedding = param(rngs, normal(embedding_std), (vocab_size, width), ("vocab", "embed"))
        self.position_embedding = (
            param(rngs, normal(0.01), (length, width), ("tokens", "embed"))
            if position == "learned"
            else None
        )
        make = partial(
            Encoder,
            width=width,
            depth=depth,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
            activation=activation,
            norm_kind=norm,
            dropout_rate=dropout,
            remat=remat,
            unroll=unroll,
            dtype=dtype,
            rngs=rngs,
        )
        self.encoder = make() if depth else None
        self.pooled_width = width
        if pool == "map":
            self.attention_pool = AttentionPool(
                width,
                num_heads,
                mlp_dim or 4 * width,
                activation=activation,
                norm_kind=norm,
                dtype=dtype,
                rngs=rngs,
            )

    def __call__(
        self, text: Int[Array, "b l"], mask: Bool[Array, "b l"], *, rng: Array | None = None
    ) -> Encoded:
        keys = (None, None) if rng is None else jax.random.split(rng)
        x = self.embedding[...].astype(self.dtype)[text]
        if self.position_embedding is not None:
            x = x + self.position_embedding[...].astype(self.dtype)
        x = constrain(dropout(x, self.dropout_rate, keys[0]), "batch", "tokens", "width")
        seen = mask[:, None, None, :]
        if self.causal:
            seen = seen & jnp.tril(jnp.ones((self.length, self.length), bool))
        tokens = x if self.encoder is None else self.encoder(x, seen, keys[1])
        if self.pool == "map":
            pooled = self.attention_pool(tokens, mask)
        else:
            pooled = (mean_pool if self.pool == "mean" else last_pool)(tokens, mask)
        return Encoded(tokens, pooled, mask)
