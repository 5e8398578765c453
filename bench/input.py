"""How many pictures a second does the input prepare, beside torch's DataLoader with Pillow?

  python -m venv VENV
  VENV/bin/pip install torch==2.13.0 pillow==13.0.0 tokenizers==0.23.3 numpy==2.4.6
  python -m bench.input --peer_python=VENV/bin/python
  python -m bench.input --parts          # the ways to decode and to resize, one by one

Both sides read the same JPEG files (page-cached), decode, crop at random (0.08 .. 1 of the area),
resize to 224 with antialiasing, flip, normalize and tokenize; with two processes there, two threads
here. They take turns, a stretch of batches of a running iterator each; the medians are printed.
Without --peer_python only ours runs.
"""

import argparse
import contextlib
import io
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from data.heap import keep_freed_memory
from data.iterator import HostBatch
from data.loader import host_batches, train_makers
from data.preprocess.parse import parse
from data.preprocess.sampling import Filter, sampler
from data.profile import Profile
from data.sources import open_source, pictures
from data.tokenizers.train import train

PICTURES, HEIGHT, WIDTH, QUALITY = 1000, 375, 500, 90
SIZE, LENGTH, BATCH, WORKERS = 224, 32, 64, 2
SKIPPED, TIMED = 10, 60  # batches: what was ready before and a start, then what counts
OPS = f"decode|random_resized_crop({SIZE}, scale=(0.08, 1))|flip"
PEER = Path(__file__).with_name("input_torch.py")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.input")
    parser.add_argument("--peer_python", help="a Python with torch, pillow and tokenizers")
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_pictures(Path(folder))
        if flags.parts:
            parts(Path(folder))
        else:
            compare(Path(folder), flags.peer_python, flags.rounds)


def make_pictures(folder: Path) -> None:
    """Smooth noise at several scales, as rough as a photo: about 60 kB each; and captions."""
    rng = np.random.default_rng(0)
    lines = []
    words = ["".join(rng.choice(list("abcdefghij"), 5)) for _ in range(2000)]
    for number in range(PICTURES):
        name = f"{number}.jpg"
        Image.fromarray(photo(rng)).save(folder / name, quality=QUALITY)
        lines.append({"image": name, "caption": " ".join(rng.choice(words, 12))})
    (folder / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "tokenizer.json").write_text(train([line["caption"] for line in lines], 4096))


def photo(rng: np.random.Generator) -> np.ndarray:
    picture = np.full((HEIGHT, WIDTH, 3), 128, np.float32)
    for level in range(1, 9):
        coarse = rng.normal(0, 90 * 2 ** (-0.75 * level), (2**level, 2**level, 3))
        coarse = 0.35 * coarse + coarse.mean(axis=2, keepdims=True)  # mostly grey, as photos are
        picture += cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    picture += rng.normal(0, 6, (HEIGHT, WIDTH, 1))
    return np.clip(picture, 0, 255).astype(np.uint8)


def compare(folder: Path, peer_python: str | None, rounds: int) -> None:
    kinds = {"normalized, float32": '|normalize("imagenet")', "uint8": ""}
    measured: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with contextlib.ExitStack() as stack:
        sides: dict[tuple[str, str], Callable[[], tuple[float, float]]] = {}
        for kind, ending in kinds.items():
            # Left open, its threads could outlive the interpreter.
            batches = stack.enter_context(contextlib.closing(ours(folder, OPS + ending)))
            sides["ours", kind] = lambda batches=batches: seconds_a_picture(batches)
            if peer_python:
                sides["torch", kind] = stack.enter_context(peer(peer_python, folder, kind))
        if not peer_python:
            print("no --peer_python: torch's side is left out")
        for _ in range(rounds):
            for name, side in sides.items():
                measured.setdefault(name, []).append(side())
    print("| pictures | side | pictures a second | CPU ms a picture |\n|---|---|---|---|")
    for (side, kind), times in measured.items():
        seconds, cpu = map(statistics.median, zip(*times, strict=True))
        print(f"| {kind} | {side} | {1 / seconds:,.0f} | {cpu * 1e3:.2f} |")
        if side == "torch":
            pairs = zip(measured["ours", kind], times, strict=True)
            ratios = [[b / a for a, b in zip(*pair, strict=True)] for pair in pairs]
            speed, work = map(statistics.median, zip(*ratios, strict=True))
            print(f"| {kind} | ratio | {speed:.2f} | {work:.2f} |")


def ours(folder: Path, ops: str) -> Iterator[HostBatch]:
    """Batches of our loader, as they leave it for the devices."""
    source = open_source({"name": "jsonl", "path": str(folder / "lines.jsonl")}, "source")
    tokenize = f'|caption("caption")|tokenize({str(folder / "tokenizer.json")!r}, {LENGTH})'
    ops = parse(ops + tokenize, where="ops")
    [(_, maker, _)] = train_makers(source, ops, global_batch_size=BATCH, seed=0)
    profile = Profile(WORKERS)
    return host_batches(maker, np.arange(BATCH), profile=profile, num_workers=WORKERS)


def seconds_a_picture(batches: Iterator) -> tuple[float, float]:
    """And those of CPU time: of TIMED batches of a running iterator, after what was ready."""
    for _ in itertools.islice(batches, SKIPPED):
        pass
    begin, worked = time.perf_counter(), time.process_time()
    for _ in itertools.islice(batches, TIMED):
        pass
    times = time.perf_counter() - begin, time.process_time() - worked
    return times[0] / (TIMED * BATCH), times[1] / (TIMED * BATCH)


