"""BertModel and BertForMaskedLM of transformers."""

from collections.abc import Mapping

from mm.config import BadInput
from mm.interop.hf.blocks import BERT as BLOCK
from mm.interop.hf.family import (
    Family,
    Spec,
    integer,
    need,
    only,
    pad_id,
    stack,
    their_stack,
    their_words,
    words,
)
from mm.interop.options import Options
from mm.interop.tables import Table, blocks, linear, norm, same, under

_BERT = dict(
    vocab_size=30_522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
    intermediate_size=3072, hidden_act="gelu", max_position_embeddings=512, type_vocab_size=2,
    layer_norm_eps=1e-12, pad_token_id=0,
)  # fmt: skip
_POOLER = "pooler.dense"
_HEAD = "cls.predictions"


def embeddings(theirs: str, ours: str = "", segments: bool = True) -> Table:
    """The embeddings of BERT and their norm."""
    table = (
        same(f"{theirs}.word_embeddings.weight", f"{ours}embedding")
        | same(f"{theirs}.position_embeddings.weight", f"{ours}position_embedding")
        | norm(f"{theirs}.LayerNorm", f"{ours}pre_norm")
    )
    if segments:
        table |= same(f"{theirs}.token_type_embeddings.weight", f"{ours}segment_embedding")
    return table


def bert_tower(depth: int, prefix: str = "bert.") -> Table:
    """BERT, without a head."""
    return embeddings(f"{prefix}embeddings") | blocks(
        f"{prefix}encoder.layer", "encoder/blocks", depth, BLOCK
    )


def masked_head() -> Table:
    """What tells masked words; it ends in the table of words."""
    return (
        linear(f"{_HEAD}.transform.dense", "transform")
        | norm(f"{_HEAD}.transform.LayerNorm", "norm")
        | same(f"{_HEAD}.bias", "bias")
    )


def _table(options: Options) -> Table:
    keys, name = options.part("text"), options.objective("masked_text")
    prefix = "" if name is None else "bert."
    table = under("model/text", bert_tower(keys["depth"], prefix))
    if keys["pooler"]:
        table |= under("model/text", linear(prefix + _POOLER, "pooler/layer"))
    return table if name is None else table | under(f"objectives/{name}/head", masked_head())


def _read(config: Mapping, names: frozenset[str]) -> Spec:
    config = _BERT | config
    only(
        config, "BertModel", position_embedding_type="absolute", is_decoder=False,
        add_cross_attention=False, tie_word_embeddings=True,
    )  # fmt: skip
    tower = stack(config)
    pooler = any(name.endswith(f"{_POOLER}.weight") for name in names)
    more = dict(segments=integer(config, "type_vocab_size"), pre_norm=True, norm_placement="post")
    text = words(config) | dict(pool="first", pooler=pooler) | more | tower
    facts = dict(pad_id=config["pad_token_id"], length=text["length"])
    if f"{_HEAD}.bias" not in names:
        return Spec(dict(text=text), {}, facts)
    head = dict(activation=tower["activation"], norm_epsilon=tower["norm_epsilon"])
    # Which id is the mask only a tokenizer says: `mm.interop.hf.read` asks it.
    objective = dict(name="masked_text", mask_id=0, **head)
    return Spec(dict(text=text), dict(masked_text=objective), facts)


def _write(options: Options, text: Mapping) -> dict:
    need(options, "BertModel", "text")
    keys, name = options.part("text"), options.objective("masked_text")
    for key in ("activation", "norm_epsilon") if name else ():
        if (own := options.settings[f"{name}.{key}"]) != keys[key]:
            raise BadInput(
                f"BertForMaskedLM: {name}.{key}={own!r} has no counterpart there; expected that of "
                f"the tower, {keys[key]!r}"
            )
    config = their_words(keys) | their_stack(keys)
    more = dict(type_vocab_size=max(1, keys["segments"]), pad_token_id=pad_id(text))
    return config | more | dict(is_decoder=False, add_cross_attention=False)


BERT = Family("BertModel", "bert", _table, _read, _write, ("BertForMaskedLM",), "bert.")
