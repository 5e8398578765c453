"""The other half of bench/hf_retrieval.py: torch and transformers, nothing of ours."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

BATCH = 128


def main(model_folder: str, pool: str) -> int:
    """Prints recall@1 of each pool, theirs and ours, and the largest difference of a number of the
    embeddings; 1 if a recall differs by a query or more."""
    model = AutoModel.from_pretrained(model_folder, trust_remote_code=True).eval()
    images = AutoImageProcessor.from_pretrained(model_folder, trust_remote_code=True)
    words = AutoTokenizer.from_pretrained(model_folder, trust_remote_code=True)
    results = json.loads(Path(pool, "results.json").read_text())
    differ = False
    for folder in sorted(path for path in Path(pool).iterdir() if path.is_dir()):
        captions = json.loads((folder / "captions.json").read_text())
        paths = sorted(folder.glob("*.png"))
        zimg, ztxt = [], []
        with torch.no_grad():
            for start in range(0, len(paths), BATCH):
                some = slice(start, start + BATCH)
                pictures = [Image.open(path).convert("RGB") for path in paths[some]]
                pixels = images(pictures, return_tensors="pt")
                texts = words(
                    captions[some], padding="max_length", truncation=True, return_tensors="pt"
                )
                out = model(**pixels, **texts)
                zimg.append(out.image_embeds.numpy())
                ztxt.append(out.text_embeds.numpy())
        zimg, ztxt = np.concatenate(zimg), np.concatenate(ztxt)
        ours = np.load(folder / "ours.npz")
        apart = max(np.abs(zimg - ours["image"]).max(), np.abs(ztxt - ours["text"]).max())
        print(f"{folder.name}: the largest difference of a number is {apart:.1e}")
        for name, scores in (("text_to_image", ztxt @ zimg.T), ("image_to_text", zimg @ ztxt.T)):
            own = np.diag(scores)[:, None]
            beaten = (scores >= own).sum(1) - 1
            theirs = float(np.mean(beaten < 1))
            known = results[f"{folder.name}/{name}/recall@1"]
            print(f"{folder.name}/{name}/recall@1: transformers {theirs:.4%}, ours {known:.4%}")
            differ |= abs(theirs - known) * len(scores) > 0.5
    return int(differ)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
