"""Visual question answering as classification: which of the frequent answers are right.

  python -m data.tokenizers.train --source='{"name": "vqav2", "path": "FOLDER"}' \\
    --fields=question --vocab_size=32000 --output=tokenizer.json
  python -m data.classes '{"name": "vqav2", "path": "FOLDER"}' --field=answers --most=3129 \\
    --output=answers.json
  python main.py --workdir=workdirs/vqa \\
    --config=configs/vqa.py:data=vqav2,path=FOLDER,init=workdirs/siglip

The question reads the picture in a cross-attention fusion, whose pooled vector is classified; every
answer that people gave is right, all others are wrong (Teney et al. 2018, section 3.4, with targets
of 0 and 1). Answers that are not among the classes are left out. Without `data=vqav2` it takes
lines with `image`, `question` and `answers`, as configs/instruct.py, which writes answers instead.
`init` is a run of configs/siglip.py whose towers it begins with; none: it begins from nothing.
`variant=tiny` is for a CPU. Nothing was tuned.
"""

from ml_collections import ConfigDict

from configs.instruct import find_triples
from configs.menu import V5E_16
from configs.siglip import VARIANTS as SIGLIP
from configs.siglip import make_model, named_variant
from mm.config import parse_arg

ANSWERS = 3129  # as most of the field, those that are given nine times or more
STACK = dict(width=128, num_heads=4, mlp_dim=256)
VARIANTS = {
    "B/16": dict(
        stack=dict(width=768, num_heads=12, mlp_dim=3072, remat="cheap"), depth=6, image=224,
        batch_size=512, steps=20_000, warmup=1000, **V5E_16,
    ),
    "tiny": dict(stack=STACK, depth=1, image=48, batch_size=64, steps=1000, warmup=50),
}  # fmt: skip


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "variant=B/16,data=vqav2,path=FOLDER,init=WORKDIR,...", optional."""
    given = parse_arg(
        arg, variant="B/16", init="none", path="triples.jsonl", tokenizer="tokenizer.json",
        answers="answers.json", data="",
    )  # fmt: skip
    variant = named_variant(VARIANTS, given)
    stack, size = variant["stack"], variant["image"]
    config = ConfigDict()
    config.seed = 0
    config.pod = variant.get("pod")
    config.total_steps, config.global_batch_size = variant["steps"], variant["batch_size"]
    if given["variant"] == "tiny":
        towers = dict(
            image=dict(name="vit", image_size=size, patch_size=12, depth=2, **stack),
            text=dict(name="transformer", vocab_size=32_000, length=24, depth=1, **stack),
        )
    else:
        towers = make_model(SIGLIP["B/16"], size)
        del towers["embed_dim"]
    config.model = dict(towers, fusion=dict(name="cross", depth=variant["depth"], **stack))
    config.objectives = dict(
        answers=dict(name="classification", of="fused", kind="sigmoid", num_classes=ANSWERS)
    )
    if given["init"] != "none":
        parts = tuple(f"model/{tower}/.*" for tower in ("image", "text"))
        config.model_init = dict(path=given["init"], parameters=parts)
    config.optimizer = dict(
        name="adamw",
        learning_rate=1e-4,
        weight_decay=0.05,
        schedule=dict(name="cosine", warmup_steps=variant["warmup"]),
    )
    mesh = dict(replica=1, fsdp=-1, tensor=1)
    config.sharding = dict(mesh=variant.get("mesh", mesh), rules=variant.get("rules", "dp"))
    length = config.model.text.length
    ops = (
        f'decode|resize({size})|caption("question")|tokenize("{given["tokenizer"]}", {length})'
        f'|labels("answers", classes="{given["answers"]}", others=True)'
    )
    train, held_out = find_triples(given)
    config.input = dict(source=train, preprocess=ops)
    config.evals = dict(
        held_out=dict(
            name="classification", source=held_out, preprocess=ops, batch_size=256,
            references="answers", every_steps=1000,
        )
    )  # fmt: skip
    best = "held_out/vqa_accuracy"
    config.checkpoint = dict(every_steps=1000, keep_last=1, keep_best=best)
    config.log = dict(every_steps=50)
    return config
