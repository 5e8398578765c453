"""Trains a tokenizer on the texts of a data set, always to the same file.

python -m data.tokenizers.train --dataset=emoji --data_dir=.data

Beside the data set, in `tokenizer-<vocabulary size>.json`, unless --output says where. Any other
source is given by its path, --source=pairs.csv --fields=title, or as in a config,
--source='{"name": "synthetic", "num_examples": 100}'; text files have a text a line:
--source='corpus-{00..15}.txt'.
"""

import argparse
import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, get_args

import numpy as np
from etils import epath
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from data import files, tokenizers
from data.sources import BadExample, Source, open_source, read_each
from data.sources.guess import parse_source
from mm.config import BadInput, suggest

PAD, UNK, EOS = "[PAD]", "[UNK]", "[EOS]"
SPECIAL = [PAD, UNK, EOS]  # ids 0, 1, 2
# `tokenizers` has a Unigram too, which differs from run to run.
Model = Literal["bpe", "wordpiece", "sentencepiece_unigram", "sentencepiece_bpe"]
DEFAULT_VOCAB_SIZE = 4096
_BLOCK = 1024  # examples read at a time
_THREADS = 4  # of sentencepiece, whose sums depend on how many there are
_RESERVED = "\u2585"  # a block; sentencepiece would leave out texts that hold it
_LONGEST = 1 << 30  # bytes; sentencepiece would leave out longer texts


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data.tokenizers.train", description="Trains a tokenizer on a data set."
    )
    parser.add_argument("--dataset", help="a prepared TFDS data set")
    parser.add_argument("--split", help="of the data set (default: train); never one scored on")
    parser.add_argument("--data_dir", help="where data sets are")
    parser.add_argument("--source", help="a path or any source as a literal, instead of --dataset")
    parser.add_argument("--fields", default="label,tags", help="text fields, with commas")
    parser.add_argument("--vocab_size", type=int, default=DEFAULT_VOCAB_SIZE)
    parser.add_argument("--model", choices=get_args(Model), default="bpe")
    parser.add_argument("--output", help="the file to write")
    args = parser.parse_args(argv)
    try:
        corpus, output = _arguments(args)
        corpus = list(corpus)
        text = train(corpus, args.vocab_size, args.model)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    files.write(output, text.encode())
    size = tokenizers.Tokenizer(text, 3).vocab_size
    print(f"{output}: {args.model}, {size} tokens, from {len(corpus)} texts")
    return 0


def _arguments(args: argparse.Namespace) -> tuple[Iterator[str], str]:
    """The texts and the path to write."""
    if (args.dataset is None) == (args.source is None):
        raise BadInput("give one of --dataset and --source")
    for name in ("split", "data_dir"):
        if args.source is not None and getattr(args, name) is not None:
            raise BadInput(
                f"--{name}={getattr(args, name)}: goes with --dataset; --source has its own"
            )
    if not args.output and not (args.dataset and args.data_dir):
        raise BadInput("give --output, or --dataset and --data_dir to write beside it")
    output = args.output or path_beside(args.dataset, args.data_dir, args.vocab_size)
    if args.source is None:
        spec = {"name": "tfds", "dataset": args.dataset, "split": args.split or "train"}
        source = open_source(spec | {"data_dir": args.data_dir}, "--dataset")
        return texts(source, args.fields.split(",")), output
    ending = os.path.splitext(args.source)[1].lower()
    if ending in ("", ".txt") and "{" not in args.source[:1] and not os.path.isdir(args.source):
        return lines(args.source), output
    source = open_source(parse_source(args.source, "--source", image_key=None), "--source")
    return texts(source, args.fields.split(",")), output


def path_beside(dataset: str, data_dir: str, vocab_size: int = DEFAULT_VOCAB_SIZE) -> str:
    """Where the tokenizer of a data set lies; `data.tokenizers.find` looks there."""
    return str(epath.Path(data_dir).expanduser() / dataset / f"tokenizer-{vocab_size}.json")


def texts(source: Source, fields: Sequence[str]) -> Iterator[str]:
    """All texts in `fields` (a text or a list of them), in the order of the source.

    Examples that are broken are left out, and counted on the console.
    """
    for field in fields:
        if field not in source.features or source.features[field].dtype != "text":
            have = [key for key, feature in source.features.items() if feature.dtype == "text"]
            raise BadInput(f"--fields: no text field {field!r}{suggest(field, have)} (have {have})")
    broken = 0
    for start in range(0, len(source), _BLOCK):
        ids = np.arange(start, min(start + _BLOCK, len(source)))
        for record in read_each(source, ids, tuple(fields)):
            if isinstance(record, BadExample):
                broken += 1
                continue
            for field in fields:
                yield from record[field] if source.features[field].ragged else [record[field]]
    if broken:
        print(f"note: {broken:,} of {len(source):,} examples are broken", file=sys.stderr)


def lines(pattern: str) -> Iterator[str]:
    """The lines of text files (UTF-8) that are not blank; see `data.files.expand`."""
    for path in files.expand(os.path.expanduser(pattern)):
        try:
            content = files.read(path).decode()
        except UnicodeDecodeError as error:
            raise BadInput(f"{path}: is no UTF-8 ({error})") from error
        yield from (line for line in content.split("\n") if line.strip())


def train(corpus: Iterable[str], vocab_size: int, model: Model = "bpe") -> str:
    """Returns a tokenizer's JSON; the same corpus gives the same, byte for byte.

    At most vocab_size tokens: special ones, then single characters, then merged ones (those of
    sentencepiece in an order of their own). It lowercases texts and ends each with [EOS].
    """
    corpus = [tokenizers.well_formed(text) for text in corpus]
    if model.startswith("sentencepiece_"):
        return _sentencepiece(corpus, vocab_size, model.removeprefix("sentencepiece_"))
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


def _sentencepiece(corpus: Sequence[str], vocab_size: int, kind: str) -> str:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sorted(text.replace(_RESERVED, " ") for text in corpus)),
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            hard_vocab_limit=False,  # a small corpus has fewer
            character_coverage=1.0,
            normalization_rule_name="nmt_nfkc_cf",  # with the case folded
            max_sentence_length=_LONGEST,
            pad_id=SPECIAL.index(PAD),
            unk_id=SPECIAL.index(UNK),
            eos_id=SPECIAL.index(EOS),
            bos_id=-1,
            pad_piece=PAD,
            unk_piece=UNK,
            eos_piece=EOS,
            num_threads=_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"vocab_size={vocab_size}: sentencepiece cannot train ({reason})") from error
    return tokenizers.of_sentencepiece(model.getvalue())


if __name__ == "__main__":
    sys.exit(main())
