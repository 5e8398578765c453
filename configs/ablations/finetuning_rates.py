"""The learning rates of configs/finetune.py: four tries a method, at half-decades, one seed.

  python -m launch.sweep configs/ablations/finetuning_rates.py

It is judged by pictures, and run with a seed, that finetuning.py does not use.
"""

from configs.ablations.finetuning import CHOSEN_ON

WEIGHTS = (3e-4, 1e-3, 3e-3, 1e-2)
ADAPTERS, PROMPTS = (1e-3, 3e-3, 1e-2, 3e-2), (3e-3, 1e-2, 3e-2, 1e-1)
RATES = {
    "full": WEIGHTS,
    "lit": WEIGHTS,
    "image": WEIGHTS,
    "projections": WEIGHTS,
    "lora": WEIGHTS,
    "adapter": ADAPTERS,
    "vpt": PROMPTS,
    "coop": PROMPTS,
    "prompts": PROMPTS,
}
NETWORK = ("vpt", "coop")  # whose prompts a network makes, too


def get_sweep() -> dict:
    """As finetuning.py."""
    arms = [(method, {}, rate) for method, rates in RATES.items() for rate in rates]
    arms += [(method, {":hidden": 64}, rate) for method in NETWORK for rate in WEIGHTS]
    return dict(
        config="configs/finetune.py",
        overrides={"evals.seen.source.split": CHOSEN_ON},
        axes=dict(
            list={
                f"{method}{',hidden' if more else ''},rate={rate:g}": {
                    ":method": method, **more, "optimizer.learning_rate": rate
                }
                for method, more, rate in arms
            }
        ),
        seeds=[3],
        metric="seen/text_to_image/recall@1",
        budget=dict(examples=7_680),
    )  # fmt: skip
