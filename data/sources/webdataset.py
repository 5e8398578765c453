"""Tar shards as WebDataset and img2dataset write them, read at random.

Members whose names agree up to the first dot, as in 000012.jpg, 000012.txt, 000012.json, are the
fields of one example. Nothing is ever extracted: a member is read from its place in the shard, and
no path is made of its name.
"""

import collections
import functools
import itertools
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data import files
from data.index import Index, Indexes, narrow, open_shard, pack, unpack
from data.sources import BadExample, Feature, Source
from data.sources.features import declared, from_json, missing, text
from data.sources.part import part
from data.sources.sharded import Sharded
from mm import registry
from mm.config import BadInput, suggest

KEY = "__key__"  # the field that is the name of the example, as in the library
# What a field may be called in a shard, the first that there is.
_NAMES = {"image": ("jpg", "jpeg", "png", "webp", "gif", "bmp"), "caption": ("txt",)}
_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}
# What tarfile raises on bytes that are no tar: some of it by int() or by reading too little.
_NO_TAR = (tarfile.TarError, ValueError, RecursionError)
_BLOCK = tarfile.BLOCKSIZE
_AFTER_END = 1 << 20  # bytes behind the end mark that are looked at; programs fill up with zeros


@registry.register("source", "webdataset")
def webdataset(
    *,
    path: str | Sequence[str],
    image_key: str = "image",
    caption_key: str = "caption",
    json_features: Mapping[str, Any] | None = None,
    first: float = 0.0,
    last: float = 1.0,
    index_dir: str | None = None,
) -> Source:
    """Shards such as path="photos/{00000..00099}.tar", of pictures, texts and JSON.

    image_key, caption_key: the ends of the members' names that are the fields `image` and
    `caption`; "image" is whichever of jpg, jpeg, png, webp, gif and bmp there is, "caption" is txt.
    first, last: the share of the examples that is taken, see `part`. json_features: fields of the
    examples' JSON, as in {"width": "int64", "similarity": "float32"}, see `declared`. The field
    "__key__" is an example's name. index_dir: where it is kept what is where in the shards, see
    `data.index`. A shard that was cut off gives the examples before the cut, and a warning, as do
    members that are left out. Raises BadInput when a shard cannot be read or is no tar, and when
    the first one does not have the fields.
    """
    inner = declared(json_features or {})
    for key, feature in inner.items():
        if feature.dtype in ("image", "bytes"):
            raise BadInput(f"json_features: {key}={feature.dtype!r}: JSON has texts and numbers")
    features = {"image": Feature("image"), "caption": Feature("text")} | inner
    features[KEY] = Feature("text")
    names = {"image": _names(image_key), "caption": _names(caption_key)}
    names = {field: ends for field, ends in names.items() if field not in inner}
    record = functools.partial(_record, features, names)
    source = Sharded(files.expand(path), indexes(index_dir), features, record)
    shard, index = source.first()
    have = unpack(index["fields"]).split("\0")
    for field, key in (("image", image_key), ("caption", caption_key)):
        if field not in names or any(name in have for name in names[field]):
            continue
        if key not in _NAMES:
            raise BadInput(f"{shard}: has no members .{key}{suggest(key, have)} (have {have[:20]})")
        del features[field], names[field]
    if inner:
        _check_json(shard, index, inner)
    return part(source, first, last)


def indexes(folder: str | None = None) -> Indexes:
    """Of tars. Member m is `size[m]` bytes from `start[m]` on, its field has number `field[m]`.

    Example i has the members from `first[i]` to `first[i + 1]`, and its name is the bytes of `keys`
    from `key[i]` to `key[i + 1]`. `fields`: the names of the fields, with zeros between them.
    """
    return Indexes("tar 1", _build, folder)


def _names(key: str) -> tuple[str, ...]:
    return _NAMES.get(key, (key.lower(),))


