"""Encoded pictures to pixels."""

import numpy as np
import tensorflow as tf
from jaxtyping import UInt8

# Before TensorFlow's first operation, or it would take the memory of the GPUs.
tf.config.set_visible_devices([], "GPU")


def decode(encoded: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of a PNG, JPEG, GIF (its first frame) or BMP.

    TensorFlow decodes a small PNG in half of PIL's time, and other threads may run meanwhile.
    """
    return tf.io.decode_image(encoded, channels=3, expand_animations=False).numpy()
