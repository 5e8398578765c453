"""What to train beside a decoder that answers questions about the quick start's pictures.

  make quickstart
  python -m data.tokenizers.train --dataset=emoji --data_dir=.data --model=sentencepiece_bpe \\
    --output=.data/words.json
  python -m launch.sweep configs/ablations/instruction.py

All arms begin with the image tower of workdirs/quickstart and see 32,000 questions; they have the
learning rate of configs/instruct.py, which was not looked for. docs/finetuning.md has the table.
"""

from configs.instruct import METHODS


def get_sweep() -> dict:
    """Five hundred steps of 64 questions."""
    return dict(
        config="configs/instruct.py:variant=tiny",
        overrides={"global_batch_size": 64, "optimizer.schedule.warmup_steps": 30},
        axes=dict(list={method: {":method": method} for method in METHODS}),
        base="decoder",
        metric="held_out_templates/exact_match",
        budget=dict(examples=32_000),
    )
