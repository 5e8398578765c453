"""Patches of 8, 12 or 16 pixels of pictures of 48: 36, 16 or 9 tokens.

  python -m launch.sweep configs/ablations/patch_size.py --parallel=2

docs/ablations.md has the table.
"""


def get_sweep() -> dict:
    """Small towers on the emoji data set, 100 steps of 128 pairs."""
    return dict(
        config="configs/menu.py",
        axes=dict(grid={"model.image.patch_size": [8, 12, 16]}),
        base="patch_size=12",
        metric="seen/text_to_image/recall@10",
        budget=dict(examples=12_800),
    )
