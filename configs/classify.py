"""Tasks with a head on the quick start's image tower: classes, several classes, sentiment, numbers.

  make quickstart
  python main.py --config=configs/classify.py:variant=group --workdir=workdirs/group

`group` and `subgroup`: the eight groups and 95 subgroups of emoji; `sentiment`: faces, positive,
neutral or negative by their subgroup; `tags`: which of the 64 most frequent keywords fit, any
number of them; `score`: a number a picture, on lines of your own (docs/tasks.md), path=rated.jsonl;
`digits` and `mnist`: ten digits that `python -m data.builders.digits --data_dir=.data` (or .mnist)
has prepared. `init` is the run that the tower comes from, none: it begins from nothing. `train` are
the quick start's seven vendors, `seen` and `unseen` the pictures of the eighth, of concepts that
were trained on and of others; `test` a fifth of the digits.

`method` is what is trained beside the head: `full`, all of the tower; `probe`, nothing of it, so
that the head is a linear probe of its pooled vector; `lora`, `adapter`, `vpt`, what these add to it
(docs/finetuning.md). Learning rates are of configs/ablations/classification_rates.py for subgroups,
otherwise nothing was tuned.
"""

from ml_collections import ConfigDict

from configs.finetune import ADAPTER, LORA, VPT
from configs.quickstart import EMOJI
from configs.quickstart import get_config as quickstart
from configs.siglip import named_variant
from mm.config import BadInput, parse_arg

GROUPS = (
    "smileys-emotion", "people-body", "animals-nature", "food-drink", "travel-places",
    "activities", "objects", "symbols",
)  # fmt: skip
SENTIMENT = {
    "positive": ["face-smiling", "face-affection", "face-tongue"],
    "neutral": ["face-neutral-skeptical"],
    "negative": ["face-concerned", "face-negative", "face-unwell"],
}
FOLDER = "data/builders/emoji"
DIGITS = "data/builders/digits.json"
SOFTMAX = dict(name="classification", label_smoothing=0.1)
SIGMOID = dict(name="classification", kind="sigmoid")
# method -> its learning rate, and what config.adapt adds
METHODS = {
    "full": (1e-4, None),
    "probe": (3e-4, None),
    "lora": (3e-4, LORA),
    "adapter": (3e-4, ADAPTER),
    "vpt": (3e-4, VPT),
}


def of_groups(label: str, num_classes: int, **objective) -> dict:
    """A variant on all of emoji but flags and skin tones."""
    objective = dict(num_classes=num_classes, **objective)
    return dict(only={"group": GROUPS}, label=label, objective=objective, best="accuracy")


def of_digits(dataset: str) -> dict:
    """A variant on handwritten digits, which are white on black and not mirrored."""
    return dict(
        dataset=dataset,
        augment="decode|pad(0.1, 0)"
        "|random_resized_crop(48, scale=(0.44, 0.92), ratio=(0.82, 1.22))",
        label=f'label("label", classes="{DIGITS}")',
        objective=dict(SOFTMAX, num_classes=10),
        best="accuracy",
    )


VARIANTS = {
    "group": of_groups(f'label("group", classes={GROUPS})', 8, **SOFTMAX),
    "subgroup": of_groups(f'label("subgroup", classes="{FOLDER}/subgroups.json")', 95, **SOFTMAX),
    "tags": of_groups(f'labels("tags", classes="{FOLDER}/tags.json", others=True)', 64, **SIGMOID)
    | dict(best="mean_average_precision"),
    "sentiment": dict(
        only={"subgroup": tuple(name for names in SENTIMENT.values() for name in names)},
        label=f'label("subgroup", classes={SENTIMENT})',
        objective=dict(SOFTMAX, num_classes=3),
        best="accuracy",
    ),
    "score": dict(
        label='numbers("score", 1, "target")', objective=dict(name="regression"), best=None
    ),
    "digits": of_digits("digits"),
    "mnist": of_digits("mnist_5k"),
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "variant=group,method=full,init=WORKDIR,path=rated.jsonl", optional."""
    given = parse_arg(
        arg, variant="group", method="full", init="workdirs/quickstart", path="rated.jsonl"
    )
    variant = named_variant(VARIANTS, given)
    method = given["method"]
    if method not in METHODS:
        raise BadInput(f"config argument method={method}: expected one of {list(METHODS)}")
    learning_rate, adaptation = METHODS[method]
    config = quickstart()
    augment = variant.get("augment") or config.input.preprocess.partition("|caption")[0]
    config.total_steps = 240
    config.global_batch_size = 256
    tower = dict(path=given["init"], parameters=("model/image/.*",))
    config.model_init = None if given["init"] == "none" else tower
    config.model = dict(image=config.model.image)
    task = variant["objective"]["name"]
    config.objectives = {task: variant["objective"]}
    config.adapt = {method: adaptation} if adaptation else {}
    if method == "probe":
        config.optimizer.trainable = ("objectives/.*",)
    config.optimizer.learning_rate = learning_rate
    config.optimizer.schedule.warmup_steps = 25

    def part(source: dict, ops: str) -> dict:
        return dict(source=source, preprocess=f"{ops}|{variant['label']}")

    train, tests = find_sources(variant, given)
    config.input = part(train, augment)
    config.evals = {
        split: dict(name=task, batch_size=256, every_steps=80, **part(test, "decode|resize(48)"))
        for split, test in tests.items()
    }
    best = variant["best"] and f"{next(iter(tests))}/{variant['best']}"
    config.checkpoint = dict(every_steps=80, keep_last=1, keep_best=best)
    return config


def find_sources(variant: dict, given: dict) -> tuple[dict, dict[str, dict]]:
    """What is trained on, and what is judged by: of emoji, of digits, or of one's own lines."""
    if "only" in variant:
        emoji = dict(only=variant["only"], **EMOJI)
        return dict(split="train", **emoji), {x: dict(split=x, **emoji) for x in ("seen", "unseen")}
    if "dataset" in variant:
        digits = EMOJI | dict(dataset=variant["dataset"])
        return dict(split="train", **digits), {"test": dict(split="test", **digits)}
    lines = dict(name="jsonl", path=given["path"])
    return dict(lines, last=0.9), {"held_out": dict(lines, first=0.9)}
