"""Instruction tuning: a decoder that answers questions about pictures, loss on the answers alone.

  make quickstart
  python -m data.tokenizers.train --dataset=emoji --data_dir=.data --model=sentencepiece_bpe \\
    --output=.data/words/tokenizer-4096.json
  python main.py --config=configs/instruct.py:variant=tiny --workdir=workdirs/instruct

`tiny` asks what emoji's labels can answer (data/builders/emoji/questions.json), on the image tower
of the quick start; it is judged on a vendor that training never saw, with the templates of training
and with those that are held out. `B/16` takes your own triples (docs/tasks.md), lines with `image`,
`question` and `answers`, one or many, and a SigLIP tower: path=triples.jsonl,init=WORKDIR,
tokenizer=tokenizer.json, one that tells where words end. `init=none` begins from nothing.

The layout is that of CapPa's decoder (Tschannen et al. 2023) behind a tower that was trained by
contrast, the loss that of LLaVA (Liu et al. 2023, section 4.2): no projection between the two, the
decoder attends to the tower's tokens. Nothing was tuned.
"""

from ml_collections import ConfigDict

from configs.menu import V5E_16
from configs.quickstart import EMOJI
from configs.quickstart import get_config as quickstart
from configs.siglip import VARIANTS as SIGLIP
from configs.siglip import make_model, named_variant
from mm.config import parse_arg

# Neither mirrored nor without its colours: arrows, clocks and colours are asked for.
AUGMENT = (
    "decode|pad(0.1)|random_resized_crop(48, scale=(0.44, 0.92), ratio=(0.82, 1.22))"
    "|color_jitter(saturation=0.5)"
)
B = dict(width=768, num_heads=12, mlp_dim=3072, remat="cheap")
TINY = dict(width=128, num_heads=4, mlp_dim=256, dropout=0.1)
VARIANTS = {
    "tiny": dict(
        stack=TINY, depth=2, vocab_size=4096, length=32, learning_rate=1e-3, steps=1200, warmup=60,
        batch_size=256, ops='ask("emoji")', tokenizer="words", init="workdirs/quickstart",
    ),
    "B/16": dict(
        stack=B, depth=6, vocab_size=32_000, length=64, learning_rate=1e-4, steps=20_000,
        warmup=1000, batch_size=512, ops='instruct("question", "answers")',
        tokenizer="tokenizer.json", init="workdirs/siglip", **V5E_16,
    ),
}  # fmt: skip


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "variant=tiny,init=WORKDIR,path=...,tokenizer=...", optional."""
    given = parse_arg(arg, variant="tiny", init="", path="triples.jsonl", tokenizer="", image=224)
    variant = named_variant(VARIANTS, given)
    tiny, length = given["variant"] == "tiny", variant["length"]
    init = given["init"] or variant["init"]
    config = quickstart()
    config.pod = variant.get("pod")
    config.total_steps = variant["steps"]
    config.global_batch_size = variant["batch_size"]
    tower = dict(path=init, parameters=("model/image/.*",))
    config.model_init = None if init == "none" else tower
    image = config.model.image if tiny else make_model(SIGLIP["B/16"], given["image"])["image"]
    config.model = dict(
        image=image,
        decoder=dict(
            name="transformer", memory="image", vocab_size=variant["vocab_size"], length=length,
            depth=variant["depth"], **variant["stack"],
        ),
    )  # fmt: skip
    config.objectives = dict(instruction=dict(name="captioning", answers=True))
    config.optimizer.learning_rate = variant["learning_rate"]
    config.optimizer.schedule.warmup_steps = variant["warmup"]
    tokens = f'tokenize_answer("{given["tokenizer"] or variant["tokenizer"]}", {length})'
    if tiny:
        train, augment = dict(split="train", **EMOJI), AUGMENT
        parts = {
            f"{templates}_templates": dict(
                source=dict(split="seen", **EMOJI),
                preprocess=f'decode|resize(48)|ask("emoji", templates="{templates}")|{tokens}',
            )
            for templates in ("train", "held_out")
        }
    else:
        lines = dict(name="jsonl", path=given["path"])
        train, augment = lines | dict(last=0.99), "decode|resize({image})".format(**given)
        parts = {
            "held_out": dict(
                source=lines | dict(first=0.99),
                preprocess=f"{augment}|{variant['ops']}|{tokens}",
                references="answers",
            )
        }
        config.model.dtype = "bfloat16"
        config.sharding = dict(mesh=variant["mesh"], rules=variant["rules"])
    config.input = dict(source=train, preprocess=f"{augment}|{variant['ops']}|{tokens}")
    config.evals = {
        name: dict(name="answers", batch_size=256, every_steps=variant["steps"] // 3, **part)
        for name, part in parts.items()
    }
    best = "train_templates/exact_match" if tiny else "held_out/vqa_accuracy"
    config.checkpoint = dict(every_steps=variant["steps"] // 3, keep_last=1, keep_best=best)
    return config
