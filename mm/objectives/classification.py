"""Classification: which classes an image, a text, or the two together are of."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jaxtyping import Float

from mm import registry
from mm.config import BadInput, Positive, Rate
from mm.models.inputs import Read
from mm.models.multimodal import Multimodal
from mm.objectives.base import Loss, Objective
from mm.objectives.heads import Of, PooledHead
from mm.objectives.views import Views


@registry.register("objective", "classification")
class Classification(Objective):
    """Cross-entropy of the class, from the pooled vector of a tower or of the fusion.

    "softmax": one of `num_classes`, batch["label"], int32 [b]; of the target a share
    `label_smoothing` is spread over all classes (Szegedy et al. 2016, section 7). "sigmoid": any
    number of them, batch["labels"], float32 [b, c] from 0 to 1, each a binary cross-entropy, their
    sum (Beyer et al. 2020, section 5); of each target the share is 1/2. With of="fused" and a
    question as text it is visual question answering as classification (Antol et al. 2015, section
    4); with "sigmoid" and soft labels the one of Teney et al. 2018 (section 3.4).

    Metrics: accuracy, the most likely class being the label; of "sigmoid" the share of examples for
    which every label is told, at 1/2.
    """

    def __init__(
        self,
        *,
        num_classes: Positive,
        of: Of = "image",
        kind: Literal["softmax", "sigmoid"] = "softmax",
        label_smoothing: Rate = 0.0,
        model: Multimodal,
        rngs: nnx.Rngs,
    ):
        if kind == "softmax" and num_classes < 2:
            raise BadInput(f"num_classes={num_classes}: expected 2 at least for kind='softmax'")
        self.head = PooledHead("classification", of, num_classes, model=model, rngs=rngs)
        self.uses = self.head.uses
        self.num_classes, self.kind, self.smoothing = num_classes, kind, label_smoothing
        one = kind == "softmax"
        labels = Read("label", (), "int32") if one else Read("labels", (num_classes,), "float32")
        self.label, self.reads = labels.name, (labels,)

    def __call__(self, views: Views, rng: Array) -> Loss:
        logits, labels = self.classify(views), views.batch[self.label]
        if self.kind == "softmax":
            targets = jax.nn.one_hot(labels, self.num_classes)
            targets = optax.smooth_labels(targets, self.smoothing)
            losses = optax.softmax_cross_entropy(logits, targets)
            hits = logits.argmax(-1) == labels
        else:
            targets = (1 - self.smoothing) * labels + self.smoothing / 2
            losses = optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1)
            hits = ((logits > 0) == (labels > 0.5)).all(-1)
        return Loss(losses.mean(), {"accuracy": jax.lax.stop_gradient(hits.mean())})

    def classify(self, views: Views) -> Float[Array, "b c"]:
        """Logits, as the evaluator reads them."""
        return self.head(views).astype(jnp.float32)
