"""Which fusion ranks the first 16 pictures best, of those that fit into a minute of a CPU core.

  python -m launch.sweep configs/ablations/fusion.py --parallel=2

`reranked` is of the matching head, which reads the fusion; by chance among the 16 that the
embeddings found, it would be right in 2 to 3% of all. docs/ablations.md has the table.
"""


def get_sweep() -> dict:
    """Small towers on the emoji data set, 150 steps of 128 pairs."""
    return dict(
        config="configs/menu.py:objectives=contrastive+matching",
        axes=dict(grid={":fusion": ["sum", "gated", "bilinear", "cross"]}),
        metric="unseen/reranked/text_to_image/recall@1",
        budget=dict(examples=19_200),
    )
