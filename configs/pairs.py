"""SigLIP (Zhai et al. 2023) at size S on your own pairs of pictures and captions.

pairs.jsonl has one pair a line, in any order that is not sorted, with the picture's path relative
to the file:

  {"image": "photos/0001.jpg", "caption": "a red bicycle leans on a wall"}

`path` of the argument may be another file, or a pattern such as pairs/*.parquet; how it ends says
what it is: .jsonl, .csv or .tsv (a row of names first), .parquet, .tar (WebDataset), .json (COCO's
captions, or Karpathy's splits), .token (Flickr30k). Or a folder: what `datasets` saved, shards or
tables of one kind, or pictures, each with its caption in a .txt. Where pictures and captions are
called otherwise, image_key=URL,caption_key=TEXT in the argument says how.

Train a tokenizer on the first 99% of the lines, train on them, and evaluate the retrieval of the
last 1%, which is also done during training and at its end:

  python -m data.tokenizers.train --fields=caption --vocab_size=16384 --output=tokenizer.json \\
    --source='{"name": "jsonl", "path": "pairs.jsonl", "last": 0.99}'
  python main.py --config=configs/pairs.py:path=pairs.jsonl,tokenizer=tokenizer.json \\
    --workdir=workdirs/pairs
  python main.py --config=configs/pairs.py:path=pairs.jsonl,tokenizer=tokenizer.json \\
    --workdir=workdirs/pairs --mode=eval

`image=224` in the argument is the pictures' size in pixels, a multiple of 16; `size=tiny` are
towers of two blocks and batches of 64, to try it on a CPU. Parameters and their moments are split
over all devices: one, or any power of two up to 128. Where memory is short, set
--config.model.image.remat=full, then --config.accumulation_steps=4 (micro-batches: a third more
computation, the same gradients), then a smaller --config.global_batch_size.

From the paper: the loss with its first scale and bias, 224 pixels, and b2. From its authors' code
and models: pictures squashed to a square, map pooling, 64 tokens, the learning rate. Smaller than
there: towers (B), vocabulary (32k), batch (32k is its best) and steps. No number has been tuned.
"""

from collections.abc import Mapping

from ml_collections import ConfigDict

from data.sources.guess import COLUMNS, guess
from mm.config import BadInput, parse_arg

HELD_OUT = 0.99  # the share of the file where the held-out lines begin
SQUASH = "resize({image})"  # the whole picture, squashed to a square
PATCH_SIZE = 16
LENGTH = 64  # tokens: that of the released SigLIP models
# Arguments of all recipes on pairs.
ARGUMENTS = dict(
    path="pairs.jsonl", tokenizer="tokenizer.json", image_key="image", caption_key="caption"
)
SEVERAL = ("coco", "flickr30k")  # captions a picture: another one in each epoch
SIZES = {
    "S": dict(width=384, depth=12, num_heads=6, remat="none"),  # DeiT-S
    "tiny": dict(width=128, depth=2, num_heads=4, remat="none"),
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "path=pairs.jsonl,tokenizer=tokenizer.json,image=224,size=S", optional."""
    given = parse_arg(arg, image=224, size="S", **ARGUMENTS)
    if given["size"] not in SIZES:
        raise BadInput(f"config argument size={given['size']}: expected one of {list(SIZES)}")
    tower, tiny = SIZES[given["size"]], given["size"] == "tiny"
    config = ConfigDict()
    config.seed = 0
    config.total_steps = 20_000
    config.global_batch_size = 64 if tiny else 1024
    config.model = dict(
        image=dict(name="vit", image_size=given["image"], patch_size=PATCH_SIZE, pool="map")
        | tower,
        text=dict(name="transformer", vocab_size=16_384, length=LENGTH, pool="last") | tower,
        embed_dim=384,
        dtype="bfloat16",
    )
    config.objectives = dict(contrastive=dict(name="contrastive", kind="sigmoid"))
    config.optimizer = dict(
        name="adamw",
        learning_rate=1e-3,
        b2=0.95,
        # 1e-4 as the authors' code counts, which does not multiply it by the learning rate.
        weight_decay=0.1,
        schedule=dict(name="cosine", warmup_steps=1000),
    )
    config.sharding = dict(mesh=dict(replica=1, fsdp=-1, tensor=1), rules="fsdp")
    add_pairs(config, given, LENGTH, batch_size=64 if tiny else 256)
    return config


def add_pairs(
    config: ConfigDict,
    given: Mapping,
    length: int,
    *,
    augment: str = SQUASH,
    views: str = "",
    masks: str = "",
    words: bool = False,
    numbers: Mapping[str, int] = {},
    batch_size: int = 4096,
) -> None:
    """Adds input, evals, checkpoint and log of a run on pairs of one's own.

    And accumulation_steps, for whom the memory of the devices is too short.

    given: `ARGUMENTS` as the recipe's argument has them, and `image`, the pictures' size.
    augment: the ops that make a picture of training of it; views: those that make more of it, each
    ending in |; masks: those that say what is hidden of it, each beginning with |. words:
    whether the words of tokens are told, for masked text. numbers: fields of so many numbers, read
    as they are. batch_size: of the evaluation, retrieval where the model has embeddings and else
    the objectives' own losses.
    """
    source = pairs_source(given)
    retrieves = config.model.get("embed_dim") is not None
    reads_text = any(config.model.get(part) is not None for part in ("text", "decoder"))
    words = ", words=True" if words else ""
    fields = "".join(f'|numbers("{name}", {size})' for name, size in numbers.items())

    def part(first: float, last: float, ops: str, text: str = 'caption("caption")') -> dict:
        preprocess = f"decode|{ops.format(image=given['image'])}{masks}"
        if reads_text:  # pairs with the very same caption are positives of each other
            tokens = f"tokenize({given['tokenizer']!r}, {length}{words})"
            preprocess += f'|{text}|{tokens}|group("caption")'
        return dict(source=dict(first=first, last=last, **source), preprocess=preprocess)

    config.accumulation_steps = 1
    several = {"text": 'choose("captions")'} if source["name"] in SEVERAL else {}
    config.input = part(0.0, HELD_OUT, views + augment + fields, **several)
    config.evals = dict(
        held_out=dict(
            name="retrieval" if retrieves else "losses",
            batch_size=batch_size,
            every_steps=1000,
            **part(HELD_OUT, 1.0, SQUASH if retrieves else views + SQUASH),
        )
    )
    best = "held_out/text_to_image/recall@1" if retrieves else None
    config.checkpoint = dict(every_steps=1000, keep_last=2, keep_best=best)
    config.log = dict(every_steps=50)


def pairs_source(given: Mapping) -> dict:
    """The source of the pairs in a file, or in a folder, by how `path` ends or what is in it."""
    path, names = given["path"], {key: given[key] for key in ("image_key", "caption_key")}
    source = guess(path)
    if source["name"] in COLUMNS:
        return source | names
    for key, name in names.items():
        if name != ARGUMENTS[key]:
            raise BadInput(f"config argument {key}={name}: {path} has no columns; leave it out")
    return source
