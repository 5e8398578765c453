"""A small data set in which it is known what is bad and what is there twice."""

import io
import json

import numpy as np
from PIL import Image

ORIGINALS = 40
# number -> (why it goes, the original that it is made of); they follow the originals
PLANTED = {
    40: ("same file as another", 0),
    41: ("same pixels as another", 1),
    42: ("picture near another", 2),  # recompressed
    43: ("picture near another", 3),  # resized
    44: ("picture near another", 4),  # cropped a little
    45: ("rule size", 5),
    46: ("rule aspect", 6),
    47: ("rule caption", 7),
    48: ("picture cannot be decoded", 8),
    49: ("picture is cut off", 9),
    50: ("caption near another", 10),
}
CONTAMINATED = {11: 0, 12: 1}  # near pictures of the evaluation


def picture(seed, height=64, width=64):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = rng.uniform(-20, 20, (3, 12, 3))
    values = [sum(np.sin(a * x + b * y + c) for a, b, c in color) for color in waves]
    return Image.fromarray(np.clip(128 + 25 * np.stack(values, axis=-1), 0, 255).astype(np.uint8))


def encoded(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "PNG"} | options))
    return buffer.getvalue()


def caption(seed):
    words = "red old tall wooden bright quiet frozen paper metal round house tree lamp".split()
    rng = np.random.default_rng(seed + 1000)
    return " ".join([*rng.permutation(words)[:9], f"{seed * 7919 % 100003}"])


def examples():
    """(file ending, picture's bytes, caption) of each."""
    found = [("png", encoded(picture(seed)), caption(seed)) for seed in range(ORIGINALS)]
    made = {
        40: encoded(picture(0)),
        41: encoded(picture(1), compress_level=0),
        42: encoded(picture(2), format="JPEG", quality=75),
        43: encoded(picture(3).resize((50, 50), Image.BICUBIC)),
        44: encoded(picture(4).crop((1, 1, 63, 63))),
        45: encoded(picture(105, 64, 30)),
        46: encoded(picture(106, 40, 160)),
        47: encoded(picture(107)),
        48: b"no picture at all",
        49: encoded(picture(109))[:-400],
        50: encoded(picture(110)),
    }
    texts = {47: "x", 50: caption(10).upper() + "!"}
    for number, data in made.items():
        ending = "jpg" if number == 42 else "png"
        found.append((ending, data, texts.get(number, caption(number))))
    return found


def write(folder):
    """pairs.jsonl and evaluation.jsonl with their pictures."""
    folder.mkdir(exist_ok=True)
    lines = []
    for number, (ending, data, text) in enumerate(examples()):
        (folder / f"{number}.{ending}").write_bytes(data)
        lines.append({"image": f"{number}.{ending}", "caption": text, "rank": number})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    lines = []
    for original, number in CONTAMINATED.items():
        data = encoded(picture(original).resize((96, 96)), format="JPEG", quality=90)
        (folder / f"evaluation-{number}.jpg").write_bytes(data)
        lines.append({"image": f"evaluation-{number}.jpg"})
    (folder / "broken.jpg").write_bytes(b"broken")
    lines.append({"image": "broken.jpg"})
    (folder / "evaluation.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def config(folder, **changes):
    """All kinds of duplicates and three rules."""
    lines = {"name": "jsonl", "path": str(folder / "pairs.jsonl")}
    evaluation = {"name": "jsonl", "path": str(folder / "evaluation.jsonl")}
    return {
        "source": lines,
        "caption_key": "caption",
        "rules": {
            "size": {"name": "size", "min_side": 32},
            "aspect": {"name": "aspect", "max_ratio": 3.0},
            "caption": {"name": "caption_length", "min_characters": 3},
        },
        "duplicates": {"captions": True, "max_color_difference": 48},
        "decontaminate": {"sources": {"test": {"source": evaluation}}},
        "output": {"examples_per_shard": 8},
    } | changes
