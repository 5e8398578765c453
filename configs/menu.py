"""Any fusion with any objectives, small, on the emoji data set: an ablation for a laptop's CPU.

  python main.py --workdir=workdirs/menu \\
    --config=configs/menu.py:fusion=cross,objectives=contrastive+matching+masked_text_fused

`fusion` is one of FUSIONS, `objectives` some of OBJECTIVES, joined by +; each brings what it needs
of the model and of the data. One Transformer block a tower, one or two in the fusion. Nothing was
tuned: it compares, it does not win. `shrink` makes the same of a recipe, as
`configs/albef.py:variant=tiny`.
"""

import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs.classify import GROUPS
from configs.pairs import ARGUMENTS, SQUASH, add_pairs
from configs.quickstart import EMOJI
from configs.siglip import find_variant
from mm.config import BadInput, parse_arg

IMAGE_SIZE, PATCH_SIZE, LENGTH = 48, 12, 16
STACK = dict(width=128, depth=1, num_heads=4, mlp_dim=256)
DEEPER = STACK | dict(depth=2)  # of fusions whose first block does not reach all tokens
FUSIONS: dict[str, Mapping | None] = {
    "none": None,
    "early": dict(name="early", **STACK),
    "concatenate": dict(name="late", kind="concatenate"),
    "sum": dict(name="late", kind="sum", width=128),
    "gated": dict(name="late", kind="gated", width=128),
    "bilinear": dict(name="late", kind="bilinear", width=128),
    "weighted": dict(name="late", kind="weighted", width=128),
    "hierarchical": dict(name="hierarchical", **STACK),
    "cross": dict(name="cross", **STACK),
    "cross_image": dict(name="cross", queries="image", **STACK),
    "coattention": dict(name="coattention", **STACK),
    "guided": dict(name="guided", **STACK),
    "bottleneck": dict(name="bottleneck", **DEEPER),
    "resampler": dict(name="resampler", queries=8, **DEEPER),
    "multiway": dict(name="multiway", **STACK),
}
MAE_DECODER = dict(width=64, depth=1, num_heads=4)
OBJECTIVES: dict[str, dict] = {
    "contrastive": dict(name="contrastive", kind="softmax"),
    "sigmoid": dict(name="contrastive", kind="sigmoid"),
    "momentum": dict(name="momentum", queue_size=2048),
    "matching": dict(name="matching"),
    "next_text": dict(name="next_text"),
    "masked_text": dict(name="masked_text"),
    "masked_text_fused": dict(name="masked_text", context="fused"),
    "mae": dict(name="mae", decoder=MAE_DECODER),
    "mae_fused": dict(name="mae", context="fused", decoder=MAE_DECODER),
    "beit": dict(name="beit", num_codes=256),
    "beit_learned": dict(name="beit", targets="learned", num_codes=256),
    "beit_fused": dict(name="beit", context="fused", num_codes=256, ratio=0.75),
    "captioning": dict(name="captioning"),
    "prefix": dict(name="captioning", prefix=True),
    "parallel": dict(name="captioning", parallel=0.75),
    "simclr": dict(name="simclr", hidden=512, out=128),
    "text_views": dict(
        name="simclr", tower="text", spans=0.3, special=(2,), same="group", hidden=512, out=128
    ),
    "self_distillation": dict(
        name="self_distillation", views=("one", "two"), view_size=IMAGE_SIZE, replace=0.4,
        prototypes=256, hidden=256, bottleneck=64,
    ),
    "response": dict(name="response_distillation"),
    "feature": dict(name="feature_distillation"),
    "adversarial": dict(name="adversarial", weight=0.1),
    "cycle": dict(name="cycle", weight=0.1),
    "tied": dict(
        name="tied", one="image/encoder/blocks", other="text/encoder/blocks", weight=0.01
    ),
    "classes": dict(name="classification", num_classes=len(GROUPS)),
    "classes_fused": dict(name="classification", of="fused", num_classes=len(GROUPS)),
    "prompts": dict(name="prompt_contrastive"),
}  # fmt: skip
TEACHES = ("momentum", "self_distillation", "response", "feature")
CLASSES = {"classes", "classes_fused"}
WORDS = ("masked_text", "masked_text_fused")
TAGS = 'caption("label", "tags", max_tags=2, separator=" ")'
LABEL = 'caption("label")'
TEMPLATES = ("{}", "a drawing of {}", "the sign for {}", "{} in a message")
CROP = "random_resized_crop(48, scale=(0.44, 0.92), ratio=(0.82, 1.22))|flip|color_jitter(0.3)"


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `arg`: "fusion=cross,objectives=contrastive+matching"."""
    given = parse_arg(arg, fusion="none", objectives="contrastive")
    names = given["objectives"].split("+")
    for kind, known, found in (("fusion", FUSIONS, [given["fusion"]]), ("", OBJECTIVES, names)):
        for name in found:
            if name not in known:
                raise BadInput(f"config argument {kind or 'objectives'}={name}: have {list(known)}")
    config = ConfigDict()
    config.seed = 0
    config.total_steps = 600
    config.global_batch_size = 128
    config.model = dict(
        image=dict(
            name="vit",
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            stem=dict(name="cells", cell_size=4, cell_width=64, hidden=256),
            pool="mean",
            mask_token=True,
            **STACK,
        ),
        text=dict(
            name="transformer", vocab_size=4096, length=LENGTH, pool="mean", segments=2,
            mask_token=True, **STACK,
        ),
        embed_dim=128,
        fusion=FUSIONS[given["fusion"]],
        decoder=None,
    )  # fmt: skip
    captions = [name for name in names if OBJECTIVES[name]["name"] == "captioning"]
    if captions:
        config.model.decoder = dict(
            name="transformer", inputs="shared_words", head="tied", mask_token=True, **STACK
        )
    config.objectives = {name: OBJECTIVES[name] for name in names}
    config.teacher = dict(name="average", decay=0.98) if set(names) & set(TEACHES) else None
    config.optimizer = dict(
        name="adamw",
        learning_rate=1e-3,
        b2=0.98,
        weight_decay=0.05,
        schedule=dict(name="cosine", warmup_steps=20),
    )
    config.sharding = dict(mesh=dict(replica=1, fsdp=-1, tensor=1), rules="dp")
    only = dict(only={"group": GROUPS}) if CLASSES & set(names) else {}
    config.input = dict(
        source=dict(split="train", **only, **EMOJI), preprocess=preprocess(names, CROP, TAGS)
    )
    add_evals(config, preprocess(names, "resize(48)", LABEL))
    config.checkpoint = dict(every_steps=300, keep_last=1)
    config.log = dict(every_steps=10, gradients_every_steps=None)
    return config


def preprocess(names: list[str], image: str, caption: str) -> str:
    """What the objectives read of an example."""
    ops = ["decode"]
    if {"simclr", "self_distillation"} & set(names):
        ops += [f'view("{name}", "{CROP}")' for name in ("one", "two")]
    ops += [image]
    if "next_text" in names:
        for name, text in (("first", LABEL), ("second", 'caption("label", "tags", p_label=0.0)')):
            ops += [text, f'tokenize("emoji", {LENGTH // 2})', f'keep_text("{name}")']
    if "prompts" in names:
        for name in ("one", "two"):
            prompt = f"{LABEL}|template({TEMPLATES})"
            ops += [prompt, f'tokenize("emoji", {LENGTH})', f'keep_text("{name}")']
    # What is made has the names of what is read: captions read `label`, classes `group`.
    classes = [f'label("group", classes={GROUPS})'] if CLASSES & set(names) else []
    words = ", words=True" if set(WORDS) & set(names) else ""
    ops += [caption, f'tokenize("emoji", {LENGTH}{words})', *classes, 'group("concept")']
    return "|".join(ops)


def judge_matching(config: ConfigDict, first: int, name: str) -> None:
    """Evaluates the matching head, if there is one, on the source of the evaluation `name`.

    By itself, and if that is retrieval, where it ranks the first so many.
    """
    if all(objective.name != "matching" for objective in config.objectives.values()):
        return
    given = config.evals[name]
    if given.name == "retrieval":
        given.rerank = first
    keys = ("source", "preprocess", "batch_size", "every_steps")
    config.evals.matching = dict(name="matching", **{k: given[k] for k in keys if k in given})


def add_evals(config: ConfigDict, ops: str, batch_size: int = 256) -> None:
    """Retrieval of both splits, if there are embeddings, and the losses of unseen pairs.

    `shuffled` are the same pictures with the texts of others.
    """
    config.evals = {}
    parts = dict(seen={}, unseen={}) if "embed_dim" in config.model else {}
    for split in parts:
        config.evals[split] = dict(name="retrieval", batch_size=batch_size)
    for name in ("losses", "shuffled"):
        config.evals[name] = dict(name="losses", batch_size=64, shuffled=name == "shuffled")
    for name, evaluation in config.evals.items():
        split = name if name in parts else "unseen"
        evaluation.update(source=dict(split=split, **EMOJI), preprocess=ops)
    judge_matching(config, 16, "unseen" if parts else "losses")


def pod(name: str, replica: int) -> dict:
    """A pod in so many groups of chips, which keep whole rows of a parameter (docs/scale.md)."""
    return dict(pod=name, mesh=dict(replica=replica, fsdp=-1, tensor=1), rules="hsdp")


# As few chips as hold the recipe's batch: with less than some 64 examples a chip what goes over the
# wire, and objectives that pass rows around the ring of chips, take longer than the towers.
V5E_16, V5E_32, V5E_64, V5E_128 = (
    pod(name, replica)
    for name, replica in (("v5e:4x4", 2), ("v5e:4x8", 4), ("v5e:8x8", 4), ("v5e:8x16", 8))
)
V5P_128 = pod("v5p:4x4x8", 16)
TINY_VARIANT = dict(image=IMAGE_SIZE, patch_size=PATCH_SIZE)


def assemble(
    given: Mapping,
    variant: Mapping,
    *,
    total_examples: int,
    batch_size: int,
    length: int,
    model: Mapping,
    objectives: Mapping,
    optimizer: Mapping,
    teacher: Mapping | None = None,
    **data: Any,
) -> ConfigDict:
    """A recipe on pairs of one's own (`data` goes to `add_pairs`), or on emoji if it is tiny."""
    for key, default in ARGUMENTS.items():
        if given["variant"] == "tiny" and given[key] != default:
            raise BadInput(
                f"config argument {key}={given[key]}: variant=tiny is for the emoji data set; "
                "leave it out, or take another variant and set its sizes"
            )
    config = ConfigDict()
    config.pod = variant["pod"]
    config.seed = 0
    config.total_steps = total_examples // batch_size
    config.global_batch_size = batch_size
    config.model = dict(dtype="bfloat16", **model)
    config.objectives, config.teacher = objectives, teacher
    config.optimizer = dict(name="adamw", **optimizer)
    config.sharding = dict(mesh=variant["mesh"], rules=variant["rules"])
    add_pairs(config, given, length, batch_size=512, **data)
    judge_matching(config, 128, "held_out")  # as many as ALBEF on Flickr30K
    augment = data.get("augment", SQUASH).format(image=given["image"])
    return shrink(config, augment) if given["variant"] == "tiny" else config


