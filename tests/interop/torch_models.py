"""Writes tiny models of every class with what we make of them, for the tests with torch.

python -m tests.interop.torch_models FOLDER
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mm.interop import hf, open_clip
from mm.objectives.views import Views
from tests.interop import folders
from tests.interop.folders import DUAL_ENCODERS, EXPRESSED, OPEN_CLIP
from tests.interop.test_hf import system

BATCH = 3


def main(folder: str) -> None:
    """`<folder>/<name>/` has the model, and expected.npz: inputs, and what ours gives."""
    cases = {name: case[:2] for name, case in EXPRESSED.items()}
    cases |= {f"dual_encoder_{name}": case for name, case in DUAL_ENCODERS.items()}
    cases |= {f"open_clip_{name}": case for name, case in OPEN_CLIP.items()}
    for name, (model, objectives) in cases.items():
        bundle = folders.bundle(model, objectives, seed=len(name))
        kind = open_clip if name.startswith("open_clip") else hf
        kind.write(bundle, f"{folder}/{name}")
        inputs = draw(model)
        with jax.default_matmul_precision("highest"):
            outputs = run(system(bundle), inputs)
        found = {f"input/{key}": x for key, x in inputs.items()}
        found |= {f"output/{key}": np.asarray(x) for key, x in outputs.items()}
        np.savez(Path(folder, name, "expected.npz"), **found)


def draw(model: dict) -> dict[str, np.ndarray]:
    """Pictures [b, 3, h, w], texts that end with 23, and which words are real."""
    rng, inputs = np.random.default_rng(0), {}
    if "image" in model:
        size = model["image"]["image_size"]
        sides = (size, size) if isinstance(size, int) else size
        inputs["image"] = rng.uniform(-1, 1, (BATCH, 3, *sides)).astype(np.float32)
    if "text" in model:
        lengths = np.array([6, 3, 5])[:, None]
        ids = rng.integers(3, 23, (BATCH, 6))
        ids = np.where(np.arange(6) == lengths - 1, 23, ids)
        inputs["text_mask"] = np.arange(6) < lengths
        inputs["text"] = np.where(inputs["text_mask"], ids, 0)
    return inputs


def run(built, inputs: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Of two towers the embeddings and logits, else the tokens and what is pooled."""
    batch = {key: jnp.asarray(x) for key, x in inputs.items()}
    if "image" in batch:
        batch["image"] = batch["image"].transpose(0, 2, 3, 1)
    model, views = built.model, Views(built.model, batch, None)
    if model.image is None:
        encoded = views.text()
        found = dict(tokens=encoded.tokens, pooled=encoded.pooled)
        if "masked_text" in built.objectives:
            head = built.objectives["masked_text"].head
            return dict(logits=head(encoded.tokens, model.text.embedding[...]).whole())
        return found
    if model.text is None:
        return dict(tokens=views.image().tokens, pooled=views.image().pooled)
    if "matching" in built.objectives:
        cosines = views.image_embedding().z @ views.text_embedding().z.T
        matches = built.objectives["matching"].head(views.fuse().pooled)
        return dict(cosines=cosines, matches=matches)
    zimg, ztxt = views.image_embedding().z, views.text_embedding().z
    objective = built.objectives["contrastive"]
    logits = jnp.exp(jnp.minimum(objective.log_scale[...], jnp.log(objective.max_scale)))
    logits = logits * zimg @ ztxt.T
    if objective.bias is not None:
        logits = logits + objective.bias[...]
    return dict(image=zimg, text=ztxt, logits=logits)


if __name__ == "__main__":
    main(sys.argv[1])
