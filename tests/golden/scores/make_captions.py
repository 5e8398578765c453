"""Writes captions.json: scores of made-up captions by others' programs.

pip install pycocoevalcap==1.2 nltk==3.10.4 snowballstemmer==3.1.1, then
python tests/golden/scores/make_captions.py

ROUGE-L and CIDEr by pycocoevalcap, the program of COCO's server; METEOR by NLTK with an empty
WordNet, so without synonyms, and snowballstemmer's stems. NLTK aligns greedily: METEOR's captions
have no word twice, so that there is one alignment alone.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import snowballstemmer
from nltk.translate.meteor_score import meteor_score
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

VOCABULARY = (
    "a the man woman dog cats cat riding rides horse horses on in beach with red blue running runs "
    "ball plays playing two standing stand near of park"
).split()
IMAGES, REFERENCES = 12, 3


def caption(rng, like=None, repeat=True):
    """Words; those of another caption, some of them changed."""
    if like is None:
        return rng.choice(VOCABULARY, rng.integers(5, 11), replace=repeat).tolist()
    kept = [word for word in like if rng.random() < 0.8]
    more = rng.choice([w for w in VOCABULARY if repeat or w not in kept], 2, replace=repeat)
    at = rng.integers(0, len(kept) + 1)
    return [*kept[:at], *more.tolist(), *kept[at:]]


def corpus(seed, repeat):
    rng = np.random.default_rng(seed)
    candidates, references = [], []
    for _ in range(IMAGES):
        first = caption(rng, repeat=repeat)
        count = rng.integers(1, REFERENCES + 1)
        references.append([first, *(caption(rng, first, repeat) for _ in range(count - 1))])
        candidates.append(caption(rng, first, repeat))
    return candidates, references


def main():
    candidates, references = corpus(0, True)
    results = {i: [" ".join(text)] for i, text in enumerate(candidates)}
    truth = {i: [" ".join(text) for text in texts] for i, texts in enumerate(references)}
    plain_candidates, plain_references = corpus(1, False)
    porter = snowballstemmer.stemmer("porter")
    stemmer = SimpleNamespace(stem=porter.stemWord)
    wordnet = SimpleNamespace(synsets=lambda word: [])
    meteor = [
        meteor_score(texts, text, stemmer=stemmer, wordnet=wordnet, alpha=0.9, beta=3, gamma=0.5)
        for text, texts in zip(plain_candidates, plain_references, strict=True)
    ]
    found = {
        "candidates": candidates,
        "references": references,
        "rouge_l": Rouge().compute_score(truth, results)[1].tolist(),
        "cider": Cider().compute_score(truth, results)[1].tolist(),
        "meteor_candidates": plain_candidates,
        "meteor_references": plain_references,
        "meteor": meteor,
    }
    (Path(__file__).parent / "captions.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
