"""What averages of the quick start and of runs fine-tuned from it bring, with and without noise.

  make quickstart
  python -m launch.sweep configs/ablations/finetuning.py
  python -m launch.sweep configs/ablations/averages.py
  python -m mm.report.sweep workdirs/sweeps/averages --metric=clean/text_to_image/recall@1

No arm makes a step. `none` is the quick start, `full` what the first sweep fine-tuned from it with
each seed, `wise-0.5` halfway between the two (WiSE-FT), `soup` the mean of the runs of all seeds.
docs/finetuning.md has the table.
"""

from configs.ablations.finetuning import REPORTED

BASE, FULL = "workdirs/quickstart", "workdirs/sweeps/finetuning/full/seed-"
BETWEEN = {
    f"wise-{share}": {":init": f"{BASE}+{FULL}{{seed}}", ":share": share}
    for share in (0.25, 0.5, 0.75)
}


def get_sweep() -> dict:
    """Evaluations alone."""
    return dict(
        config="configs/finetune.py:method=none",
        overrides={f"evals.{name}.source.split": REPORTED for name in ("seen", "clean")},
        axes=dict(
            list={
                "none": {},
                **BETWEEN,
                "full": {":init": f"{FULL}{{seed}}"},
                "soup": {":init": "+".join(f"{FULL}{seed}" for seed in range(3))},
            }
        ),
        metric="seen/text_to_image/recall@1",
        budget=dict(examples=7_680),
    )
