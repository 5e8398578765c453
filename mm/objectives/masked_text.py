"""Masked text (BERT): predict words from the others, and from the image if a fusion brings it."""

import dataclasses
from functools import partial
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Int, Key

from mm import registry
from mm.config import BadInput, Keep, Part, Rate, Share
from mm.models.inputs import Read
from mm.models.keys import Keys
from mm.models.layers import Activation
from mm.models.multimodal import Multimodal
from mm.objectives.base import Loss, Objective
from mm.objectives.tokens import TokenHead, predict
from mm.objectives.views import IMAGE, View, Views, batch_key, image_view, mask_reads, view

_LONGEST_WORD = 16  # tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextMask:
    """Which words are masked, and how (Devlin et al. 2019, section 3.1).

    Of an example's n tokens that are neither padding nor marks, round(ratio * n) are chosen, at
    least one; what tells them is `text_words` of `tokenize(..., words=True)`. Of the chosen a share
    `random` become a random id, a share `stay` stay, and the others become the mask. `whole_word`:
    all tokens of a word or none, words in random order as long as they fit that number, and the
    first in any case. `mask_id`: the id of the mask in the vocabulary; None: the text tower's own
    mask token.
    """

    ratio: Part = 0.15
    whole_word: bool = False
    mask_id: int | None = None
    random: Share = 0.1
    stay: Share = 0.1

    def reads(self, model: Multimodal) -> tuple[Read, ...]:
        """Which word of the text each token is of, -1 for padding and marks.

        Raises BadInput for what cannot be done with the model's text tower.
        """
        if self.random + self.stay > 1:
            raise BadInput(f"random={self.random}, stay={self.stay}: expected 1 together at most")
        if self.mask_id is None and model.text.mask_token is None:
            raise BadInput(
                "mask_id=None: config.model.text has no mask token; set its mask_token=True, or "
                "mask_id to that of the vocabulary"
            )
        if self.mask_id is not None and not 0 <= self.mask_id < model.text.vocab_size:
            raise BadInput(
                f"mask_id={self.mask_id}: expected less than config.model.text.vocab_size="
                f"{model.text.vocab_size}"
            )

        return (Read("text_words", (model.text.length,), "int32"),)

    def counts(self, length: int) -> Int[np.ndarray, "n"]:
        """How many are chosen of 0 .. length tokens."""
        n = np.arange(length + 1)
        return np.minimum(n, np.maximum(1, np.round(self.ratio * n))).astype(np.int32)

    def most(self, length: int) -> int:
        """How many are predicted at most: of a first word of more than 16 tokens, the first 16."""
        most = int(self.counts(length)[-1])
        return max(most, min(length, _LONGEST_WORD)) if self.whole_word else most

    @property
    def name(self) -> str:
        """The view's: masks of the same keys are the same."""
        return "_".join(map(str, ("masked", *dataclasses.astuple(self))))

    def view(self, views: Views) -> View:
        """The masked text; its array `..._chosen` is True where a word is to be predicted."""
        masked = view("text", self.name)
        name = batch_key(masked)
        batch, vocab_size = views.batch, views.model.text.vocab_size

        def make(keys: Keys) -> dict[str, Array]:
            mask_id = vocab_size if self.mask_id is None else self.mask_id
            choose = partial(_choose, self.counts(batch["text"].shape[1]), self.whole_word)
            replace = partial(_replace, vocab_size, mask_id, self.random, self.stay)
            split = jax.vmap(jax.random.split)(keys)
            chosen = jax.vmap(choose)(split[:, 0], batch["text_words"])
            text = jax.vmap(replace)(split[:, 1], batch["text"], chosen)
            return {name: text, f"{name}_mask": batch["text_mask"], f"{name}_chosen": chosen}

        views.derive(name, make)
        return masked


