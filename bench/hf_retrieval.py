"""Does transformers find what we find? Retrieval of an exported run, by its folder alone.

  python main.py --mode=export --format=hf --workdir=RUN --output=FOLDER
  python -m bench.hf_retrieval --workdir=RUN --output=POOL      # here: the pictures and captions
  that/python bench/hf_retrieval_torch.py FOLDER POOL           # with requirements-torch.txt

The second writes the pools of the run's retrieval evaluations, our embeddings of them, and our
results; the third, which knows torch, transformers and numpy alone, embeds them again and prints
both recalls, and how far the embeddings are apart.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from data.preprocess.parse import parse
from data.sources import open_source
from mm import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="a finished run")
    parser.add_argument("--output", required=True, help="a new folder")
    flags = parser.parse_args()
    config = json.loads(Path(flags.workdir, "config.json").read_text())
    results = json.loads(Path(flags.workdir, "results.json").read_text())
    model, output = load(flags.workdir), Path(flags.output)
    for name, spec in config["evals"].items():
        if spec["name"] != "retrieval":
            continue
        # As stored: a cache would give pixels.
        source = open_source({k: v for k, v in spec["source"].items() if k != "cache"}, name)
        ops = parse(spec["preprocess"], where=name, data_dir=spec["source"].get("data_dir"))
        picture, caption = ops.field_of("decode"), ops.field_of("caption")
        folder = output / name
        folder.mkdir(parents=True)
        captions, pictures = [], []
        records = source.read(np.arange(len(source)), (picture, caption))
        for i, record in enumerate(records):
            (folder / f"{i:06d}.png").write_bytes(record[picture])
            captions.append(record[caption])
            pictures.append(record[picture])
        (folder / "captions.json").write_text(json.dumps(captions))
        ours = {"image": model.embed_image(pictures), "text": model.embed_text(captions)}
        np.savez(folder / "ours.npz", **ours)
        print(f"{folder}: {len(captions)} pairs")
    (output / "results.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
