"""What is kept of a block of examples."""

import gc
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data.prepare import scan, store

COLUMNS = {
    "id": np.array([3, 5, 9]),
    "cells": np.arange(3 * 48, dtype=np.uint8).reshape(3, 48),
    "phash": np.array([1, 2**64 - 1, 7], np.uint64),
    "reason": np.array(["rule größe", "no picture"]),
    "sizes": np.zeros((0, 4), np.int32),
}


@pytest.fixture
def output(tmp_path):
    path = scan.scan_path(str(tmp_path), 0)
    store.write(path, scan.packed(COLUMNS), str(tmp_path))
    return str(tmp_path)


@pytest.mark.parametrize("keys", [list(COLUMNS), ["sizes", "cells"], []])
def test_columns_are_read_as_they_were_written(output, keys):
    found = scan.read_scan(output, 0, keys)
    assert list(found) == keys
    for key in keys:
        assert found[key].dtype == COLUMNS[key].dtype
        np.testing.assert_array_equal(found[key], COLUMNS[key])


class Circle:
    """What only the garbage collector frees, by running Python."""

    def __init__(self):
        self.circle = self

    def __del__(self):
        sum(range(20))


def test_columns_are_read_by_several_threads_while_garbage_is_collected(output):
    """Python 3.11 cannot: numpy's own format needs `ast.parse` (cpython issue 106905)."""

    def read(_):
        for _ in range(5):
            Circle()
        return scan.read_scan(output, 0, list(COLUMNS))["id"].tolist()

    threshold, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(50, 2, 2)
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(ids == [3, 5, 9] for ids in pool.map(read, range(6000)))
    finally:
        gc.set_threshold(*threshold)
        sys.setswitchinterval(interval)
