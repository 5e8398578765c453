"""The learning rates of configs/classify.py: three tries a method, at half-decades, one seed.

  python -m launch.sweep configs/ablations/classification_rates.py

It is judged by pictures, and run with a seed, that classification.py does not use.
"""

from configs.ablations.classification import get_sweep as classification
from configs.ablations.finetuning import CHOSEN_ON
from configs.classify import METHODS

RATES = (1e-4, 3e-4, 1e-3)


def get_sweep() -> dict:
    """As classification.py."""
    found = classification()
    arms = {
        f"{method},rate={rate:g}": {":method": method, "optimizer.learning_rate": rate}
        for method in METHODS
        for rate in RATES
    }
    overrides = found["overrides"] | {"evals.seen.source.split": CHOSEN_ON}
    return found | dict(axes=dict(list=arms), base=None, seeds=[3], overrides=overrides)
