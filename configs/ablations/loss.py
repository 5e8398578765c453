"""Which contrastive loss: softmax, sigmoid, or softmax with a queue of a momentum encoder.

  python -m launch.sweep configs/ablations/loss.py --parallel=2

On `seen`, a seventh vendor's pictures of the concepts of training; docs/ablations.md has the table.
"""


def get_sweep() -> dict:
    """Small towers on the emoji data set, 100 steps of 128 pairs."""
    return dict(
        config="configs/menu.py",
        axes=dict(
            list={
                "softmax": {":objectives": "contrastive"},
                "sigmoid": {":objectives": "sigmoid"},
                "momentum": {":objectives": "contrastive+momentum"},
            }
        ),
        metric="seen/text_to_image/recall@10",
        budget=dict(examples=12_800),
    )
