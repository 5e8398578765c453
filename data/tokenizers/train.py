"""Trains a tokenizer on the texts of a data set, always to the same file.

python -m data.tokenizers.train --dataset=emoji --data_dir=.data

Beside the data set, in `tokenizer-<vocabulary size>.json`, unless --output says where. Any other
source is given as in a config: --source='{"name": "synthetic", "num_examples": 100}'.
"""

import argparse
import ast
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, get_args

import numpy as np
from etils import epath
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from data.sources import Source, open_source
from mm.config import BadInput, suggest

PAD, UNK, EOS = "[PAD]", "[UNK]", "[EOS]"
SPECIAL = [PAD, UNK, EOS]  # ids 0, 1, 2
Model = Literal["bpe", "wordpiece"]  # the library's Unigram differs from run to run
DEFAULT_VOCAB_SIZE = 4096
_BLOCK = 1024  # examples read at a time


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data.tokenizers.train", description="Trains a tokenizer on a data set."
    )
    parser.add_argument("--dataset", help="a prepared TFDS data set")
    parser.add_argument("--split", default="train", help="never one that is scored on")
    parser.add_argument("--data_dir", help="where data sets are")
    parser.add_argument("--source", help="any source, as a literal, instead of --dataset")
    parser.add_argument("--fields", default="label,tags", help="text fields, with commas")
    parser.add_argument("--vocab_size", type=int, default=DEFAULT_VOCAB_SIZE)
    parser.add_argument("--model", choices=get_args(Model), default="bpe")
    parser.add_argument("--output", help="the file to write")
    args = parser.parse_args(argv)
    try:
        source, output = _arguments(args)
        text = train(texts(source, args.fields.split(",")), args.vocab_size, args.model)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write(output, text)
    size = Tokenizer.from_str(text).get_vocab_size()
    print(f"{output}: {args.model}, {size} tokens, from {len(source)} examples")
    return 0


def _arguments(args: argparse.Namespace) -> tuple[Source, str]:
    """The source and the path to write."""
    if (args.dataset is None) == (args.source is None):
        raise BadInput("give one of --dataset and --source")
    if args.source is None:
        spec = {"name": "tfds", "dataset": args.dataset, "split": args.split}
        source = open_source(spec | {"data_dir": args.data_dir}, "--dataset")
    else:
        try:
            spec = ast.literal_eval(args.source)
        except (ValueError, SyntaxError) as error:
            raise BadInput(f"--source={args.source}: is no literal mapping") from error
        source = open_source(spec, "--source")
    if args.output:
        return source, args.output
    if not (args.dataset and args.data_dir):
        raise BadInput("give --output, or --dataset and --data_dir to write beside it")
    return source, path_beside(args.dataset, args.data_dir, args.vocab_size)


def path_beside(dataset: str, data_dir: str, vocab_size: int = DEFAULT_VOCAB_SIZE) -> str:
    """Where the tokenizer of a data set lies; `data.tokenizers.find` looks there."""
    return str(epath.Path(data_dir).expanduser() / dataset / f"tokenizer-{vocab_size}.json")


def texts(source: Source, fields: Sequence[str]) -> Iterator[str]:
    """All texts in `fields` (a text or a list of them), in the order of the source."""
    for field in fields:
        if field not in source.features or source.features[field].dtype != "text":
            have = [key for key, feature in source.features.items() if feature.dtype == "text"]
            raise BadInput(f"--fields: no text field {field!r}{suggest(field, have)} (have {have})")
    for start in range(0, len(source), _BLOCK):
        ids = np.arange(start, min(start + _BLOCK, len(source)))
        for record in source.read(ids, tuple(fields)):
            for field in fields:
                yield from record[field] if source.features[field].ragged else [record[field]]


def train(corpus: Iterable[str], vocab_size: int, model: Model = "bpe") -> str:
    """Returns a tokenizer.json; the same corpus gives the same, byte for byte.

    At most vocab_size tokens: special ones, then single characters, then merged ones. It ends each
    text with [EOS].
    """
    corpus = list(corpus)
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if model == "bpe":
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=SPECIAL, show_progress=False
        )
        tokenizer.train_from_iterator(corpus, trainer)
    else:
        tokenizer.model = _wordpiece(tokenizer, corpus, vocab_size)
        tokenizer.add_special_tokens(SPECIAL)
    if tokenizer.get_vocab_size() > vocab_size:
        raise BadInput(
            f"vocab_size={vocab_size}: the corpus has {tokenizer.get_vocab_size()} characters alone"
        )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, SPECIAL.index(EOS))]
    )
    return tokenizer.to_str(pretty=True)


def _wordpiece(tokenizer: Tokenizer, corpus: Sequence[str], vocab_size: int) -> models.WordPiece:
    """The library's trainer numbers "##a", "##b" in a random order unless it is told them first."""
    trained = Tokenizer(models.WordPiece(unk_token=UNK))
    trained.normalizer, trained.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    characters = sorted({c for text in corpus for c in tokenizer.normalizer.normalize_str(text)})
    inner = [f"##{c}" for c in characters if not c.isspace()]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL, *inner], show_progress=False
    )
    trained.train_from_iterator(corpus, trainer)
    return models.WordPiece(trained.get_vocab(), unk_token=UNK)


def write(path: str, text: str) -> None:
    """Atomic: a reader sees the old file, the new one or none."""
    target = epath.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}")
    part.write_text(text)
    part.replace(target)


if __name__ == "__main__":
    sys.exit(main())
