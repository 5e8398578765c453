"""What to train beside a head on the quick start's image tower, for the 95 subgroups of emoji.

  make quickstart
  python -m launch.sweep configs/ablations/classification.py

All arms begin with workdirs/quickstart and see 7,680 pictures. Learning rates are those of
configs/classify.py, which classification_rates.py chose on the other half of the pictures.
docs/finetuning.md has the table.
"""

from configs.ablations.finetuning import REPORTED
from configs.classify import METHODS


def get_sweep() -> dict:
    """Sixty steps of 128 pictures."""
    return dict(
        config="configs/classify.py:variant=subgroup",
        overrides={"global_batch_size": 128, "evals.seen.source.split": REPORTED},
        axes=dict(list={method: {":method": method} for method in METHODS}),
        base="probe",
        metric="seen/accuracy",
        budget=dict(examples=7_680),
    )
