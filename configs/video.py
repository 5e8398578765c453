"""Clips and their texts, or sounds and theirs: SigLIP's loss on what is no single picture.

clips.jsonl has one pair a line, in any order that is not sorted, with the file's path relative to
it; `path` of the argument is that or another table or shards, as in configs/pairs.py:

  {"image": "clips/0001.mp4", "caption": "a dog runs over the beach"}

  python -m data.tokenizers.train --fields=caption --vocab_size=16384 --output=tokenizer.json \\
    --source='{"name": "jsonl", "path": "clips.jsonl", "last": 0.99}'
  python main.py --config=configs/video.py:path=clips.jsonl,tokenizer=tokenizer.json \\
    --workdir=workdirs/video
  python main.py --config=configs/video.py:modality=audio,path=sounds.jsonl \\
    --workdir=workdirs/audio

`image_key` names the field with the files' paths. `size=tiny` are two blocks on clips or sounds
that are made up, to try it on a CPU:

  python -m data.tokenizers.train --fields=caption --vocab_size=300 --output=tokenizer.json \\
    --source='{"name": "synthetic_video", "num_examples": 500}'
  python main.py --config=configs/video.py:size=tiny --workdir=workdirs/video

Of clips, 16 frames are taken from equal parts of the time, at random instants in training (TSN,
Wang et al. 2016), and cut into tubelets of 2 x 16 x 16 (ViViT, Arnab et al. 2021, section 3.2). Of
sounds, 10.24 seconds as 128 mels x 1,024 frames (AST, Gong et al. 2021, but in patches that do not
overlap). Loss, learning rate and schedule are those of configs/pairs.py. No number has been tuned.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from configs.pairs import ARGUMENTS, HELD_OUT, LENGTH, pairs_source
from mm.config import BadInput, parse_arg

PATCH_SIZE = 16


class Size(NamedTuple):
    """tower: of both. image: a frame's side. mels, steps: of a spectrogram."""

    tower: dict
    batch_size: int
    frames: int
    image: int
    mels: int
    steps: int


SIZES = {
    "S": Size(dict(width=384, depth=12, num_heads=6, remat="hidden"), 512, 16, 224, 128, 1024),
    "tiny": Size(dict(width=64, depth=2, num_heads=2, remat="none"), 64, 8, 48, 64, 128),
}
MODALITIES = ("video", "audio")


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "modality=audio,size=tiny,path=...,tokenizer=...", optional."""
    given = parse_arg(arg, modality="video", size="S", **ARGUMENTS | {"path": "clips.jsonl"})
    for key, known in (("modality", MODALITIES), ("size", SIZES)):
        if given[key] not in known:
            raise BadInput(f"config argument {key}={given[key]}: expected one of {list(known)}")
    size, tiny = SIZES[given["size"]], given["size"] == "tiny"
    video = given["modality"] == "video"
    config = ConfigDict()
    config.seed = 0
    config.total_steps = 500 if tiny else 20_000
    config.global_batch_size = size.batch_size
    seen = dict(image_size=(size.mels, size.steps), channels=1)
    if video:
        seen = dict(image_size=size.image, frames=size.frames, tubelet_size=2)
    words = dict(vocab_size=300 if tiny else 16_384, length=LENGTH, pool="last")
    config.model = dict(
        image=dict(name="vit", patch_size=PATCH_SIZE, pool="map", **seen, **size.tower),
        text=dict(name="transformer", **words, **size.tower),
        embed_dim=size.tower["width"],
        dtype="float32" if tiny else "bfloat16",
    )
    config.objectives = dict(contrastive=dict(name="contrastive", kind="sigmoid"))
    config.optimizer = dict(
        name="adamw",
        learning_rate=1e-3,
        b2=0.95,
        weight_decay=0.1,
        schedule=dict(name="cosine", warmup_steps=50 if tiny else 1000),
    )
    rules = "dp" if tiny else "fsdp"
    config.sharding = dict(mesh=dict(replica=1, fsdp=-1, tensor=1), rules=rules)
    train, evaluation = _video(size) if video else _audio(size)
    ends = f'caption("caption")|tokenize({given["tokenizer"]!r}, {LENGTH})|group("caption")'
    config.accumulation_steps = 1
    if tiny:
        made = dict(name=f"synthetic_{given['modality']}")
        source, held_out = dict(num_examples=10_000, seed=0), dict(num_examples=128, seed=1)
    else:
        made = pairs_source(given)
        source, held_out = dict(first=0.0, last=HELD_OUT), dict(first=HELD_OUT, last=1.0)
    config.input = dict(source=made | source, preprocess=f"{train}|{ends}")
    config.evals = dict(
        held_out=dict(
            name="retrieval",
            source=made | held_out,
            preprocess=f"{evaluation}|{ends}",
            batch_size=64 if tiny else 256,
            every_steps=100 if tiny else 1000,
        )
    )
    config.checkpoint = dict(
        every_steps=1000, keep_last=2, keep_best="held_out/text_to_image/recall@1"
    )
    config.log = dict(every_steps=50)
    return config


def _video(size: Size) -> tuple[str, str]:
    """The ops of training and of evaluation. No flip: "left" is a word of captions."""
    return (
        f"decode_video({size.frames}, random=True)|random_resized_crop({size.image})",
        f"decode_video({size.frames})|resize({size.image})",
    )


def _audio(size: Size) -> tuple[str, str]:
    seconds = size.steps / 100  # log_mel's hop is 10 ms
    return (
        f"decode_audio({seconds}, random=True)|log_mel({size.mels})",
        f"decode_audio({seconds})|log_mel({size.mels})",
    )
