"""Writes classes.json: measures by scikit-learn 1.9 of made-up predictions.

pip install scikit-learn==1.9.1, then python tests/golden/scores/make_classes.py
"""

import json
from pathlib import Path

import numpy as np
import sklearn.metrics as m

ROWS, CLASSES = 60, 6
AVERAGES = ("macro", "micro", "weighted")


def averages(labels, found):
    pairs = {"precision": m.precision_score, "recall": m.recall_score, "f1": m.f1_score}
    return {
        f"{name}/{average}": score(labels, found, average=average, zero_division=0)
        for name, score in pairs.items()
        for average in AVERAGES
    }


def main():
    rng = np.random.default_rng(0)
    # Multiples of 1/8, so that there are ties. Nothing is of the last class, nor taken for it.
    logits = rng.integers(-16, 17, (ROWS, CLASSES)) / 8
    logits[:, -1] = -9
    labels = rng.integers(0, CLASSES - 1, ROWS)
    logits[np.arange(ROWS), labels] += 1
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = logits.argmax(1)
    one = {
        "confusion": m.confusion_matrix(labels, found, labels=range(CLASSES)).tolist(),
        "accuracy": m.accuracy_score(labels, found),
        "brier": m.brier_score_loss(labels, p, labels=range(CLASSES), scale_by_half=False),
        "negative_log_likelihood": m.log_loss(labels, p, labels=range(CLASSES)),
        **averages(labels, found),
    }
    many = rng.random((ROWS, CLASSES)) < 0.4
    many[0] = True
    scores = rng.integers(-16, 17, (ROWS, CLASSES)) / 8 + many
    several = {
        "accuracy": m.accuracy_score(many, scores > 0),
        "mean_average_precision": m.average_precision_score(many, scores, average="macro"),
        **averages(many, scores > 0),
    }
    area = m.roc_auc_score(many[:, 0], scores[:, 0])
    given = {"logits": logits, "labels": labels, "many": many.astype(int), "scores": scores}
    found = {"one": one, "several": several, "area": area}
    text = json.dumps({k: x.tolist() for k, x in given.items()} | found, indent=None)
    (Path(__file__).parent / "classes.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
