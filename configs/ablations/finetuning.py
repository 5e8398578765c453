"""Which way of fine-tuning carries the quick start to noisy pictures best, and at what cost.

  make quickstart
  python -m launch.sweep configs/ablations/finetuning.py

All arms begin with workdirs/quickstart and see 7,680 pairs; `none` is where they begin. Learning
rates are those of configs/finetune.py, which finetuning_rates.py chose on the other half of the
pictures. docs/finetuning.md has the table.
"""

# Every other 5% of `seen`, which is sorted: 740 pictures to choose by, 739 to report.
CHOSEN_ON, REPORTED = (
    "+".join(f"seen[{start}%:{start + 5}%]" for start in range(first, 100, 10)) for first in (0, 5)
)
METHODS = (
    "full", "lit", "image", "projections", "lora", "adapter", "vpt", "coop", "prompts"
)  # fmt: skip


def get_sweep() -> dict:
    """Sixty steps of 128 noisy pictures."""
    return dict(
        config="configs/finetune.py",
        overrides={f"evals.{name}.source.split": REPORTED for name in ("seen", "clean")},
        axes=dict(list={method: {":method": method} for method in ("none", *METHODS)}),
        metric="seen/text_to_image/recall@1",
        budget=dict(examples=7_680),
    )