def _choose(
    counts: Int[np.ndarray, "n"], whole_word: bool, key: Key[Array, ""], words: Int[Array, "l"]
) -> Bool[Array, "l"]:
    """The tokens of one example to predict; -1 in `words` is never chosen."""
    length, real = len(words), words >= 0
    units = jnp.where(real, words if whole_word else jnp.arange(length), length)
    sizes = jnp.zeros(length, jnp.int32).at[units].add(1, mode="drop")
    order = jnp.argsort(jnp.where(sizes > 0, jax.random.uniform(key, (length,)), 1))
    fits = jnp.cumsum(sizes[order]) <= jnp.asarray(counts)[real.sum()]
    taken = jnp.zeros(length, bool).at[order].set(fits.at[0].set(True))
    return taken.at[units].get(mode="fill", fill_value=False)


def _replace(
    vocab_size: int,
    mask_id: int,
    share_random: float,
    share_stay: float,
    key: Key[Array, ""],
    text: Int[Array, "l"],
    chosen: Bool[Array, "l"],
) -> Int[Array, "l"]:
    """The chosen become the mask, but for the shares that become a random id or stay."""
    how, random = jax.random.split(key)
    u = jax.random.uniform(how, text.shape)
    words = jax.random.randint(random, text.shape, 0, vocab_size, text.dtype)
    unmasked = jnp.where(u < 1 - share_stay, words, text)
    new = jnp.where(u < 1 - share_stay - share_random, mask_id, unmasked)
    return jnp.where(chosen, new, text)


@registry.register("objective", "masked_text")
class MaskedText(Objective):
    """Cross-entropy of the masked words, the mean over those of the global batch.

    The other keys are those of `TextMask`. `context` "none" predicts from the text tower's tokens
    (BERT), "fused" from those of the fusion with the image (ViLBERT, ALBEF), of which a share
    `image_keep` of patches is seen (M3AE) and `image_replace` hidden, or those of the input's
    `patch_mask` (FLAVA). The head ends in the text tower's word embeddings.
    """

    def __init__(
        self,
        *,
        context: Literal["none", "fused"] = "none",
        image_keep: Keep = 1.0,
        image_replace: Rate | Literal["patch_mask"] = 0.0,
        activation: Activation = "gelu",
        norm_epsilon: float = 1e-6,
        model: Multimodal,
        rngs: nnx.Rngs,
        **mask: Annotated[Any, TextMask],
    ):
        model.need("masked_text", *["fusion.text"] if context == "fused" else ["text"])
        self.uses = ("fusion",) if context == "fused" else ()
        self.mask, self.context, self.length = TextMask(**mask), context, model.text.length
        self.image = image_view(image_keep, image_replace)
        if self.image != IMAGE and context == "none":
            given = f"image_keep={image_keep}, image_replace={image_replace}"
            raise BadInput(f"{given}: no image is read; set context='fused' or leave it away")
        self.reads = self.mask.reads(model) + mask_reads(self.image, model)
        read = "fusion" if context == "fused" else "text"
        tokens = getattr(model, read)
        if getattr(tokens, "causal", False):
            raise BadInput(
                f"config.model.{read} is causal: a hidden word would be told from those before it "
                "alone; set causal=False"
            )
        self.head = TokenHead(
            tokens.width,
            model.text.vocab_size,
            table_width=model.text.width,
            activation=activation,
            norm_epsilon=norm_epsilon,
            dtype=model.text.dtype.name,
            rngs=rngs,
        )

    def __call__(self, views: Views, rng: Array) -> Loss:
        text = self.mask.view(views)
        chosen = views.batch[f"{batch_key(text)}_chosen"]
        if self.context == "fused":
            tokens = views.fuse(self.image, text).text
        else:
            tokens = views.encode(text).tokens
        count, table = self.mask.most(self.length), views.model.text.embedding[...]
        loss, metrics = predict(self.head, tokens, views.batch["text"], chosen, count, table)
        words = views.batch["text_words"] >= 0
        metrics["share_masked"] = chosen.sum() / jnp.maximum(words.sum(), 1)
        return Loss(loss, jax.lax.stop_gradient(metrics))
