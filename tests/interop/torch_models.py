"""Writes tiny models of every class with what we make of them, for the tests with torch.

python -m tests.interop.torch_models FOLDER
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data.tokenizers import vocabularies
from mm.interop import facts, hf, open_clip
from mm.interop.bundle import Bundle
from mm.objectives.views import Views
from tests.interop import folders
from tests.interop.folders import DUAL_ENCODERS, EXPRESSED, OPEN_CLIP
from tests.interop.test_hf import system

BATCH = 3
TEXTS = ["red apples", "A Pear, an apple and a green house on a red one", "zebra"]
_PIECES = (
    "[PAD] [CLS] [UNK] [MASK] a an and apple green house of on one pear red the ##s , . ! - 1 2"
)
# How each reads its pictures, where that is not resize(12) to -1 .. 1.
_CLIP = 'resize({}, mode="shortest", method="bicubic")|center_crop(12)|normalize("clip")'
OPS = {
    "clip": _CLIP.format(14),
    "open_clip_clip": _CLIP.format(12),
    "siglip": 'resize(12, method="bicubic")',
    "blip": 'resize(12, method="bicubic")|normalize("clip")',
    "mae": 'resize(13, mode="shortest")|center_crop(12)|normalize("imagenet")',
    "dual_encoder_siglip": "resize((12, 8))",
    "open_clip_siglip_text": 'resize((12, 8), method="bicubic")',
}


def main(folder: str) -> None:
    """`<folder>/<name>/` has the model, and expected.npz: inputs, and what ours gives.

    Of pictures and texts that are not yet made into numbers, too.
    """
    cases = {name: case[:2] for name, case in EXPRESSED.items()}
    cases |= {f"dual_encoder_{name}": case for name, case in DUAL_ENCODERS.items()}
    cases |= {f"open_clip_{name}": case for name, case in OPEN_CLIP.items()}
    for name, (model, objectives) in cases.items():
        bundle = fed(folders.bundle(model, objectives, seed=len(name)), OPS.get(name, "resize(12)"))
        kind = open_clip if name.startswith("open_clip") else hf
        kind.write(bundle, f"{folder}/{name}")
        built, found = system(bundle), {f"picture/{i}": x for i, x in enumerate(pictures())}
        for start, inputs in (("", draw(model)), ("made_", made(bundle))):
            with jax.default_matmul_precision("highest"):
                outputs = run(built, inputs)
            found |= {f"{start}input/{key}": x for key, x in inputs.items()}
            found |= {f"{start}output/{key}": np.asarray(x) for key, x in outputs.items()}
        np.savez(Path(folder, name, "expected.npz"), texts=np.array(TEXTS), **found)


def fed(bundle: Bundle, ops: str) -> Bundle:
    """With a tokenizer of 24 tokens, and the facts of how pictures and texts are read."""
    steps = [f"decode|{ops}"] if "image" in bundle.model else []
    if "text" in bundle.model:
        bundle = bundle._replace(
            tokenizer_json=vocabularies.bert([*_PIECES.split(), "[SEP]"]).to_str()
        )
        steps.append('caption("caption")|tokenize("tokenizer.json", 6)')
    return facts.with_ops(bundle, "|".join(steps), "ops")


def pictures() -> Iterator[np.ndarray]:
    """Noise: what tells two ways to resize apart best."""
    rng = np.random.default_rng(1)
    for height, width in ((17, 23), (40, 31), (12, 12)):
        yield rng.integers(0, 256, (height, width, 3), np.uint8)


def made(bundle: Bundle) -> dict[str, np.ndarray]:
    """What our ops make of pictures and texts, in the shapes of `draw`."""
    feeding = facts.open_ops(bundle.manifest["preprocess"], bundle.tokenizer_json, "ops")
    inputs = {}
    if feeding.image is not None:
        image = feeding.images(list(pictures())).transpose(0, 3, 1, 2)
        inputs["image"] = image / np.float32(127.5) - 1 if image.dtype == np.uint8 else image
    if feeding.text is not None:
        inputs["text"], inputs["text_mask"] = feeding.texts(TEXTS)
    return inputs


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