@contextlib.contextmanager
def peer(python: str, folder: Path, kind: str) -> Iterator[Callable[[], tuple[float, float]]]:
    """torch's side in a process of its own; it works only when asked."""
    settings = dict(
        folder=str(folder), size=SIZE, length=LENGTH, batch_size=BATCH, num_workers=WORKERS,
        skipped=SKIPPED, timed=TIMED, as_float=kind != "uint8",
    )  # fmt: skip
    process = subprocess.Popen(
        [python, str(PEER), json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def measure() -> tuple[float, float]:
        print("go", file=process.stdin, flush=True)
        answer = process.stdout.readline()
        if not answer:
            sys.exit(f"error: {python} {PEER} ended; see its message above")
        seconds, cpu = map(float, answer.split())
        return seconds, cpu

    try:
        yield measure
    finally:
        process.stdin.close()
        process.wait()


def parts(folder: Path) -> None:
    """Milliseconds of one thread and distance to Pillow of each way to do a part."""
    keep_freed_memory()  # as the loader does
    encoded = [(folder / f"{i}.jpg").read_bytes() for i in range(100)]
    rng = np.random.default_rng(1)
    share = np.sqrt(rng.uniform(0.08, 1, (len(encoded), 2)))
    start = rng.uniform(0, 1, share.shape) * (1 - share)
    boxes = np.concatenate([start, start + share], axis=1).astype(np.float32)
    corners = boxes * np.array([HEIGHT, WIDTH] * 2, np.float32)
    images = [np.asarray(Image.open(io.BytesIO(x)).convert("RGB")) for x in encoded]
    reference = [by_pillow(image, corner) for image, corner in zip(images, corners, strict=True)]

    def pixels(i: int) -> np.ndarray:
        return np.frombuffer(encoded[i], np.uint8)

    def crop(i: int) -> np.ndarray:
        top, left, bottom, right = corners[i].astype(int).tolist()
        return pictures.read(encoded[i]).decode(top, left, bottom + 1, right + 1)

    def drawn(picture: object, i: int, filter: Filter) -> np.ndarray:
        out = np.empty((SIZE, SIZE, 3), np.uint8)
        sampler([picture], boxes[i : i + 1], (SIZE, SIZE), filter, None)(0, out)
        return out

    decoders = {
        "Pillow": lambda i: np.asarray(Image.open(io.BytesIO(encoded[i])).convert("RGB")),
        "tf.io.decode_image (before)": lambda i: pictures.tf.io.decode_image(encoded[i]).numpy(),
        "tf.io.decode_jpeg, accurate": lambda i: pictures.tf.io.decode_jpeg(
            encoded[i], channels=3, dct_method="INTEGER_ACCURATE"
        ).numpy(),
        "OpenCV": lambda i: cv2.imdecode(pixels(i), cv2.IMREAD_COLOR_RGB),
        "ours, what the crop needs": crop,
    }
    resizers = {
        "Pillow": lambda i: by_pillow(images[i], corners[i]),
        "warpAffine (before)": lambda i: drawn(images[i], i, Filter(antialias=False)),
        "INTER_AREA of whole pixels": lambda i: by_area(images[i], corners[i]),
        "two matrix products": lambda i: by_matrices(images[i], corners[i]),
        "blur and warpAffine (ours)": lambda i: drawn(images[i], i, Filter()),
    }
    both = {
        "Pillow": lambda i: by_pillow(decoders["Pillow"](i), corners[i]),
        "ours": lambda i: drawn(pictures.read(encoded[i]), i, Filter()),
    }
    print("| part | way | ms | mean difference to Pillow, of 255 |\n" + "|---" * 4)
    for part, ways, expected in (
        ("decode", decoders, images),
        ("resize", resizers, reference),
        ("decode and resize", both, reference),
    ):
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(5):
            for way, function in ways.items():
                begin = time.thread_time()
                found = [function(i) for i in range(len(encoded))]
                times[way].append((time.thread_time() - begin) / len(encoded) * 1e3)
                if found[0].shape == expected[0].shape:
                    gap = np.mean(np.abs(np.float32(found) - np.float32(expected)))
                    ways[way].__dict__["gap"] = f"{gap:.2f}"
        for way, function in ways.items():
            gap = function.__dict__.get("gap", "")
            print(f"| {part} | {way} | {statistics.median(times[way]):.2f} | {gap} |")


def by_pillow(image: np.ndarray, corner: np.ndarray) -> np.ndarray:
    box = tuple(corner[[1, 0, 3, 2]].tolist())
    picture = Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR, box)
    return np.asarray(picture)


def by_area(image: np.ndarray, corner: np.ndarray) -> np.ndarray:
    top, left, bottom, right = np.round(corner).astype(int)
    part = image[top:bottom, left:right]
    return cv2.resize(part, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def by_matrices(image: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Pillow's weights as two dense matrices, in float32."""

    def weights(first: float, last: float, side: int) -> np.ndarray:
        step = (last - first) / SIZE
        places = first + (np.arange(SIZE) + 0.5) * step - 0.5
        found = 1 - np.abs(places[:, None] - np.arange(side)) / max(step, 1)
        found = np.maximum(found, 0).astype(np.float32)
        return found / found.sum(axis=1, keepdims=True)

    down = weights(corner[0], corner[2], HEIGHT)
    right = weights(corner[1], corner[3], WIDTH)
    rows = (down @ image.reshape(HEIGHT, -1).astype(np.float32)).reshape(SIZE, WIDTH, 3)
    return np.round(np.einsum("ywc,xw->yxc", rows, right, optimize=True)).astype(np.uint8)


if __name__ == "__main__":
    main()
