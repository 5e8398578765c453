"""Tokenizers from vocabularies as they were before tokenizer.json: CLIP's and BERT's."""

from collections.abc import Mapping, Sequence

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

CLIP_MARKS = ("<|startoftext|>", "<|endoftext|>")
_BERT_MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def clip(
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    pattern: str,
    bytes_split: bool,
) -> Tokenizer:
    """CLIP's byte pairs (Radford et al. 2021, arXiv 2103.00020), with both marks around a text.

    pattern: the regular expression of a word; bytes_split: whether what matches is split once more,
    as GPT-2 splits.
    """
    start, end = CLIP_MARKS
    tokenizer = Tokenizer(
        models.BPE(dict(vocabulary), list(merges), end_of_word_suffix="</w>", unk_token=end)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=bytes_split),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False) for mark in CLIP_MARKS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(mark, vocabulary[mark]) for mark in CLIP_MARKS]
    )
    return tokenizer


def bert(pieces: Sequence[str], lowercase: bool = True) -> Tokenizer:
    """BERT's WordPiece (Devlin et al. 2018, arXiv 1810.04805): [CLS] text [SEP]."""
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(_BERT_MARKS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(mark, vocabulary[mark]) for mark in ("[CLS]", "[SEP]")],
    )
    return tokenizer
