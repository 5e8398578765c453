"""A run of configs/quickstart.py carried to grey pictures, by each way of fine-tuning.

  python main.py --config=configs/finetune.py:method=lora --workdir=workdirs/lora

It begins with the latest checkpoint in `init` (workdirs/quickstart), which has seen drawings in
colour, and trains on the same drawings without it, one epoch. `seen` and `unseen` are those of the
quick start, in grey. What is trained:

  method   what
  full     everything; early layers less (layer_decay)
  lit      the text tower and its projection (LiT, Zhai et al. 2022)
  image    the image tower and its projection: its mirror
  probe    the two projections
  lora     changes of rank 8 of the image tower and of the projections (Hu et al. 2021)
  adapter  two small layers after attention and MLP (Houlsby et al. 2019)
  vpt      eight tokens that each block of the image tower reads (Jia et al. 2022)
  coop     four words before every text (Zhou et al. 2022)
  prompts  the same, and templates of one name are drawn together, those of others apart
  none     nothing: no step is made, and `init` is evaluated

and the scale of the loss, always. Nothing was tuned. docs/finetuning.md says more.
"""

from ml_collections import ConfigDict

from configs.quickstart import get_config as quickstart
from mm.config import BadInput, parse_arg

GREY = "grayscale(1.0)"
TEMPLATES = ("{}", "a drawing of {}", "the sign for {}", "{} in a message")
PROMPTS = "".join(
    f'caption("label")|template({TEMPLATES})|tokenize("emoji", 24)|keep_text("{view}")|'
    for view in ("one", "two")
)
IMAGE, TEXT = "model/image(_projection)?/.*", "model/text(_projection)?/.*"
METHODS = {
    "full": dict(learning_rate=2e-4, optimizer=dict(layer_decay=0.75)),
    "lit": dict(learning_rate=5e-4, optimizer=dict(trainable=(TEXT, "objectives/.*"))),
    "image": dict(learning_rate=2e-4, optimizer=dict(trainable=(IMAGE, "objectives/.*"))),
    "probe": dict(
        learning_rate=5e-4, optimizer=dict(trainable=("model/.*_projection/.*", "objectives/.*"))
    ),
    "lora": dict(
        learning_rate=1e-3,
        adapt=dict(
            name="lora",
            at=("model/image/encoder/.*", "model/image/flatten_pool/.*", "model/.*_projection"),
            rank=8,
            alpha=16.0,
        ),
    ),
    "adapter": dict(learning_rate=2e-3, adapt=dict(name="adapter", size=16)),
    "vpt": dict(learning_rate=5e-3, adapt=dict(name="image_prompt", count=8, deep=True)),
    "prompts": dict(learning_rate=5e-3, adapt=dict(name="text_context", count=4)),
    "none": dict(learning_rate=1.0),
    "coop": dict(learning_rate=5e-3, adapt=dict(name="text_context", count=4)),
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "method=lora,init=workdirs/quickstart", optional."""
    given = parse_arg(arg, method="lora", init="workdirs/quickstart")
    name = given["method"]
    if name not in METHODS:
        raise BadInput(f"config argument method={name}: expected one of {list(METHODS)}")
    method = METHODS[name]
    config = quickstart()
    config.total_steps = 60 if name != "none" else 0
    config.global_batch_size = 128
    config.model_init = dict(path=given["init"])
    config.adapt = {name: method["adapt"]} if "adapt" in method else {}
    if name == "prompts":
        config.objectives.prompts = dict(name="prompt_contrastive", weight=0.5)
        config.input.preprocess = config.input.preprocess.replace("decode|", f"decode|{PROMPTS}")
    config.optimizer.update(
        learning_rate=method["learning_rate"],
        weight_decay=0.0,
        schedule=dict(name="cosine", warmup_steps=config.total_steps // 10),
        **method.get("optimizer", {}),
    )
    config.input.preprocess = config.input.preprocess.replace("grayscale(0.1)", GREY)
    for evaluation in config.evals.values():
        evaluation.preprocess = evaluation.preprocess.replace("resize(48)", f"resize(48)|{GREY}")
        evaluation.every_steps = None
    config.checkpoint = dict(every_steps=60, keep_last=1)
    return config
