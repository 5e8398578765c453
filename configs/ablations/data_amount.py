"""What more data brings: the loss on a vendor that training has not, by the share of the data.

  python -m launch.sweep configs/ablations/data_amount.py --parallel=2
  python -m mm.report.scaling workdirs/sweeps/data_amount --x=input.source.last --times=8035 \\
    --target=32000

All arms take as many steps, so that those of little data see it more often. docs/ablations.md has
the table and the fit.
"""


def get_sweep() -> dict:
    """Small towers on the emoji data set, 100 steps of 128 pairs."""
    return dict(
        config="configs/menu.py",
        overrides={"evals.losses.source.split": "seen", "evals.losses.batch_size": 128},
        axes=dict(grid={"input.source.last": [0.06, 0.16, 0.4, 1.0]}),
        base="last=1.0",
        metric="losses/contrastive/loss",
        better="lower",
        budget=dict(examples=12_800),
    )
