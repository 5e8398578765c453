"""What every format writes and reads."""

from typing import NamedTuple

import numpy as np


class Bundle(NamedTuple):
    """A model as it goes out or comes in: numpy only.

    model: config.model, plain. params: by the paths of our checkpoints, "model/image/...",
    "model/text/...", "objectives/NAME/..."; a reader leaves out what its format has not.
    tokenizer_json: as `data.tokenizers.Tokenizer.json`, settings and all. objectives:
    config.objectives, plain; the scale and bias of logits and the matching head live there. adapt:
    what of config.adapt is not merged into the model's own parameters, plain.
    manifest: what else has to travel, {} where nothing is known. Keys that all formats share:

      preprocess: the ops of evaluation, nothing random, in which the tokenizer is called
        "tokenizer.json": 'decode|resize(48)|caption("label")|tokenize("tokenizer.json", 24)'.
      image: the same in plain fields (`mm.interop.facts`): size [height, width], resize
        {mode, size, method, antialias} or None, crop [height, width] or None, mean and std, each
        [r, g, b]: a value x of 0 .. 255 becomes (x / 255 - mean) / std.
      text: as `data.tokenizers.Tokenizer.manifest`: length, lowercase, pad_id, ids_before,
        ids_after, truncation, vocab_size, sha256.
    """

    model: dict
    params: dict[str, np.ndarray]
    manifest: dict
    tokenizer_json: str | None
    objectives: dict
    adapt: dict = {}
