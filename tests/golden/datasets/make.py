"""Writes what Hugging Face's `datasets` saves, for tests/data/sources/test_hf.py.

In an environment of its own: pip install datasets==4.4.1 pillow==13.0.0; then, in this folder,
python make.py
"""

import io
import pathlib
import shutil

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as Pil

HERE = pathlib.Path(__file__).parent
COLORS = ["red", "green", "blue"]


def picture(color: str) -> bytes:
    buffer = io.BytesIO()
    Pil.new("RGB", (2, 2), color).save(buffer, "PNG")
    return buffer.getvalue()


def rows(start: int, stop: int) -> dict[str, list]:
    numbers = range(start, stop)
    return {
        "image": [{"bytes": picture(COLORS[i % 3]), "path": f"{i}.png"} for i in numbers],
        "caption": [f"größe {i}" for i in numbers],
        "captions": [[f"{i} {j}" for j in range(i % 3)] for i in numbers],
        "label": [i % 3 for i in numbers],
        "score": [i / 2 for i in numbers],
        "size": [[i, i + 1] for i in numbers],
    }


def main() -> None:
    features = Features(
        {
            "image": Image(),
            "caption": Value("string"),
            "captions": List(Value("string")),
            "label": ClassLabel(names=COLORS),
            "score": Value("float32"),
            "size": List(Value("int64"), length=2),
        }
    )
    splits = {"train": rows(0, 7), "test": rows(7, 9)}
    data = DatasetDict({k: Dataset.from_dict(v, features=features) for k, v in splits.items()})
    shutil.rmtree(HERE / "saved", ignore_errors=True)
    data.save_to_disk(HERE / "saved", num_shards={"train": 2, "test": 1})
    data["train"].to_parquet(HERE / "train.parquet", batch_size=3)


if __name__ == "__main__":
    main()
