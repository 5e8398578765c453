import ctypes
import sys
import types

import pytest

from data.heap import keep_freed_memory


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
