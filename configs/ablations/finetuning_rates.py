"""The learning rates of configs/finetune.py: three tries a method, at half-decades, one seed.

  python -m launch.sweep configs/ablations/finetuning_rates.py

It is judged by pictures, and run with a seed, that finetuning.py does not use.
"""

from configs.ablations.finetuning import CHOSEN_ON

METHODS = ("full", "lit", "projections", "lora", "adapter", "vpt", "coop")
WEIGHTS, ADAPTERS, PROMPTS = (3e-4, 1e-3, 3e-3), (1e-3, 3e-3, 1e-2), (3e-3, 1e-2, 3e-2)
RATES = {"adapter": ADAPTERS, "vpt": PROMPTS, "coop": PROMPTS}


def get_sweep() -> dict:
    """As finetuning.py."""
    return dict(
        config="configs/finetune.py",
        overrides={"evals.seen.source.split": CHOSEN_ON},
        axes=dict(
            list={
                f"{method},rate={rate:g}": {":method": method, "optimizer.learning_rate": rate}
                for method in METHODS
                for rate in RATES.get(method, WEIGHTS)
            }
        ),
        seeds=[3],
        metric="seen/text_to_image/recall@1",
        budget=dict(examples=7_680),
    )