def _record(
    features: Mapping[str, Feature],
    names: Mapping[str, Sequence[str]],
    path: str,
    index: Index,
    row: int,
    keys: Sequence[str],
) -> dict[str, Any]:
    name, members = _members_of(index, row)
    where = f"{path} {name!r}"
    inner = set(keys) - {KEY, *names}
    parsed = _parse(path, members, where) if inner else {}
    record: dict[str, Any] = {}
    for key in keys:
        if key == KEY:
            record[key] = name
        elif key in inner:
            if parsed.get(key) is None:
                raise missing(where, key, (n for n, value in parsed.items() if value is not None))
            record[key] = from_json(parsed[key], features[key], where, key)
        else:
            content = _read(path, members, names[key], where, key)
            record[key] = text(content, where, key) if features[key].dtype == "text" else content
    return record


def _members_of(index: Index, row: int) -> tuple[str, dict[str, tuple[int, int]]]:
    """The name of an example, and where the members of its fields are."""
    begin, end = index["key"][row:][:2].tolist()
    name = index["keys"][begin:end].tobytes().decode("utf-8", "backslashreplace")
    fields = unpack(index["fields"]).split("\0")
    here = slice(*index["first"][row:][:2].tolist())
    columns = (index[column][here].tolist() for column in ("field", "start", "size"))
    return name, {fields[f]: (start, size) for f, start, size in zip(*columns, strict=True)}


def _read(
    path: str,
    members: Mapping[str, tuple[int, int]],
    names: Sequence[str],
    where: str,
    key: str,
) -> bytes:
    place = next((members[name] for name in names if name in members), None)
    if place is None:
        raise missing(where, key, members)
    start, size = place
    content = files.read(path, start, start + size)
    if len(content) < size:
        raise BadInput(f"{path}: is shorter than it was when it was opened; start again")
    return content


def _parse(path: str, members: Mapping[str, tuple[int, int]], where: str) -> dict[str, Any]:
    try:
        parsed = json.loads(_read(path, members, ("json",), where, "json"))
    except (ValueError, RecursionError) as error:
        raise BadExample(f"{where}: its JSON is none ({error})", "JSON cannot be read") from error
    if not isinstance(parsed, dict):
        raise BadExample(f"{where}: its JSON is no object", "JSON cannot be read")
    return parsed


def _check_json(path: str, index: Index, inner: Mapping[str, Feature]) -> None:
    """Raises BadInput if fields are not in the first JSON: then their names are wrong."""
    name, members = _members_of(index, 0)
    try:
        parsed = _parse(path, members, f"{path} {name!r}")
    except BadExample as error:
        if "json" not in unpack(index["fields"]).split("\0"):
            raise BadInput(f"json_features={sorted(inner)}: {error}") from error
        return  # one example may be broken
    for key in inner:
        if key not in parsed:
            raise BadInput(
                f"json_features: {path} {name!r} has no {key!r}{suggest(key, parsed)} "
                f"(have {sorted(parsed)})"
            )


class _Cut(Exception):
    """From this byte on, a shard is no tar. name: of the member that misses a part, if known."""

    def __init__(self, byte: int, name: str | None = None):
        super().__init__(byte, name)
        self.byte, self.name = byte, name


def _build(path: str) -> Index:
    lost: collections.Counter[str] = collections.Counter()
    cut = ""
    examples: list[tuple[str, dict[str, tuple[int, int]]]] = []
    seen = set()
    try:
        for name, start, size in _members(path, lost):
            if _is_about_the_shard(name):
                continue
            if name.startswith("/") or ".." in name.split("/"):
                lost["members left out that are named outside of the shard"] += 1
                continue
            key, field = _split(name)
            if not field:
                lost["members left out that are not named like 0001.jpg"] += 1
                continue
            if not examples or examples[-1][0] != key:
                if key in seen:
                    lost["examples named like one before, from which others part them"] += 1
                seen.add(key)
                examples.append((key, {}))
            if field in examples[-1][1]:
                lost["members left out whose name comes twice"] += 1
            examples[-1][1].setdefault(field, (start, size))
    except _Cut as end:
        if examples and not _is_whole(examples, end):
            examples.pop()
        cut = f"is cut off or damaged at byte {end.byte:,} of {files.size(path):,}: "
        cut += f"its {len(examples):,} examples before that are read"
    told = [cut] if cut else []
    told += [f"{number:,} {what}" for what, number in lost.items()]
    return _packed(examples) | {"loss": pack("; ".join(told))}


