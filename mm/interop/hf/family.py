"""What a class of transformers is to us: its config and its weights, both ways."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mm.config import BadInput
from mm.interop.options import Options
from mm.interop.tables import Table

# Theirs and ours; where two of theirs are the same function, the last is written.
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu_squared",
    "swish": "silu",
    "silu": "silu",
}
_MOST = {"num_hidden_layers": 1024}  # a larger number is a damaged file, not a model
_MOST_OF_OTHERS = 1 << 24


class Spec(NamedTuple):
    """A model as a family's config says it: config.model, config.objectives, facts of the text."""

    model: dict
    objectives: dict
    text: dict  # as `Bundle.manifest["text"]`, what is known of it


class Family(NamedTuple):
    """One class. fixed(options): weights that the class has and that are no parameters of ours.

    read(config, names of weights): Raises BadInput for what has no counterpart. write(options, text
    facts) -> config; it may lose keys, since whoever calls it reads the result back and compares.
    names: other classes whose weights are read, too.
    """

    name: str
    model_type: str
    table: Callable[[Options], Table]
    read: Callable[[Mapping, frozenset[str]], Spec] | None = None
    write: Callable[[Options, Mapping], dict] | None = None
    names: tuple[str, ...] = ()
    prefix: str = ""  # that all weights of another class of `names` may have or lack
    fixed: Callable[[Options], dict] = lambda options: {}


def integer(config: Mapping, key: str) -> int:
    """A size of a config. Raises BadInput for one that is none, or absurd."""
    value = config.get(key)
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    most = _MOST.get(key, _MOST_OF_OTHERS)
    if type(value) is not int or not 0 < value <= most:
        raise BadInput(f"{key}={value!r}: expected a number from 1 to {most:,}")
    return value


def only(config: Mapping, what: str, **values: Any) -> None:
    """Raises BadInput for a key with another value than the one that has a counterpart."""
    for key, value in values.items():
        if config.get(key, value) != value:
            raise BadInput(
                f"{what}: {key}={config[key]!r} has no counterpart here; expected {value!r}"
            )


def stack(config: Mapping) -> dict:
    """The keys of our `EncoderSpec`."""
    activation = config["hidden_act"]
    if activation not in ACTIVATIONS:
        raise BadInput(f"hidden_act={activation!r}: expected one of {sorted(ACTIVATIONS)}")
    return dict(
        width=integer(config, "hidden_size"),
        depth=integer(config, "num_hidden_layers"),
        num_heads=integer(config, "num_attention_heads"),
        mlp_dim=integer(config, "intermediate_size"),
        activation=ACTIVATIONS[activation],
        norm_epsilon=float(config["layer_norm_eps"]),
    )


def their_stack(keys: Mapping[str, Any]) -> dict:
    """The inverse of `stack`."""
    theirs = {ours: name for name, ours in ACTIVATIONS.items()}
    return dict(
        hidden_size=keys["width"],
        num_hidden_layers=keys["depth"],
        num_attention_heads=keys["num_heads"],
        intermediate_size=keys["mlp_dim"],
        hidden_act=theirs[keys["activation"]],
        layer_norm_eps=keys["norm_epsilon"],
    )


def picture(config: Mapping) -> dict:
    """The keys of a ViT that say what it reads."""
    return dict(
        name="vit",
        image_size=integer(config, "image_size"),
        patch_size=integer(config, "patch_size"),
        channels=integer({"num_channels": 3} | config, "num_channels"),
    )


def their_picture(keys: Mapping[str, Any]) -> dict:
    """The inverse of `picture`."""
    return dict(
        image_size=keys["image_size"][0],
        patch_size=keys["patch_size"],
        num_channels=keys["channels"],
    )


def words(config: Mapping) -> dict:
    """The keys of a text tower that say what it reads."""
    return dict(
        name="transformer",
        vocab_size=integer(config, "vocab_size"),
        length=integer(config, "max_position_embeddings"),
    )


def their_words(keys: Mapping[str, Any]) -> dict:
    """The inverse of `words`."""
    return dict(vocab_size=keys["vocab_size"], max_position_embeddings=keys["length"])


def need(options: Options, what: str, *parts: str) -> None:
    """Raises BadInput unless the model has these towers and no other."""
    own = {part for part in ("image", "text") if options.has(part)}
    if own != set(parts):
        raise BadInput(f"{what}: is of {' and '.join(parts)}, the model of {' and '.join(own)}")
    for part, key in (("image", "patch_size"), ("text", "vocab_size")):
        if part in own and key not in options.part(part):
            raise BadInput(f"{what}: needs a Transformer in config.model.{part}")


def pad_id(text: Mapping) -> int | None:
    """What a tokenizer fills up with, as transformers' configs say it."""
    return text.get("pad_id")
