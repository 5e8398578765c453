import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from data.crc32c import crc32c, masked_crc32c


def as_row(message):
    return np.frombuffer(message, np.uint8)[None]


@pytest.mark.parametrize(
    "message, want",
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        # RFC 3720, appendix B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_known_sums(message, want):
    assert crc32c(as_row(message))[0] == want


@given(st.binary(max_size=3000))
def test_sums_are_those_of_a_register_that_takes_one_bit_after_the_other(message):
    register = 0xFFFFFFFF
    for byte in message:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ 0x82F63B78 * (register & 1)
    assert crc32c(as_row(message))[0] == register ^ 0xFFFFFFFF


def test_rows_are_summed_each_by_itself():
    rows = np.random.default_rng(0).integers(0, 256, (7, 8), np.uint8)
    assert crc32c(rows).tolist() == [crc32c(row[None])[0] for row in rows]


def test_masked_sums_are_those_that_tensorflow_writes(tmp_path):
    message = np.random.default_rng(0).bytes(100_001)
    with tf.io.TFRecordWriter(str(tmp_path / "a")) as writer:
        writer.write(message)
    written = (tmp_path / "a").read_bytes()
    assert written[8:12] == masked_crc32c(as_row(written[:8])).tobytes()
    assert written[-4:] == masked_crc32c(as_row(message)).tobytes()
