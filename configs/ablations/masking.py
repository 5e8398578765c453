"""How many image tokens to drop in contrastive training (FLIP), at equal FLOPs.

  python -m launch.sweep configs/ablations/masking.py --parallel=2

What is dropped makes a step cheaper, and the budget buys more of them: the question of FLIP (Li et
al. 2023). Pictures of 36 patches; evaluation sees them all. docs/ablations.md has the table.
"""


def get_sweep() -> dict:
    """As many FLOPs as some 100 steps of whole pictures."""
    return dict(
        config="configs/menu.py",
        overrides={"model.image.patch_size": 8},
        axes=dict(
            list={
                "whole": {"objectives.contrastive.image_keep": 1.0},
                "half": {"objectives.contrastive.image_keep": 0.5},
                "quarter": {"objectives.contrastive.image_keep": 0.25},
            }
        ),
        metric="seen/text_to_image/recall@10",
        budget=dict(flops=9e11),
    )
