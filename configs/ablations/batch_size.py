"""Batches of 64, 128 or 256 pairs, the same number of pairs in all.

  python -m launch.sweep configs/ablations/batch_size.py --parallel=2

A smaller batch takes more steps, of fewer negatives each; the learning rate stays, and the warm-up
keeps its share of the steps. docs/ablations.md has the table.
"""


def get_sweep() -> dict:
    """Small towers on the emoji data set, 12,800 pairs."""
    return dict(
        config="configs/menu.py",
        axes=dict(grid={"global_batch_size": [64, 128, 256]}),
        base="global_batch_size=128",
        metric="seen/text_to_image/recall@10",
        budget=dict(examples=12_800),
    )
