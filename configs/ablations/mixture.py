"""From which vendors' pictures to draw how often, to find those of one that training has not.

  python -m launch.sweep configs/ablations/mixture.py --parallel=2

`flat` are three vendors of today, whose style is nearer to that of `seen`; `older` are the other
four. By size, 53% are flat. docs/ablations.md has the table.
"""

EMOJI = dict(name="tfds", dataset="emoji", data_dir=".data", split="train", cache=True)
FLAT = {"vendor": ("noto", "fluent-emoji-flat", "emojione")}


def get_sweep() -> dict:
    """Small towers on the emoji data set, 100 steps of 128 pairs."""

    def mixed(flat: float, older: float) -> dict:
        parts = dict(flat=dict(only=FLAT, **EMOJI), older=dict(exclude=FLAT, **EMOJI))
        source = dict(name="mixture", parts=parts, weights=dict(flat=flat, older=older))
        return {"input.source": source}

    return dict(
        config="configs/menu.py",
        axes=dict(
            list={
                "half_flat": mixed(0.5, 0.5),
                "mostly_flat": mixed(0.8, 0.2),
                "mostly_older": mixed(0.2, 0.8),
            }
        ),
        metric="seen/text_to_image/recall@10",
        budget=dict(examples=12_800),
    )
