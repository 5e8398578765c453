"""What was asked for latest is kept, as far as memory goes."""

import collections
import concurrent.futures
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Latest(Generic[K, V]):
    """fetch(key), its latest used results kept: max_bytes of them, or one that is larger.

    From any thread. Who wants a result that is on its way waits for it; a failure is not kept.
    """

    def __init__(self, fetch: Callable[[K], V], max_bytes: int, size: Callable[[V], int] = len):
        self._fetch, self._max_bytes, self._size = fetch, max_bytes, size
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[K, concurrent.futures.Future] = (
            collections.OrderedDict()
        )
        self._sizes: dict[K, int] = {}  # of those that have come
        self._bytes = 0

    def __call__(self, key: K) -> V:
        with self._lock:
            found = self._kept.get(key)
            mine = found is None
            if mine:
                found = self._kept[key] = concurrent.futures.Future()
            self._kept.move_to_end(key)
        if mine:
            try:
                value = self._fetch(key)
            except BaseException as error:
                with self._lock:
                    del self._kept[key]
                found.set_exception(error)
            else:
                found.set_result(value)
                self._keep(key, self._size(value))
        return found.result()

    def _keep(self, key: K, size: int) -> None:
        """Forgets the oldest until there is room; those on their way stay."""
        with self._lock:
            self._sizes[key] = size
            self._bytes += size
            while self._bytes > self._max_bytes and len(self._sizes) > 1:
                old = next(other for other in self._kept if other in self._sizes and other != key)
                del self._kept[old]
                self._bytes -= self._sizes.pop(old)
