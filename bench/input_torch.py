"""The other side of `bench.input`: torch's DataLoader with Pillow, run by a Python that has torch.

A line "go" on its input makes it time some batches of its running iterator and print seconds and
seconds of CPU time a picture. Crops as torchvision's RandomResizedCrop does, on whole pixels, then
resizes bilinearly.
"""

import itertools
import json
import math
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import tokenizers
import torch
from PIL import Image

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


class Pairs(torch.utils.data.Dataset):
    def __init__(self, folder, size, length, as_float):
        self.folder, self.size, self.as_float = Path(folder), size, as_float
        self.rows = [json.loads(row) for row in (self.folder / "lines.jsonl").open()]
        self.tokenizer = tokenizers.Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(length)
        self.tokenizer.enable_padding(length=length)

    def __len__(self):
        return 1000 * len(self.rows)  # the end of an epoch would cost it time

    def __getitem__(self, index):
        row = self.rows[index % len(self.rows)]
        with Image.open(self.folder / row["image"]) as file:
            image = file.convert("RGB")
        top, left, height, width = crop(image.width, image.height)
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        if self.as_float:
            pixels = pixels.contiguous().to(torch.float32).div_(255).sub_(MEAN).div_(STD)
        return pixels, torch.tensor(self.tokenizer.encode(row["caption"]).ids)


def crop(width, height, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
    for _ in range(10):
        area = width * height * random.uniform(*scale)
        aspect = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, height - h), random.randint(0, width - w), h, w
    side = min(width, height)
    return (height - side) // 2, (width - side) // 2, side, side


def main():
    given = json.loads(sys.argv[1])
    pairs = Pairs(given["folder"], given["size"], given["length"], given["as_float"])
    loader = torch.utils.data.DataLoader(
        pairs, given["batch_size"], shuffle=True, num_workers=given["num_workers"],
        persistent_workers=True, drop_last=True,
    )  # fmt: skip
    batches = iter(loader)
    for _ in sys.stdin:
        for _ in itertools.islice(batches, given["skipped"]):
            pass
        begin, worked = time.perf_counter(), cpu_seconds(batches)
        for _ in itertools.islice(batches, given["timed"]):
            pass
        count = given["timed"] * given["batch_size"]
        times = time.perf_counter() - begin, cpu_seconds(batches) - worked
        print(*(seconds / count for seconds in times), flush=True)


def cpu_seconds(batches):
    """Of this process and the loader's workers, from Linux's table of processes."""
    ticks = 0
    for worker in batches._workers:
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