def parse(arg: str, variants: Mapping) -> tuple[dict, dict]:
    """(what is given, the variant that it names) of "variant=B/16,image=224,path=...,...", which
    are all optional; the first variant is the default."""
    given = parse_arg(arg, variant=next(iter(variants)), image=0, **ARGUMENTS)
    return given, find_variant(variants, given)


# What `shrink` makes of the numbers of a recipe; one that is smaller already stays.
TINY = dict(
    width=128, depth=2, num_heads=4, mlp_dim=256, vocab_size=4096, length=LENGTH, embed_dim=128,
    image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, queue_size=2048, num_codes=256, prototypes=256,
    hidden=256, bottleneck=64, out=64, queries=8, view_size=32, global_batch_size=256,
    total_steps=300, warmup_steps=30, cooldown_steps=270, every_steps=300, from_step=100,
    alpha_warmup_steps=30, unroll=1,
)  # fmt: skip
PLAIN = dict(remat="none", dtype="float32", moment_dtype="float32", learning_rate=1e-3)


def shrink(config: ConfigDict, augment: str) -> ConfigDict:
    """A recipe at the size of the menu, on the emoji data set, otherwise as it is.

    It is evaluated on whole pictures, without the ops `augment`.
    """
    with config.unlocked():
        config.pod = None
        resize(config, TINY, PLAIN)
        config.sharding = dict(mesh=dict(replica=1, fsdp=-1, tensor=1), rules="dp")
        ops = re.sub(
            r"tokenize\([^,]+, \d+", f'tokenize("emoji", {LENGTH}', config.input.preprocess
        )
        ops = ops.replace('group("caption")', 'group("concept")')
        caption = 'caption("caption")'
        config.input = dict(
            source=dict(split="train", **EMOJI), preprocess=ops.replace(caption, TAGS)
        )
        whole = ops.replace(augment, SQUASH.format(image=IMAGE_SIZE))
        add_evals(config, whole.replace(caption, LABEL))
        config.checkpoint = dict(every_steps=300, keep_last=1)
        config.log = dict(every_steps=10)
    return config


def resize(node: ConfigDict, sizes: Mapping, values: Mapping) -> None:
    """Numbers under these keys become at most `sizes`, others become `values`, at any depth."""
    for key, value in node.items():
        if isinstance(value, ConfigDict):
            resize(value, sizes, values)
        elif key == "depth" and node.get("name") == "resnet":
            continue  # names its kind
        elif key in sizes and isinstance(value, int):
            node[key] = min(value, sizes[key])
        elif key in values:
            node[key] = values[key]
