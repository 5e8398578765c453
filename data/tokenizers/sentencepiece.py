"""Tokenizers of sentencepiece: the .model files of T5, SigLIP, Gemma and many others."""

import base64

import numpy as np
import sentencepiece

from data.tokenizers import Tokens
from mm.config import BadInput

_SPACE = "\u2581"  # stands for a space at the start of a piece


class SentencePiece:
    """See `data.tokenizers.Model`; encoded is the .model file in base64.

    There is no start mark unless one is asked for, an end mark if the file has one. Words are what
    stands between spaces.
    """

    def __init__(self, encoded: str):
        try:
            model = base64.b64decode(encoded, validate=True)
            self._processor = processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (ValueError, TypeError, RuntimeError) as error:
            raise BadInput(f"is no sentencepiece model ({' '.join(str(error).split())})") from error
        if not model:
            raise BadInput("is no sentencepiece model (is empty)")
        self.vocab_size = processor.vocab_size()
        self.pad_id = processor.pad_id() if processor.pad_id() >= 0 else None
        self.bos, self.eos = _mark(processor.bos_id()), _mark(processor.eos_id())
        self.before, self.after = [], self.eos
        self.lowercase = "a" in processor.normalize("A")
        self.knows_words, self.by_word, self.spells = True, False, True
        pieces = processor.id_to_piece(list(range(self.vocab_size)))
        self._starts = np.array([piece.startswith(_SPACE) for piece in pieces])

    def encode(self, texts: list[str], words: bool) -> list[Tokens]:
        lines = self._processor.encode(texts, out_type=int, num_threads=1)
        return [Tokens(ids, self._words(ids) if words else []) for ids in lines]

    def decode(self, lines: list[list[int]]) -> list[str]:
        return self._processor.decode(lines)

    def _words(self, ids: list[int]) -> list[int]:
        starts = self._starts[ids]
        starts[:1] = False
        return np.cumsum(starts).tolist()


def _mark(number: int) -> list[int]:
    return [number] if number >= 0 else []
