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
    """Prints recall@1 of each pool, theirs and ours; 1 if they differ by a query or more."""
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
                pixels = images(pictures, return_tensors="pt")["pixel_values"]
                zimg.append(model.get_image_features(pixels).numpy())
                texts = words(
                    captions[some], padding="max_length", truncation=True, return_tensors="pt"
                )
                ids, mask = texts["input_ids"], texts["attention_mask"]
                ztxt.append(model.get_text_features(ids, mask).numpy())
        zimg, ztxt = np.concatenate(zimg), np.concatenate(ztxt)
        for name, scores in (("text_to_image", ztxt @ zimg.T), ("image_to_text", zimg @ ztxt.T)):
            own = np.diag(scores)[:, None]
            beaten = (scores >= own).sum(1) - 1
            theirs = float(np.mean(beaten < 1))
            ours = results[f"{folder.name}/{name}/recall@1"]
            print(f"{folder.name}/{name}/recall@1: transformers {theirs:.4%}, ours {ours:.4%}")
            differ |= abs(theirs - ours) * len(scores) >= 1
    return int(differ)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
