"""Which way of fine-tuning carries the quick start to grey pictures best, and at what cost.

  make quickstart
  python -m launch.sweep configs/ablations/finetuning.py --parallel=2

All arms begin with workdirs/quickstart and see 7,680 pairs. docs/finetuning.md says what each
method is; nothing was tuned.
"""

METHODS = ("full", "lit", "image", "probe", "lora", "adapter", "vpt", "coop", "prompts")


def get_sweep() -> dict:
    """Sixty steps of 128 grey pictures."""
    return dict(
        config="configs/finetune.py",
        axes=dict(list={method: {":method": method} for method in METHODS}),
        metric="seen/text_to_image/recall@1",
        budget=dict(examples=7_680),
    )
