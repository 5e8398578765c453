"""Makes quadruples of the `emoji` data set: `python -m data.builders.quadruples`.

Two drawings in one picture, "apple left of dog" or "apple above dog", and the same with both places
changed: two pictures and two captions of the same words, as Winoground has them. A line of
quadruples.jsonl has image_0, image_1, caption_0 and caption_1.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data.sources import Source, open_source
from data.sources.pictures import decode
from mm.config import BadInput

_RELATIONS = ("left of", "above")
_WORDS = 2  # a label has at most so many, so that captions stay short


def build(source: Source, output: Path, count: int, seed: int = 0) -> Path:
    """Writes `count` quadruples of pictures drawn from the source; returns the JSONL's path.

    The same count, seed and source give the same files. Raises BadInput where fewer than two
    pictures have short labels.
    """
    labels = [record["label"] for record in source.read(np.arange(len(source)), ("label",))]
    short = np.array([i for i, x in enumerate(labels) if len(x.split()) <= _WORDS and "," not in x])
    if len({labels[i] for i in short}) < 2:
        raise BadInput(f"expected labels of at most {_WORDS} words, found {len(short)}")
    output.mkdir(parents=True, exist_ok=True)
    rng, lines = np.random.default_rng(seed), []
    for number in range(count):
        while True:
            ids = rng.choice(short, 2, replace=False)
            if labels[ids[0]] != labels[ids[1]]:
                break
        pictures = [decode(record["image"]) for record in source.read(ids, ("image",))]
        names, relation = [labels[i] for i in ids], _RELATIONS[number % len(_RELATIONS)]
        line = {}
        for side, order in enumerate(((0, 1), (1, 0))):
            name = f"{number:05d}_{side}.png"
            placed = place(*(pictures[i] for i in order), relation)
            Image.fromarray(placed).save(output / name)
            line[f"image_{side}"] = name
            line[f"caption_{side}"] = f"{names[order[0]]} {relation} {names[order[1]]}"
        lines.append(json.dumps(line, ensure_ascii=False))
    path = output / "quadruples.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def place(
    one: UInt8[np.ndarray, "s s 3"], other: UInt8[np.ndarray, "s s 3"], relation: str
) -> UInt8[np.ndarray, "2s 2s 3"]:
    """Both in a white square of twice the side: one beside the other, or above it."""
    side = len(one)
    canvas = np.full((2 * side, 2 * side, 3), 255, np.uint8)
    middle = slice(side // 2, side // 2 + side)
    for start, picture in ((0, one), (side, other)):
        along = slice(start, start + side)
        canvas[(middle, along) if relation == "left of" else (along, middle)] = picture
    return canvas


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m data.builders.quadruples", description=__doc__)
    parser.add_argument("--data_dir", default=".data", help="where emoji is: %(default)s")
    parser.add_argument("--split", default="seen", help="of emoji: %(default)s")
    parser.add_argument("--output", help="a folder; default: quadruples in --data_dir")
    parser.add_argument("--count", type=int, default=400, help="quadruples: %(default)s")
    flags = parser.parse_args(arguments)
    output = Path(flags.output or Path(flags.data_dir) / "quadruples")
    try:
        if flags.count < 1:
            raise BadInput(f"--count={flags.count}: expected at least 1")
        spec = dict(name="tfds", dataset="emoji", split=flags.split, data_dir=flags.data_dir)
        path = build(open_source(spec, "emoji"), output, flags.count)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{flags.count:,} quadruples in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
