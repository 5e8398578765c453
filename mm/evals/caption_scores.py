"""How near written captions are to those that people wrote: BLEU, ROUGE-L, METEOR, CIDEr.

All take words (`words`): of each example those of the candidate, and of each of its references.
They are as COCO's server has them (Chen et al. 2015, section 4), but for what makes words of a text
(there the Penn Treebank's tokenizer, in Java), and for METEOR: that of 2005, without synonyms.
"""

import collections
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import snowballstemmer
from jaxtyping import Int

Words = Sequence[str]
_WORD = re.compile(r"['’]?\w+(?:-\w+)*")
_BEAM = 64
_BETA = 1.2  # of ROUGE-L, in COCO's server
_SIGMA = 6.0  # of CIDEr-D, in words


def words(text: str) -> list[str]:
    """In lower case, without punctuation; a hyphen joins, an apostrophe begins a word ("'s")."""
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


def caption_scores(
    candidates: Sequence[Words], references: Sequence[Sequence[Words]]
) -> dict[str, np.ndarray]:
    """Of each example: under "bleu4" its `bleu_counts`, the others are scores, for a mean.

    Raises ValueError unless each candidate has a reference.
    """
    if len(candidates) != len(references) or not all(references):
        raise ValueError("expected as many lists of references as candidates, none empty")
    pairs = list(zip(candidates, references, strict=True))
    return {
        "bleu4": bleu_counts(candidates, references),
        "rouge_l": np.array([rouge_l(*pair) for pair in pairs]),
        "meteor": np.array([meteor(*pair) for pair in pairs]),
        "cider": np.array(cider(candidates, references)),
    }


def ngrams(text: Words, n: int) -> collections.Counter[tuple[str, ...]]:
    """How often each comes."""
    return collections.Counter(zip(*(text[i:] for i in range(n)), strict=False))


def bleu_counts(
    candidates: Sequence[Words], references: Sequence[Sequence[Words]]
) -> Int[np.ndarray, "n 10"]:
    """What `mm.report.measures.bleu` is made of, of each example, as sacrebleu counts it.

    The brevity penalty takes the reference that is nearest in length, the shorter of two.
    """
    from sacrebleu.metrics import BLEU  # brings lxml along, so only where captions are scored

    bleu = BLEU(tokenize="none", effective_order=True)  # the latter is for its scores of sentences
    rows = []
    for candidate, texts in zip(candidates, references, strict=True):
        found = bleu.sentence_score(" ".join(candidate), [" ".join(text) for text in texts])
        rows.append([*found.counts, *found.totals, found.sys_len, found.ref_len])
    return np.array(rows)


def rouge_l(candidate: Words, references: Sequence[Words]) -> float:
    """F of the longest common subsequence with beta = 1.2 (Lin 2004, equations 2 to 4).

    Precision and recall are each the best of all references.
    """
    common = [longest_common(candidate, text) for text in references]
    precision = max(c / max(len(candidate), 1) for c in common)
    recall = max(c / max(len(text), 1) for c, text in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def longest_common(one: Words, other: Words) -> int:
    """The length of the longest common subsequence."""
    before = [0] * (len(other) + 1)
    for word in one:
        row = [0]
        for j, against in enumerate(other):
            row.append(before[j] + 1 if word == against else max(before[j + 1], row[-1]))
        before = row
    return before[-1]


class Word(NamedTuple):
    """Words of one stem match; `text` tells which are the same."""

    stem: str
    text: str


def meteor(candidate: Words, references: Sequence[Words]) -> float:
    """METEOR by exact, then by stem matches (Banerjee and Lavie 2005, section 2.2), of the best
    reference. Stems are Porter's."""
    own, *others = ([*map(Word, _stems(text), text)] for text in (candidate, *references))
    return max(_meteor(own, other) for other in others)


def _stems(text: Words) -> list[str]:
    return snowballstemmer.stemmer("porter").stemWords(text)


def _meteor(candidate: Sequence[Word], reference: Sequence[Word]) -> float:
    have, wanted = (collections.Counter(w.stem for w in text) for text in (candidate, reference))
    matches = (have & wanted).total()
    if not matches:
        return 0.0
    precision, recall = matches / len(candidate), matches / len(reference)
    mean = 10 * precision * recall / (recall + 9 * precision)
    return mean * (1 - 0.5 * (fewest_chunks(candidate, reference) / matches) ** 3)


def fewest_chunks(candidate: Sequence[Word], reference: Sequence[Word]) -> int:
    """In how many runs of neighbours, in both, the words lie that match.

    Of all ways to match the most words, and of these the most of the same text, the one with the
    fewest. By a beam search over the candidate's words: exact unless words repeat very often.
    """
    places = collections.defaultdict(list)
    for j, word in enumerate(reference):
        places[word.stem].append(j)
    # Of each stem so many words of the candidate stay without a match.
    spare = collections.Counter(w.stem for w in candidate)
    spare.subtract({stem: len(at) for stem, at in places.items()})
    # (words of another text, chunks, place of the last match or -2, places taken, stems left out)
    states = {(0, 0, -2, frozenset(), ())}
    for word in candidate:
        after = set()
        for others, chunks, last, taken, left in states:
            for j in places[word.stem]:
                if j not in taken:
                    other = others + (reference[j].text != word.text)
                    after.add((other, chunks + (j != last + 1), j, taken | {j}, left))
            if left.count(word.stem) < spare[word.stem]:
                after.add((others, chunks, -2, taken, (*left, word.stem)))
        order = sorted(after, key=lambda state: (*state[:3], sorted(state[3]), state[4]))
        states = set(order[:_BEAM])
    return min(states, key=lambda state: state[:2])[1]


def cider(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of each example, 0 to 10 (Vedantam et al. 2015, section 6), as COCO's server has it.

    How rare an n-gram is, is counted in the references that are given: the score of an example
    depends on the others, and of a single one it is 0. Words are not stemmed.
    """
    frequency: collections.Counter[tuple[str, ...]] = collections.Counter()
    for texts in references:
        frequency.update({gram for text in texts for n in range(1, 5) for gram in ngrams(text, n)})
    log_size = math.log(len(references))

    def weighted(text: Words, n: int) -> dict[tuple[str, ...], float]:
        rare = {gram: log_size - math.log(max(frequency[gram], 1)) for gram in ngrams(text, n)}
        return {gram: count * rare[gram] for gram, count in ngrams(text, n).items()}

    scores = []
    for candidate, texts in zip(candidates, references, strict=True):
        total = 0.0
        for text in texts:
            away = math.exp(-((len(candidate) - len(text)) ** 2) / (2 * _SIGMA**2))
            for n in range(1, 5):
                total += away * clipped_cosine(weighted(candidate, n), weighted(text, n))
        scores.append(10 * total / (4 * len(texts)))
    return scores


def clipped_cosine(one: Mapping[tuple, float], other: Mapping[tuple, float]) -> float:
    """Of a candidate and a reference; what the candidate repeats beyond the reference counts
    nothing."""
    norm = math.hypot(*one.values()) * math.hypot(*other.values())
    product = sum(min(x, other[gram]) * other[gram] for gram, x in one.items() if gram in other)
    return product / norm if norm else 0.0
