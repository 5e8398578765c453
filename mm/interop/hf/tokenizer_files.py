"""Tokenizers as transformers reads and writes them, both ways."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from data import tokenizers
from data.tokenizers import vocabularies
from data.tokenizers.huggingface import CLIP_WORDS, with_settings
from mm.config import BadInput
from mm.interop.bundle import Bundle
from mm.interop.json_files import read_json, read_text
from mm.runtime.workdir import write_json

_FILES = ("tokenizer.json", "spiece.model", "vocab.json", "vocab.txt")
_CONVERT = "write its tokenizer.json, by `AutoTokenizer.from_pretrained(...).save_pretrained(...)`"


def read_tokenizer(path: str, text: Mapping) -> str | None:
    """The tokenizer of a folder as JSON; None without one.

    Its tokenizer.json, sentencepiece model, or vocabulary as it was before (of CLIP, of BERT). With
    the id of padding that the config says, where the file itself has none. Raises BadInput for what
    cannot be read.
    """
    folder = Path(path)
    try:
        found = _found(folder)
        if found is None:
            return None
        spec, length = json.loads(found), max(3, text.get("length", 64))
        if (pad := _pad_id(folder, spec, text)) is not None:
            with contextlib.suppress(BadInput):  # it has no padding of its own
                pad = None if tokenizers.Tokenizer(found, length).pad_id == pad else pad
        if pad is not None:
            found = json.dumps(spec | {"settings": spec.get("settings", {}) | {"pad_id": pad}})
        tokenizers.Tokenizer(found, length)
    except (BadInput, ValueError) as error:
        raise BadInput(f"{path}: the tokenizer {error}") from error
    return found


def _found(folder: Path) -> str | None:
    there = {name for name in _FILES if (folder / name).is_file()}
    if "tokenizer.json" in there:
        return read_text(folder / "tokenizer.json")
    if "spiece.model" in there:
        return tokenizers.of_sentencepiece((folder / "spiece.model").read_bytes())
    if "vocab.json" in there:
        return _clip(read_json(folder / "vocab.json"), folder / "merges.txt")
    if "vocab.txt" in there:
        lowercase = _config(folder).get("do_lower_case", True)
        pieces = read_text(folder / "vocab.txt").removesuffix("\n").split("\n")
        if missing := {"[CLS]", "[SEP]", "[UNK]"} - set(pieces):
            raise BadInput(
                f"has no {min(missing)} in vocab.txt; expected one of BERT's; {_CONVERT}"
            )
        return vocabularies.bert(pieces, lowercase).to_str()
    return None


def _clip(vocabulary: dict[str, int], merges: Path) -> str:
    """That of vocab.json and merges.txt, if it is CLIP's: others of two such files split texts in
    another way."""
    if not set(vocabularies.CLIP_MARKS) <= vocabulary.keys():
        raise BadInput(f"has the vocab.json of another model than CLIP; {_CONVERT}")
    lines = read_text(merges).split("\n")
    pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    try:
        return vocabularies.clip(vocabulary, pairs, CLIP_WORDS, bytes_split=True).to_str()
    except Exception as error:  # the library raises bare Exceptions
        raise BadInput(f"has a vocab.json and a merges.txt that do not agree ({error})") from error


def _config(folder: Path) -> dict:
    path = folder / "tokenizer_config.json"
    return read_json(path) if path.is_file() else {}


def _pad_id(folder: Path, spec: Mapping, text: Mapping) -> int | None:
    if spec.get("padding"):
        return None
    added = {token["content"]: token["id"] for token in spec.get("added_tokens", [])}
    known = spec.get("model", {}).get("vocab", {})
    token = _config(folder).get("pad_token")
    if token is None and not (folder / "tokenizer.json").is_file():  # before, all CLIPs had one
        token = vocabularies.CLIP_MARKS[1]
    token = token.get("content") if isinstance(token, dict) else token
    if token in added:
        return added[token]
    if isinstance(known, dict) and token in known:
        return known[token]
    return text.get("pad_id")


def write_tokenizer(folder: Path, bundle: Bundle, processor: str | None) -> list[str]:
    """tokenizer.json and tokenizer_config.json, which a fast tokenizer reads; returns notes.

    Our settings become parts of the file. Raises BadInput for a sentencepiece model, which none is.
    """
    spec = json.loads(bundle.tokenizer_json)
    length = (bundle.manifest.get("text") or {}).get("length") or bundle.model["text"]["length"]
    facts = tokenizers.Tokenizer(bundle.tokenizer_json, length).manifest()
    settings = tokenizers.Settings(**spec.pop("settings", {}))
    if "sentencepiece" in spec:
        raise BadInput(
            "--format=hf: the tokenizer is a sentencepiece model, of which transformers' fast "
            "tokenizers read no file; train a tokenizer.json (`python -m data.tokenizers.train`)"
        )
    notes = []
    if settings.clean == "clip":
        notes.append("texts are expected as open_clip cleans them: ftfy and HTML's entities")
    spec = with_settings(spec, settings)
    pieces = _pieces(spec)
    before, after, pad = facts["ids_before"], facts["ids_after"], facts["pad_id"]
    for number in {*before, *after, pad}:  # marks that are no special tokens yet become such
        _special(spec, number, pieces[number])
    spec["post_processor"] = _template(before, after, pieces)
    spec["truncation"] = spec["padding"] = None
    roles = {"pad_token": pieces[pad]}
    if after:
        roles["eos_token"] = pieces[after[-1]]
    if before:
        roles["bos_token"] = pieces[before[0]]
    if unknown := spec["model"].get("unk_token"):
        roles["unk_token"] = unknown
    if "marks too" in facts["truncation"]:
        notes.append("of a text that is too long ours cut the end mark off, too; here it stays")
    write_json(folder / "tokenizer.json", spec)
    inputs = ["input_ids", "attention_mask"]
    if bundle.model["text"].get("padding") == "read":  # SigLIP's classes would mask it
        inputs.remove("attention_mask")
    config = dict(
        tokenizer_class="PreTrainedTokenizerFast", model_max_length=length, padding_side="right",
        truncation_side="right", clean_up_tokenization_spaces=False, split_special_tokens=True,
        model_input_names=inputs,
    )  # fmt: skip
    config |= roles | (dict(processor_class=processor) if processor else {})
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", roles)
    notes.append(f'call it with padding="max_length", truncation=True (max_length={length})')
    return notes


def _pieces(spec: Mapping) -> dict[int, str]:
    """Token by id."""
    vocabulary = spec["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram's
        found = {number: piece for number, (piece, _) in enumerate(vocabulary)}
    else:
        found = {number: piece for piece, number in vocabulary.items()}
    return found | {token["id"]: token["content"] for token in spec.get("added_tokens", [])}


def _special(spec: dict, number: int, piece: str) -> None:
    for token in spec.setdefault("added_tokens", []):
        if token["id"] == number:
            token["special"] = True
            return
    spec["added_tokens"].append(
        dict(
            id=number,
            content=piece,
            single_word=False,
            lstrip=False,
            rstrip=False,
            normalized=False,
            special=True,
        )  # fmt: skip
    )


def _template(before: list[int], after: list[int], pieces: Mapping[int, str]) -> dict | None:
    """A post-processor that puts the marks around a text."""
    if not before and not after:
        return None

    def mark(number: int) -> dict:
        return {"SpecialToken": {"id": pieces[number], "type_id": 0}}

    text = {"Sequence": {"id": "A", "type_id": 0}}
    single = [*map(mark, before), text, *map(mark, after)]
    second = [{"Sequence": {"id": "B", "type_id": 1}}, *map(mark, after)]
    names = {
        pieces[n]: {"id": pieces[n], "ids": [n], "tokens": [pieces[n]]} for n in (*before, *after)
    }
    return {
        "type": "TemplateProcessing", "single": single, "pair": [*single, *second],
        "special_tokens": names,
    }  # fmt: skip
