"""Weights in .npz files: what is read, and what is refused before it costs memory."""

import io
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from mm.config import BadInput
from mm.interop.arrays import read_npz, write_npz

ARRAYS = {
    "model/image/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "model/scale": np.float32(2.5),
    "model/empty": np.zeros((0, 3), np.float32),
    "model/mask": np.array([True, False]),
    "model/turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
}


@pytest.fixture
def path(tmp_path):
    write_npz(str(tmp_path / "a.npz"), ARRAYS)
    return str(tmp_path / "a.npz")


def with_member(path, name, content, **how):
    with zipfile.ZipFile(path, "w", **how) as archive:
        archive.writestr(name, content)
    return str(path)


def npy(array, allow_pickle=False):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def header(shape, dtype="<f4"):
    buffer = io.BytesIO()
    said = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, said)
    return buffer.getvalue()


def test_arrays_come_back_as_they_were(path):
    found = read_npz(path)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        found[name][...] = 0  # it is nobody else's


def test_numpy_reads_what_we_write_and_we_what_numpy_writes(path, tmp_path):
    with np.load(path, allow_pickle=False) as found:
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(found[name], array)
    np.savez(tmp_path / "b.npz", **ARRAYS)
    for name, array in read_npz(str(tmp_path / "b.npz")).items():
        np.testing.assert_array_equal(array, ARRAYS[name])


def test_the_same_arrays_are_the_same_bytes(path, tmp_path):
    write_npz(str(tmp_path / "b.npz"), dict(reversed(ARRAYS.items())))
    assert (tmp_path / "b.npz").read_bytes() == open(path, "rb").read()


def test_arrays_under_a_name_are_read_alone_where_there_are_some(path):
    assert read_npz(path, under="model/m").keys() == {"model/mask"}
    assert read_npz(path, under="params/").keys() == ARRAYS.keys()


def test_two_bytes_without_a_type_are_bfloat16(tmp_path):
    want = np.arange(6, dtype=np.float32).reshape(2, 3).astype(ml_dtypes.bfloat16)
    np.savez(tmp_path / "a.npz", x=want)
    found = read_npz(str(tmp_path / "a.npz"))["x"]
    assert found.dtype == want.dtype and found.tobytes() == want.tobytes()


def test_pickles_are_never_loaded(tmp_path):
    evil = npy(np.array([{"a": 1}], dtype=object), allow_pickle=True)
    path = with_member(tmp_path / "a.npz", "evil.npy", evil)
    with pytest.raises(BadInput, match="'evil' is of object; expected numbers"):
        read_npz(path)


def test_a_bomb_of_compression_is_refused(tmp_path):
    bomb = header((1 << 24,)) + bytes(1 << 26)
    path = with_member(tmp_path / "a.npz", "bomb.npy", bomb, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(BadInput, match="'bomb.npy' is compressed; expected arrays that are stored"):
        read_npz(path)


def test_a_header_that_declares_more_than_there_is_is_refused(tmp_path):
    path = with_member(tmp_path / "a.npz", "a.npy", header((1 << 40, 1 << 10)) + bytes(8))
    with pytest.raises(BadInput, match="'a' declares 4,503,599,627,370,496 bytes and has 8"):
        read_npz(path)


def test_a_directory_that_declares_more_than_the_file_has_is_refused(path):
    content = bytearray(open(path, "rb").read())
    at = content.rindex(b"PK\x01\x02")  # the last entry of the directory, its two sizes
    content[at + 20 : at + 28] = struct.pack("<II", 1 << 30, 1 << 30)
    open(path, "wb").write(content)
    with pytest.raises(BadInput, match="declares more bytes .* damaged, or made to harm"):
        read_npz(path)


def test_what_is_cut_off_or_no_archive_is_said_in_one_line(path, tmp_path):
    content = open(path, "rb").read()
    for some in (content[:-30], b"hello", b""):
        (tmp_path / "b.npz").write_bytes(some)
        with pytest.raises(BadInput, match="is no whole .npz") as raised:
            read_npz(str(tmp_path / "b.npz"))
        assert "\n" not in str(raised.value)
    with pytest.raises(BadInput, match="b.npz: 'a.txt' is no .npy"):
        read_npz(with_member(tmp_path / "b.npz", "a.txt", "x"))
    with pytest.raises(BadInput, match="none.npz: does not exist"):
        read_npz(str(tmp_path / "none.npz"))
