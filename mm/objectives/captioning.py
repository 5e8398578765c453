"""Captioning: each token of a text from those before it, and from what the decoder reads."""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from mm import registry
from mm.config import BadInput, Keep, Rate, Share
from mm.models.inputs import Read, texts
from mm.models.keys import bernoulli, uniform
from mm.models.multimodal import Multimodal
from mm.objectives.base import Loss, Objective
from mm.objectives.tokens import cross_entropy
from mm.objectives.views import Views, batch_key, image_view, view


@registry.register("objective", "captioning")
class Captioning(Objective):
    """-log p(token | tokens before it, memory), the mean over the real tokens of the global batch.

    Autoregressive by default (Cap: Tschannen et al. 2023; CoCa, eq. 4: Yu et al. 2022). `prefix`:
    of each text the first k tokens, k uniform from 0 to all but the last, see each other and carry
    no loss (SimVLM, eq. 3: Wang et al. 2022). `parallel` is the share of examples of which every
    token is predicted from mask tokens at once (CapPa, section 3.2, where it is 0.75); these see
    all places, so that not even the length of the text is told. A share needs the decoder's
    mask_token=True. `text` is the view that is predicted. `source` is the view of the text that the
    memory reads, if it reads one ("text", "fused"): another one, from the input, or the text would
    be copied. `image_keep` < 1 drops image tokens. `label_smoothing` is the share of the target
    that is spread over the vocabulary. `answers`: of a text that is an instruction and its answer
    only the tokens of the answer carry loss (Liu et al. 2023, section 4.2): those that
    batch["text_answer"] marks, as the op `tokenize_answer` writes it.

    Metrics: those of `cross_entropy`. Whether the image is used is what the evaluator `losses`
    tells with shuffled=True.
    """

    uses = ("decoder",)

    def __init__(
        self,
        *,
        prefix: bool = False,
        parallel: Share = 0.0,
        text: str = "clean",
        source: str | None = None,
        image_keep: Keep = 1.0,
        label_smoothing: Rate = 0.0,
        answers: bool = False,
        model: Multimodal,
        rngs: nnx.Rngs,
    ):
        model.need("captioning", "decoder")
        memory, length = model.decoder.memory, model.decoder.length
        if parallel and model.decoder.mask_token is None:
            raise BadInput(f"parallel={parallel}: set config.model.decoder.mask_token=True")
        if image_keep < 1 and memory not in ("image", "fused"):
            raise BadInput(f"image_keep={image_keep}: the decoder's memory={memory!r} has no image")
        if (memory in ("text", "fused")) != (source is not None) or source == text:
            raise BadInput(
                f"source={source!r}: the decoder's memory={memory!r} "
                + ("reads no text" if memory in ("image", "none") else f"must not read {text!r}")
                + ", name another view of the text if and only if the memory reads one"
            )
        if answers and (prefix or parallel):
            raise BadInput(
                "answers=True: the instruction is the prefix; leave out prefix, parallel"
            )
        self.text, self.source = view("text", text), view("text", source or text)
        self.image = image_view(image_keep)
        self.prefix, self.parallel, self.smoothing = prefix, parallel, label_smoothing
        self.length = length
        self.reads = texts(length, *map(batch_key, (self.text, self.source)))
        self.answer = f"{batch_key(self.text)}_answer" if answers else None
        if self.answer:
            self.reads += (Read(self.answer, (length,), "bool"),)

    def __call__(self, views: Views, rng: Array) -> Loss:
        key = batch_key(self.text)
        text, mask = views.batch[key], views.batch[f"{key}_mask"]
        how, scored = {}, mask
        if self.prefix:
            share = uniform(views.draws(f"{self.key} prefix"), ())
            how["reach"] = jnp.floor(share * mask.sum(1)).astype(jnp.int32)
            scored = mask & (jnp.arange(self.length) >= how["reach"][:, None])
        if self.answer:
            scored = mask & views.batch[self.answer]
        if self.parallel:
            hidden = bernoulli(views.draws(f"{self.key} parallel"), self.parallel, ())
            others = how.get("reach", jnp.zeros(len(text), jnp.int32))
            how |= {"hidden": hidden, "reach": jnp.where(hidden, self.length - 1, others)}
            scored = jnp.where(hidden[:, None], mask, scored)
        logits = views.decode(self.text, image=self.image, source=self.source, **how)
        return Loss(*cross_entropy(logits, text, scored, self.smoothing))
