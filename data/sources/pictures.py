"""Encoded pictures to pixels."""

import numpy as np
import tensorflow as tf
from jaxtyping import UInt8

# Before TensorFlow's first operation, or it would take the memory of the GPUs.
tf.config.set_visible_devices([], "GPU")


def decode(encoded: bytes) -> UInt8[np.ndarray, "3 h w"]:
    """RGB of a PNG, JPEG, GIF (its first frame) or BMP; planes, as `data.preprocess.image` wants.

    TensorFlow decodes a small PNG in half of PIL's time, and other threads may run meanwhile.
    """
    pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False).numpy()
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
