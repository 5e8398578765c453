import threading

import pytest

from data.latest import Latest


def fetching(max_bytes):
    """The keys that were fetched, and what fetches them: as many bytes as the key says."""
    fetched = []
    return fetched, Latest(lambda key: fetched.append(key) or bytes(key), max_bytes)


def test_the_oldest_are_forgotten_as_far_as_memory_needs():
    fetched, latest = fetching(10)
    for key in (4, 3, 4, 5, 4, 3):  # to keep 5 as well, 3 goes, since 4 was used later
        assert latest(key) == bytes(key)
    assert fetched == [4, 3, 5, 3]


def test_one_that_is_larger_than_all_is_kept_alone():
    fetched, latest = fetching(10)
    for key in (4, 20, 20, 4):
        latest(key)
    assert fetched == [4, 20, 4]


def test_nothing_is_a_result_too():
    fetched, latest = fetching(10)
    assert latest(0) == latest(0) == b"" and fetched == [0]


def test_who_wants_what_is_on_its_way_waits():
    begun, go, fetched = threading.Event(), threading.Event(), []

    def fetch(key):
        fetched.append(key)
        begun.set()
        assert go.wait(60)
        return b"result"

    latest, results = Latest(fetch, 10), []
    threads = [threading.Thread(target=lambda: results.append(latest("a"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert begun.wait(60)
    go.set()
    for thread in threads:
        thread.join()
    assert fetched == ["a"] and results == [b"result"] * 4


def test_a_failure_is_not_kept():
    failures = [OSError("gone")]

    def fetch(key):
        if failures:
            raise failures.pop()
        return b"result"

    latest = Latest(fetch, 10)
    with pytest.raises(OSError, match="gone"):
        latest("a")
    assert latest("a") == b"result"
