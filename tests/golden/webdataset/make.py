"""Makes the shards of this folder and what the library reads from them. Not part of the tests.

python -m venv /tmp/venv && /tmp/venv/bin/pip install webdataset==1.0.2
/tmp/venv/bin/python tests/golden/webdataset/make.py
"""

import json
from pathlib import Path

import numpy as np
import webdataset

HERE = Path(__file__).parent
LONG = "folder/" * 20 + "a name that no old tar can hold"


def samples(shard: int) -> list[dict]:
    """As img2dataset's (000000001.jpg, .txt, .json) and as WebDataset allows."""
    rng = np.random.default_rng(shard)
    plain = [
        {
            "__key__": f"{shard:05d}{i:04d}",
            ("jpg", "PNG")[i]: rng.bytes(int(rng.integers(0, 200))),
            "txt": f"größe {i}, 大きさ".encode(),
            "json": json.dumps({"width": i, "similarity": i / 4, "url": f"u/{i}"}).encode(),
        }
        for i in range(2)
    ]
    odd = [
        {"__key__": "train.v2/a", "seg.png": b"mask", "jpg": b"picture", "txt": b"a folder"},
        {"__key__": "./b", "jpg": b"", "txt": b""},
    ]
    return plain + odd


def write() -> None:
    with webdataset.ShardWriter(
        str(HERE / "ustar-%d.tar"), maxcount=2, verbose=0, encoder=False, mtime=0
    ) as sink:
        for sample in samples(0):
            sink.write(sample)
    for number, kind in enumerate(["GNU_FORMAT", "PAX_FORMAT"], 1):
        with webdataset.TarWriter(
            str(HERE / f"{kind[:3].lower()}.tar"), encoder=False, mtime=0, format=kind
        ) as sink:
            for sample in [*samples(number), {"__key__": LONG, "jpg": b"long", "txt": b"name"}]:
                sink.write(sample)


def read() -> None:
    shards = sorted(str(path) for path in HERE.glob("*.tar"))
    found = webdataset.WebDataset(shards, shardshuffle=False)
    records = [
        {
            key: value.hex() if isinstance(value, bytes) else value
            for key, value in sample.items()
            if key not in ("__url__", "__local_path__")
        }
        for sample in found
    ]
    (HERE / "read.json").write_text(json.dumps(records, indent=0))


if __name__ == "__main__":
    write()
    read()
