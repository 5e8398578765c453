"""Files here and far away: local paths, and gs://, s3://, memory:// ... through fsspec.

Reads are by position and from any thread. What may pass is tried again; what will not is said in
one line. Far away, a file is read in blocks that are kept for a while: neighbours come with it.
"""

import contextlib
import errno
import functools
import glob
import itertools
import logging
import os
import pathlib
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import fsspec

from data.latest import Latest
from mm.config import BadInput, suggest

T = TypeVar("T")

TRIES = 5
_FIRST_PAUSE_SECONDS = 0.2  # doubled after each try: 3 seconds in all
_SLOW_SECONDS = 30.0
_BLOCK_BYTES = 4 << 20  # of a remote file: long enough that the way there costs little
_CACHE_MB = os.environ.get("MM_READ_CACHE_MB", "1024")
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_NO_NAMES = (errno.ENAMETOOLONG, errno.ELOOP)  # of a file that can be
_MAX_NEAR = 100  # names in a folder: to find the nearest takes 27 us of each
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")

# Whose errors of the network are no OSError.
_CLIENTS = ("aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "http", "s3fs")

log = logging.getLogger(__name__)
_reading: dict[object, tuple[float, str]] = {}  # since when, and what


class ReadError(BadInput):
    """A file that is there could not be read, and trying again did not help."""


class MissingError(BadInput):
    """There is no such file."""


def expand(pattern: str | Sequence[str]) -> list[str]:
    """The files that patterns name: `{000..099}` counts, `{a,b}` lists, `*`, `?`, `[]` match.

    In the order of the patterns, those of one `*` sorted, each once; `~` is the home folder.
    Raises BadInput if one names no file; what is written out (without * and the like) is not looked
    for until it is read.
    """
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    found: dict[str, None] = {}
    for path in itertools.chain.from_iterable(map(_unbrace, patterns)):
        path = os.path.expanduser(path)
        paths = [path]
        if glob.has_magic(path) and not os.path.exists(path):  # names may have [brackets]
            paths = _glob(path)
            if not paths:
                raise BadInput(f"{path}: matches no file")
        found |= dict.fromkeys(paths)
    if not found:
        raise BadInput(f"{pattern!r}: names no file")
    return list(found)


def walk(folder: str) -> list[str]:
    """The names of all files in a folder and the folders in it, such as "a/b.png", sorted.

    Without those that begin with a dot, and without what is in folders that do. Raises as `read`.
    """
    folder = os.path.expanduser(folder).rstrip("/") or "/"
    if not is_remote(folder):
        return sorted(retried(folder, lambda: _walk_local(folder)))
    filesystem, inner = _filesystem(folder)
    paths = retried(folder, lambda: filesystem.find(inner))
    names = [path.removeprefix(inner).lstrip("/") for path in paths]
    return sorted(name for name in names if not any(p.startswith(".") for p in name.split("/")))


def is_remote(path: str) -> bool:
    return "://" in path


def join(folder: str, name: str) -> str:
    """`name` inside `folder`; an absolute or remote name is itself."""
    if is_remote(name) or os.path.isabs(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else os.path.join(folder, name)


def parent(path: str) -> str:
    """The folder of a file."""
    return path.rsplit("/", 1)[0] if is_remote(path) else os.path.dirname(path) or "."


def size(path: str) -> int:
    """In bytes. Raises as `read`."""
    if is_remote(path):
        return retried(path, lambda: _filesystem(path)[0].size(_filesystem(path)[1]))
    return retried(path, lambda: os.stat(path).st_size)


def stamp(path: str) -> str:
    """What differs as soon as the file does, as far as can be known without reading it.

    Raises as `read`.
    """
    if not is_remote(path):
        found = retried(path, lambda: os.stat(path))
        return f"{found.st_size} {found.st_mtime_ns}"
    filesystem, inner = _filesystem(path)
    return str(retried(path, lambda: filesystem.ukey(inner)))


def read(path: str, start: int = 0, stop: int | None = None) -> bytes:
    """The bytes from start to stop (None: the end; less where the file is shorter).

    Raises MissingError when it is not there, BadInput when it is not to be read, ReadError when it
    still fails after TRIES times.
    """
    if not is_remote(path):
        return retried(path, lambda: _read_local(path, start, stop))
    if start == 0 and stop is None:
        filesystem, inner = _filesystem(path)
        return retried(path, lambda: filesystem.cat_file(inner))
    stop = size(path) if stop is None else stop
    first, last = start // _BLOCK_BYTES, max(start, stop - 1) // _BLOCK_BYTES
    whole = b"".join(_blocks((path, number)) for number in range(first, last + 1))
    offset = first * _BLOCK_BYTES
    return whole[start - offset : stop - offset]


def exists(path: str) -> bool:
    """Whether something is there, as far as one may know."""
    if not is_remote(path):
        return os.path.exists(path)
    filesystem, inner = _filesystem(path)
    return filesystem.exists(inner)


def write(path: str, content: bytes) -> None:
    """All of it or nothing, in a folder that is made if need be. Raises OSError."""
    if is_remote(path):
        filesystem, inner = _filesystem(path)
        filesystem.pipe_file(inner, content)
        return
    os.makedirs(parent(path), exist_ok=True)
    # Not by tempfile, whose files nobody else may read.
    name = f".{os.path.basename(path)}.{os.getpid()}.{threading.get_ident()}"
    part = os.path.join(parent(path), name)
    try:
        with open(part, "wb") as file:
            file.write(content)
        os.replace(part, path)
    finally:
        pathlib.Path(part).unlink(missing_ok=True)


def _read_local(path: str, start: int, stop: int | None) -> bytes:
    file = os.open(path, os.O_RDONLY)  # a third of the time that open() takes
    try:
        wanted = (os.fstat(file).st_size if stop is None else stop) - start
        parts = []
        while wanted > 0 and (part := os.pread(file, wanted, start)):
            parts.append(part)
            start, wanted = start + len(part), wanted - len(part)
    finally:
        os.close(file)
    return b"".join(parts)


def _walk_local(folder: str) -> list[str]:
    def fail(error: OSError) -> None:
        raise error

    names, seen = [], {os.path.realpath(folder)}
    for path, folders, here in os.walk(folder, followlinks=True, onerror=fail):
        real = {name: os.path.realpath(os.path.join(path, name)) for name in folders}
        # A link may lead in a circle.
        folders[:] = [n for n, to in real.items() if not n.startswith(".") and to not in seen]
        seen.update(real[name] for name in folders)
        prefix = "" if path == folder else f"{os.path.relpath(path, folder)}/"
        names += [prefix + name for name in here if not name.startswith(".")]
    return names


def local_copy(path: str) -> str:
    """The path of a copy of a remote file on this machine's disk, until the process ends.

    For formats that nobody reads in parts from afar. A local file is itself. Raises as `read`.
    """
    if not is_remote(path):
        return path
    return retried(path, lambda: fsspec.open_local(f"simplecache::{path}", mode="rb"))


@contextlib.contextmanager
def local_folder(folder: str, endings: tuple[str, ...]) -> Iterator[str]:
    """The path of a copy of a remote folder on this machine's disk, while the context is open.

    Of the files right in it whose names end so. A local folder is itself. Raises as `read`, and
    BadInput where the disk has no room for them.
    """
    if not is_remote(folder):
        yield folder
        return
    filesystem, inner = _filesystem(folder)
    found = retried(folder, lambda: filesystem.ls(inner, detail=True))
    sizes = {
        entry["name"].rsplit("/", 1)[-1]: entry["size"]
        for entry in found
        if entry["type"] == "file" and entry["name"].endswith(endings)
    }
    there, needed = tempfile.gettempdir(), sum(sizes.values())
    if needed > (free := shutil.disk_usage(there).free):
        raise BadInput(
            f"{folder}: its files have {needed:,} bytes, {there} has room for {free:,}; set TMPDIR "
            "to a folder on a larger disk"
        )
    with tempfile.TemporaryDirectory(prefix="copy-") as local:
        for name, size in sizes.items():
            _copy(join(folder, name), os.path.join(local, name), size)
        yield local


def _copy(path: str, local: str, size: int) -> None:
    filesystem, inner = _filesystem(path)

    def copy() -> None:
        filesystem.get_file(inner, local)
        if (copied := os.path.getsize(local)) != size:
            raise OSError(f"{copied:,} of {size:,} bytes came")

    retried(path, copy)


def longest_read() -> tuple[float, str] | None:
    """Of the reads that have not returned yet, the seconds of the longest, and its path."""
    running = min(list(_reading.values()), default=None)
    return running and (time.monotonic() - running[0], running[1])


def retried(path: str, function: Callable[[], T]) -> T:
    """What `function` returns, which reads the file: tried again where an error may pass.

    Raises as `read`.
    """
    begin = time.monotonic()
    _reading[this := object()] = begin, path
    try:
        return _tried(path, function, begin)
    finally:
        del _reading[this]


def _tried(path: str, function: Callable[[], T], begin: float) -> T:
    for attempt in range(TRIES):
        try:
            result = function()
            break
        except PermissionError as error:
            raise BadInput(f"{path}: cannot be read ({_reason(error)})") from error
        except _MISSING as error:
            hint = suggest(os.path.basename(path), _near(path))
            raise MissingError(f"{path}: cannot be read ({_reason(error)}){hint}") from error
        except Exception as error:
            if getattr(error, "errno", None) in _NO_NAMES:
                raise MissingError(f"{path}: cannot be read ({_reason(error)})") from error
            if not isinstance(error, OSError) and _package(error) not in _CLIENTS:
                raise
            if attempt == TRIES - 1:
                raise ReadError(f"{path}: cannot be read, tried {TRIES} times ({error})") from error
            log.warning("%s: cannot be read (%s), trying again", path, error)
            time.sleep(_FIRST_PAUSE_SECONDS * 2**attempt)
    if (seconds := time.monotonic() - begin) > _SLOW_SECONDS:
        log.warning("%s: one read took %.0f s", path, seconds)
    return result


def _package(error: Exception) -> str:
    return type(error).__module__.partition(".")[0]


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _near(path: str) -> list[str]:
    """The names beside a local file; none where they are too many to compare."""
    folder = parent(path)
    if is_remote(path) or not os.path.isdir(folder):
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in itertools.islice(entries, _MAX_NEAR + 1)]
    return names if len(names) <= _MAX_NEAR else []


def _fetch_block(key: tuple[str, int]) -> bytes:
    if not _CACHE_MB.isdecimal():  # said here, where somebody can be told
        raise BadInput(f"MM_READ_CACHE_MB={_CACHE_MB}: expected a whole number of MiB")
    path, number = key
    filesystem, inner = _filesystem(path)
    start = number * _BLOCK_BYTES
    return retried(path, lambda: filesystem.cat_file(inner, start, start + _BLOCK_BYTES))


_blocks = Latest(_fetch_block, (int(_CACHE_MB) if _CACHE_MB.isdecimal() else 0) << 20)


@functools.lru_cache(1 << 14)
def _filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:  # its package is missing; no such protocol
        raise BadInput(f"{path}: cannot be opened ({error})") from error


def _glob(path: str) -> list[str]:
    if not is_remote(path):
        return sorted(glob.glob(path))
    filesystem, inner = _filesystem(path)
    return [filesystem.unstrip_protocol(name) for name in sorted(filesystem.glob(inner))]


def _unbrace(path: str) -> list[str]:
    match = _BRACES.search(path)
    if not match:
        return [path]
    first, last, listed = match.groups()
    if listed is None:
        if int(last) < int(first):
            raise BadInput(f"{path}: {match[0]} counts down; expected the smaller number first")
        items = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
    else:
        items = listed.split(",")
    before, after = path[: match.start()], path[match.end() :]
    return [before + item + rest for item in items for rest in _unbrace(after)]
