"""Files from elsewhere that are damaged or hostile: one clear line each, and nothing is run."""

import json
import pickle
import re

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from mm.config import BadInput
from mm.interop import weight_files


def refused(read, path, message):
    with pytest.raises(BadInput, match=message) as error:
        read(str(path))
    assert "\n" not in str(error.value)


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


F32 = dict(dtype="F32", shape=[2], data_offsets=[0, 8])
HOSTILE = {
    "empty": b"",
    "truncated": safetensors(dict(x=F32), b"1234"),
    "header larger than the file": (1 << 40).to_bytes(8, "little") + b"{}",
    "header that is no JSON": safetensors(b"{x}"),
    "arrays that overlap": safetensors(dict(x=F32, y=F32), bytes(8)),
    "array that says too much": safetensors(dict(x=F32 | dict(shape=[1 << 40])), bytes(8)),
    "negative shape": safetensors(dict(x=F32 | dict(shape=[-2])), bytes(8)),
    "more bytes than arrays": safetensors(dict(x=F32), bytes(80)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_safetensors_file_is_refused(name, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(HOSTILE[name])
    refused(weight_files.open_safetensors, tmp_path, "is no whole safetensors file")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "open_clip.pth"])
def test_a_pickle_is_refused_and_not_run(name, tmp_path):
    class Runs:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    (tmp_path / name).write_bytes(pickle.dumps(Runs()))
    refused(weight_files.open_safetensors, tmp_path, re.escape(f"{name}: is a pickle"))
    assert not (tmp_path / "ran").exists()


def test_half_precision_is_widened_to_float32(tmp_path):
    want = np.arange(6).reshape(2, 3) / 4
    weights = dict(a=want.astype(np.float16), b=want.astype(ml_dtypes.bfloat16))
    header = {
        "a": dict(dtype="F16", shape=[2, 3], data_offsets=[0, 12]),
        "b": dict(dtype="BF16", shape=[2, 3], data_offsets=[12, 24]),
    }
    data = weights["a"].tobytes() + weights["b"].tobytes()
    (tmp_path / "model.safetensors").write_bytes(safetensors(header, data))
    entries = weight_files.open_safetensors(str(tmp_path))
    found = weight_files.take(entries, dict(a=(2, 3), b=(2, 3)), "there")
    for x in found.values():
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x, want)


@pytest.mark.parametrize("dtype", [np.int64, np.float64, np.bool_])
def test_weights_of_other_types_are_refused(dtype, tmp_path):
    save_file({"x": np.ones(2, dtype)}, tmp_path / "model.safetensors")
    entries = weight_files.open_safetensors(str(tmp_path))
    with pytest.raises(BadInput, match="expected float32, float16 or bfloat16: x"):
        weight_files.take(entries, {"x": (2,)}, "there")


def test_reshaped_weights_are_listed(tmp_path):
    save_file({"x": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    entries = weight_files.open_safetensors(str(tmp_path))
    with pytest.raises(BadInput, match=r"other shapes than its config says: x \[2\], expected \[3"):
        weight_files.take(entries, {"x": (3,)}, "there")
