"""Evaluators, one file each; importing this registers them."""

from mm.evals import (  # noqa: F401
    answers,
    captions,
    classification,
    compositional,
    explanations,
    losses,
    matching,
    probes,
    regression,
    representation,
    retrieval,
    robustness,
    winoground,
    zero_shot,
)
