"""Encoded pictures to pixels."""

import numpy as np
import tensorflow as tf
from jaxtyping import UInt8

from data.profile import stage
from data.sources import BadExample

# Before TensorFlow's first operation, or it would take the memory of the GPUs.
tf.config.set_visible_devices([], "GPU")

_MAGIC = {b"\x89PNG": "png", b"\xff\xd8": "jpg", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp"}


def decode(encoded: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of a PNG, JPEG, WebP, GIF (its first frame) or BMP. Raises BadExample for all else.

    TensorFlow decodes a small PNG in half of PIL's time, and other threads may run meanwhile.
    """
    try:
        with stage("decode"):
            return tf.io.decode_image(encoded, channels=3, expand_animations=False).numpy()
    except tf.errors.InvalidArgumentError:
        raise BadExample(
            f"a picture of {len(encoded):,} bytes that begins with {encoded[:8]!r} cannot be "
            "decoded; expected a whole PNG, JPEG, WebP, GIF or BMP",
            "picture cannot be decoded",
        ) from None


def file_format(encoded: bytes) -> str:
    """How a file of that picture's name would end, as "png"; "bin" if it is none that we read."""
    return next((name for magic, name in _MAGIC.items() if encoded.startswith(magic)), "bin")