def _packed(examples: Sequence[tuple[str, dict[str, tuple[int, int]]]]) -> Index:
    keys = [key.encode("utf-8", "surrogateescape") for key, _ in examples]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(f for _, m in examples for f in m))}
    members = [(numbers[f], *place) for _, fields in examples for f, place in fields.items()]
    field, start, size = zip(*members, strict=True) if members else ((), (), ())
    return {
        "count": np.array(len(examples)),
        "keys": np.frombuffer(b"".join(keys), np.uint8),
        "key": narrow([0, *itertools.accumulate(map(len, keys))]),
        "fields": pack("\0".join(numbers)),
        "first": narrow([0, *itertools.accumulate(len(fields) for _, fields in examples)]),
        "field": narrow(field),
        "start": narrow(start),
        "size": narrow(size),
    }


def _is_about_the_shard(name: str) -> bool:
    """`__info__` and what is in such a folder: no example, says the library."""
    head = name.split("/")[0]
    return len(head) >= 4 and head.startswith("__") and head.endswith("__")


def _split(name: str) -> tuple[str, str]:
    """a/b.seg.PNG -> a/b, seg.png; no field where there is none, or the name begins with a dot."""
    folder, slash, base = name.rpartition("/")
    stem, _, field = base.partition(".")
    return f"{folder}{slash}{stem}", field.lower() if stem else ""


def _is_whole(examples: Sequence[tuple[str, dict]], cut: _Cut) -> bool:
    """Whether the last example before a cut has all of its members, as far as can be known."""
    if cut.name is not None:
        return _split(cut.name)[0] != examples[-1][0]
    return len(examples) > 1 and len(examples[-1][1]) >= len(examples[-2][1])


def _members(path: str, lost: collections.Counter[str]) -> Iterator[tuple[str, int, int]]:
    """Name, place and size of each file in a tar; others are counted in `lost`. Raises _Cut."""
    size = files.size(path)
    if size < _BLOCK:  # an upload that was cut off, or never begun
        raise _Cut(size)
    with open_shard(path) as shard:
        try:
            tar = tarfile.TarFile(fileobj=shard, encoding="utf-8", errors="surrogateescape")
        except _NO_TAR as error:
            raise _no_tar(path, error) from error
        while True:
            try:
                member = tar.next()
            except _NO_TAR as error:
                raise _Cut(tar.offset) from error
            if member is None:
                break
            tar.members.clear()
            if member.size < 0:
                raise _Cut(member.offset)
            if not member.isreg():
                lost["members left out that are links or devices"] += not member.isdir()
            elif member.issparse():
                lost["members left out that are sparse"] += 1
            elif member.offset_data + member.size > size:
                raise _Cut(member.offset_data, member.name)
            else:
                yield member.name, member.offset_data, member.size
        # tarfile takes a broken head for the end.
        shard.seek(tar.offset)
        mark = shard.read(_BLOCK)
        if len(mark) < _BLOCK or any(mark):
            raise _Cut(tar.offset)
        if any(shard.read(_AFTER_END)):
            lost["archive after the end of the first, which is left out"] += 1


def _no_tar(path: str, error: Exception) -> BadInput:
    first = files.read(path, 0, 8)
    for magic, command in _COMPRESSED.items():
        if first.startswith(magic):
            return BadInput(
                f"{path}: is compressed, so it cannot be read at random; `{command}` it (pictures "
                "are compressed already)"
            )
    return BadInput(f"{path}: is no tar ({error})")
