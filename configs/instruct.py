"""Instruction tuning: a decoder that answers questions about pictures, loss on the answers alone.

  make quickstart
  python -m data.tokenizers.train --dataset=emoji --data_dir=.data --model=sentencepiece_bpe \\
    --output=.data/words.json
  python main.py --config=configs/instruct.py:variant=tiny --workdir=workdirs/instruct

`tiny` asks what emoji's labels can answer (data/builders/emoji/questions.json), on the image tower
of the quick start; it is judged on a vendor that training never saw, with the templates of training
and with those that are held out. `captions` writes the labels, without a question. `B/16` takes
your own triples (docs/tasks.md), lines with `image`, `question` and `answers`, one or many, and a
SigLIP tower: path=triples.jsonl,init=WORKDIR,tokenizer=tokenizer.json, one that tells where words
end. `data=vqav2,path=FOLDER` takes VQAv2 instead of lines, in `B/16` and, for a CPU, in `tiny`:
FOLDER has the files of questions and annotations of train2014 and val2014, and COCO's folders of
pictures called so. `init=none` begins from nothing.

`method` is what is trained beside the decoder: `full`, the tower as well; `decoder`, nothing, as in
the first stage of LLaVA; `lora`, what it adds to the tower (docs/finetuning.md).

The layout is that of CapPa's decoder (Tschannen et al. 2023) behind a tower that was trained by
contrast, the loss that of LLaVA (Liu et al. 2023, section 4.2): no projection between the two, the
decoder attends to the tower's tokens. Nothing was tuned.
"""

from ml_collections import ConfigDict

from configs.finetune import LORA
from configs.menu import V5E_16
from configs.quickstart import EMOJI
from configs.quickstart import get_config as quickstart
from configs.siglip import VARIANTS as SIGLIP
from configs.siglip import make_model, named_variant
from mm.config import BadInput, parse_arg

# Neither mirrored nor without its colours: arrows, clocks and colours are asked for.
AUGMENT = (
    "decode|pad(0.1)|random_resized_crop(48, scale=(0.44, 0.92), ratio=(0.82, 1.22))"
    "|color_jitter(saturation=0.5)"
)
B = dict(width=768, num_heads=12, mlp_dim=3072, remat="cheap")
WORDS = ".data/words.json"
TRIPLES = 'instruct("question", "answers")'
TINY = dict(width=128, num_heads=4, mlp_dim=256, dropout=0.1)
# method -> (config.adapt, config.optimizer.trainable)
METHODS = {
    "full": ({}, ()),
    "decoder": ({}, ("model/decoder/.*",)),
    "lora": ({"lora": LORA}, ("model/decoder/.*", ".*/lora/.*")),
}
VARIANTS = {
    "tiny": dict(
        stack=TINY, depth=2, vocab_size=4096, length=32, learning_rate=1e-3, steps=1200, warmup=60,
        batch_size=256, ops='ask("emoji")', tokenizer=WORDS, init="workdirs/quickstart",
    ),
    "captions": dict(
        stack=TINY, depth=2, vocab_size=4096, length=24, learning_rate=1e-3, steps=1200, warmup=60,
        batch_size=256, ops='caption("label")', tokenizer=WORDS, init="workdirs/quickstart",
    ),
    "B/16": dict(
        stack=B, depth=6, vocab_size=32_000, length=64, learning_rate=1e-4, steps=20_000,
        warmup=1000, batch_size=512, ops=TRIPLES, tokenizer="tokenizer.json",
        init="workdirs/siglip", **V5E_16,
    ),
}  # fmt: skip


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "variant=tiny,method=lora,init=WORKDIR,path=...,...", optional."""
    given = parse_arg(
        arg, variant="tiny", method="full", init="", path="triples.jsonl", tokenizer="", image=224,
        data="",
    )  # fmt: skip
    variant = named_variant(VARIANTS, given)
    if given["method"] not in METHODS:
        raise BadInput(f"config argument method={given['method']}: expected one of {[*METHODS]}")
    large, length = "mesh" in variant, variant["length"]
    asks = given["variant"] != "captions"
    if given["data"] not in ("", "vqav2") or (given["data"] and not asks):
        raise BadInput(
            f"config argument data={given['data']}: expected vqav2, with variant=tiny or B/16"
        )
    own = large or given["data"] == "vqav2"
    size = given["image"] if large else 48
    init = given["init"] or variant["init"]
    config = quickstart()
    config.pod = variant.get("pod")
    config.total_steps = variant["steps"]
    config.global_batch_size = variant["batch_size"]
    tower = dict(path=init, parameters=("model/image/.*",))
    config.model_init = None if init == "none" else tower
    image = make_model(SIGLIP["B/16"], size)["image"] if large else config.model.image
    config.model = dict(
        image=image,
        decoder=dict(
            name="transformer", memory="image", vocab_size=variant["vocab_size"], length=length,
            depth=variant["depth"], **variant["stack"],
        ),
    )  # fmt: skip
    task = "instruction" if asks else "captioning"
    config.objectives = {task: dict(name="captioning", answers=asks)}
    config.adapt, config.optimizer.trainable = METHODS[given["method"]]
    config.optimizer.learning_rate = variant["learning_rate"]
    config.optimizer.schedule.warmup_steps = variant["warmup"]
    name = "tokenize_answer" if asks else "tokenize"
    tokens = f'{name}("{given["tokenizer"] or variant["tokenizer"]}", {length})'
    ops, best = variant["ops"], "exact_match" if asks else "cider"
    if large:
        config.model.dtype = "bfloat16"
        config.sharding = dict(mesh=variant["mesh"], rules=variant["rules"])
    if own:
        best, ops = "vqa_accuracy", TRIPLES
        whole = augment = f"decode|resize({size})"
        train, held_out = find_triples(given)
        parts = {"held_out": (held_out, ops)}
    else:
        train, augment, whole = dict(split="train", **EMOJI), AUGMENT, "decode|resize(48)"
        seen, unseen = (dict(split=split, **EMOJI) for split in ("seen", "unseen"))
        parts = {"seen": (seen, ops), "unseen": (unseen, ops)}
        if asks:
            held_out = 'ask("emoji", templates="held_out")'
            parts = {"train_templates": (seen, ops), "held_out_templates": (seen, held_out)}
    every_steps = variant["steps"] // 3
    config.input = dict(source=train, preprocess=f"{augment}|{ops}|{tokens}")
    config.evals = {
        part: dict(
            name="answers" if asks else "captions",
            references="answers" if own else None,
            source=source,
            preprocess=f"{whole}|{made}|{tokens}",
            batch_size=256,
            every_steps=every_steps,
        )
        for part, (source, made) in parts.items()
    }
    best = f"{next(iter(parts))}/{best}"
    config.checkpoint = dict(every_steps=every_steps, keep_last=1, keep_best=best)
    return config


def find_triples(given: dict) -> tuple[dict, dict]:
    """What is trained on, and what is judged by."""
    if given["data"] == "vqav2":
        folder = dict(name="vqav2", path=given["path"])
        return dict(folder, split="train2014"), dict(folder, split="val2014")
    lines = dict(name="jsonl", path=given["path"])
    return dict(lines, last=0.99), dict(lines, first=0.99)
