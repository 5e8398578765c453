import ctypes
import sys
import types

import numpy as np
import pytest

from data.heap import Recycler, keep_freed_memory


@pytest.fixture(autouse=True)
def uncached():
    keep_freed_memory.cache_clear()
    yield
    keep_freed_memory.cache_clear()


def test_glibc_takes_both_settings(monkeypatch):
    """M_TRIM_THRESHOLD (-1) and M_MMAP_THRESHOLD (-3), mallopt(3)."""
    real, answers = getattr(ctypes.CDLL(None), "mallopt", None), {}
    if real is None:
        pytest.skip("no glibc")

    def mallopt(name, value):
        answers[name] = real(name, value)

    monkeypatch.setattr(ctypes, "CDLL", lambda _: types.SimpleNamespace(mallopt=mallopt))
    keep_freed_memory()
    assert answers == {-1: 1, -3: 1}


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_without_glibc_nothing_happens(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: types.SimpleNamespace())
    keep_freed_memory()


def test_memory_is_used_again_when_no_part_of_it_is_held():
    recycler, shape, kind = Recycler(), (3, 1 << 18), np.dtype(np.float32)
    first = recycler.empty(shape, kind)
    place = first.ctypes.data
    part = first[1:].reshape(-1)[5:]
    part[...] = 7
    del first
    second = recycler.empty(shape, kind)
    second[...] = 0
    assert second.ctypes.data != place and (part == 7).all()
    del part
    third = recycler.empty(shape, kind)
    assert third.ctypes.data == place and third.shape == shape and third.dtype == kind


def test_a_small_array_is_an_array_like_any_other():
    assert Recycler().empty((2, 3), np.dtype(bool)).shape == (2, 3)
