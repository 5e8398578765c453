"""Writes digits.npz: handwritten digits, and what scikit-learn's probes say of them.

  python -m venv VENV && VENV/bin/pip install scikit-learn==1.9.1
  VENV/bin/python tests/golden/probes/make.py

The digits are those of scikit-learn (8 x 8 pixels; Alpaydin and Kaynak 1998, UCI, CC BY 4.0).
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

TRAIN, TEST = 150, 147
L2 = (0.5, 64.0, 4096.0)  # of ridge
PENALTIES = (1e-3, 1e-1)  # of logistic regression
K, TEMPERATURE = 7, 0.05


def main() -> None:
    x, y = load_digits(return_X_y=True)
    x, y = x[: TRAIN + TEST].astype(np.uint8), y[: TRAIN + TEST]
    scaler = StandardScaler().fit(x[:TRAIN])
    train, test = scaler.transform(x[:TRAIN]), scaler.transform(x[TRAIN:])
    found = {"x": x, "y": y, "train": np.array(TRAIN), "l2": L2, "penalties": PENALTIES}
    targets = np.where(y[:TRAIN, None] == np.arange(10), 1.0, -1.0)
    for i, l2 in enumerate(L2):
        ridge = Ridge(alpha=l2, solver="svd").fit(train, targets)
        found |= {f"ridge_{i}": ridge.coef_, f"intercept_{i}": ridge.intercept_}
        found[f"ridge_answers_{i}"] = ridge.predict(test).argmax(axis=1)
    for i, l2 in enumerate(PENALTIES):
        model = LogisticRegression(
            C=1 / (TRAIN * l2), solver="newton-cg", tol=1e-10, max_iter=10_000
        )
        found[f"logistic_{i}"] = model.fit(train, y[:TRAIN]).predict_proba(test)
    knn = KNeighborsClassifier(
        K, metric="cosine", weights=lambda distance: np.exp((1 - distance) / TEMPERATURE)
    )
    found |= {"k": K, "temperature": TEMPERATURE}
    found["knn_answers"] = knn.fit(x[:TRAIN].astype(float), y[:TRAIN]).predict(x[TRAIN:])
    np.savez_compressed(Path(__file__).with_name("digits.npz"), **found)


if __name__ == "__main__":
    main()
