"""How deep a text tower short captions need: a bag of words, one block, or two.

  python -m launch.sweep configs/ablations/text_tower.py --parallel=2

docs/ablations.md has the table.
"""


def get_sweep() -> dict:
    """Small towers on the emoji data set, 100 steps of 128 pairs."""
    return dict(
        config="configs/menu.py",
        axes=dict(
            list={
                "one_block": {},
                "bag_of_words": {"model.text.depth": 0},
                "two_blocks": {"model.text.depth": 2},
            }
        ),
        metric="seen/text_to_image/recall@10",
        budget=dict(examples=12_800),
    )
