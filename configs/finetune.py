"""A run of configs/quickstart.py carried to noisy pictures, by each way of fine-tuning.

  python main.py --config=configs/finetune.py:method=lora --workdir=workdirs/lora

It begins with the latest checkpoint in `init` (workdirs/quickstart), which has seen clean drawings,
and trains on the same drawings with strong noise, one epoch. `seen` and `unseen` are those of the
quick start, as noisy. What is trained:

  method   what
  full     everything; early layers less (layer_decay)
  lit      the text tower and its projection (LiT, Zhai et al. 2022)
  image    the image tower and its projection: its mirror
  projections  the two projections alone
  lora     changes of rank 8 of the image tower and of the projections (Hu et al. 2021)
  adapter  two small layers after attention and MLP (Houlsby et al. 2019)
  vpt      eight tokens that each block of the image tower reads (Jia et al. 2022)
  coop     four words before every text (Zhou et al. 2022)
  prompts  the same, and templates of one name are drawn together, those of others apart
  none     nothing: no step is made, and `init` is evaluated

and the scale of the loss, always. `clean` are the pictures of `seen` without noise: what is lost.
`init` can be several runs, A+B+C: it begins with their mean (a model soup, Wortsman et al. 2022a);
of two, share=0.3 takes so much of the second (WiSE-FT, 2022b). With method=none that is evaluated,
as configs/ablations/averages.py does. `hidden=64` lets a small network make the tokens or words of
vpt, coop and prompts (Li and Liang 2021). A linear probe takes labels:
configs/classify.py:method=probe.
Learning rates are of configs/ablations/finetuning_rates.py. docs/finetuning.md says more.
"""

from ml_collections import ConfigDict

from configs.quickstart import get_config as quickstart
from mm.config import BadInput, parse_arg

NOISE = 'corrupt("gaussian_noise", 5)'
TEMPLATES = ("{}", "a drawing of {}", "the sign for {}", "{} in a message")
PROMPTS = "".join(
    f'caption("label")|template({TEMPLATES})|tokenize("emoji", 24)|keep_text("{view}")|'
    for view in ("one", "two")
)
IMAGE, TEXT = "model/image(_projection)?/.*", "model/text(_projection)?/.*"
# Of the image tower; configs/classify.py and configs/instruct.py have them too.
LORA = dict(
    name="lora",
    at=("model/image/encoder/.*", "model/image/.*_pool/.*"),
    rank=8,
    alpha=16.0,
)
ADAPTER = dict(name="adapter", size=16)
VPT = dict(name="image_prompt", count=8, deep=True)
METHODS = {
    "full": dict(learning_rate=1e-3, optimizer=dict(layer_decay=0.75)),
    "lit": dict(learning_rate=3e-3, optimizer=dict(trainable=(TEXT, "objectives/.*"))),
    "image": dict(learning_rate=3e-3, optimizer=dict(trainable=(IMAGE, "objectives/.*"))),
    "projections": dict(
        learning_rate=3e-3, optimizer=dict(trainable=("model/.*_projection/.*", "objectives/.*"))
    ),
    "lora": dict(learning_rate=3e-3, adapt=dict(LORA, at=(*LORA["at"], "model/.*_projection"))),
    "adapter": dict(learning_rate=1e-2, adapt=ADAPTER),
    "vpt": dict(learning_rate=3e-2, adapt=VPT),
    "prompts": dict(learning_rate=1e-2, adapt=dict(name="text_context", count=4)),
    "none": dict(learning_rate=1.0),
    "coop": dict(learning_rate=3e-2, adapt=dict(name="text_context", count=4)),
}
PROMPTED = ("vpt", "coop", "prompts")
NETWORK_RATE = 1e-2  # of those whose prompts a network makes


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "method=vpt,init=workdirs/quickstart,hidden=64,share=0.5", optional."""
    given = parse_arg(arg, method="lora", init="workdirs/quickstart", hidden=0, share=0.5)
    name = given["method"]
    if name not in METHODS:
        raise BadInput(f"config argument method={name}: expected one of {list(METHODS)}")
    method = METHODS[name]
    adaptation = method.get("adapt")
    if given["hidden"]:
        if name not in PROMPTED:
            raise BadInput(f"config argument hidden={given['hidden']}: is for {list(PROMPTED)}")
        adaptation = dict(adaptation, hidden=given["hidden"])
        method = dict(method, learning_rate=NETWORK_RATE)
    config = quickstart()
    config.total_steps = 60 if name != "none" else 0
    config.global_batch_size = 128
    config.model_init = begin(given["init"].split("+"), given["share"])
    config.adapt = {name: adaptation} if adaptation else {}
    if name == "prompts":
        config.objectives.prompts = dict(name="prompt_contrastive", weight=0.5)
        config.input.preprocess = config.input.preprocess.replace("decode|", f"decode|{PROMPTS}")
    config.optimizer.update(
        learning_rate=method["learning_rate"],
        weight_decay=0.0,
        schedule=dict(name="cosine", warmup_steps=config.total_steps // 10),
        **method.get("optimizer", {}),
    )
    config.input.preprocess = config.input.preprocess.replace(
        "grayscale(0.1)", f"grayscale(0.1)|{NOISE}"
    )
    clean = config.evals.seen.to_dict()
    for evaluation in config.evals.values():
        evaluation.preprocess = evaluation.preprocess.replace("resize(48)", f"resize(48)|{NOISE}")
        evaluation.every_steps = None
    config.evals.clean = dict(clean, every_steps=None)
    config.checkpoint = dict(every_steps=60, keep_last=1)
    return config


def begin(runs: list[str], share: float) -> dict:
    """model_init of a run, or of the mean of several; `share` is that of the second of two."""
    if not 0 <= share <= 1:
        raise BadInput(f"config argument share={share}: expected 0 to 1")
    if share != 0.5 and len(runs) != 2:
        raise BadInput(f"config argument share={share}: is for two runs, init=A+B")
    if len(runs) == 1:
        return dict(path=runs[0])
    return dict(soup=tuple(runs), weights=(1 - share, share) if len(runs) == 2 else ())
