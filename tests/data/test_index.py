"""Indexes of shards: made once, kept, and made again when they cannot be kept."""

import errno
import io
import os
import re
import subprocess
import sys
import tarfile
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest

from data import files, index
from data.index import Indexes, narrow, pack, unpack
from mm.config import BadInput


class Counting:
    """An index of a file: where each of its bytes is. Counts how often one was made."""

    def __init__(self):
        self.built = []

    def __call__(self, path):
        self.built.append(os.path.basename(path))
        content = files.read(path)
        loss = "a loss" if content.endswith(b"!") else ""
        return {
            "count": np.array(len(content)),
            "loss": pack(loss),
            "begin": narrow(range(len(content))),
        }


@pytest.fixture
def build():
    return Counting()


@pytest.fixture
def paths(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.shard").write_bytes(b"x" * i)
    return [f"{tmp_path}/{i}.shard" for i in range(3)]


def forget(monkeypatch):
    """As in another program."""
    monkeypatch.setattr(index, "_memory", index._Memory(1 << 30))


def test_an_index_is_made_once(build, paths, monkeypatch):
    for _ in range(2):
        indexes = Indexes("bytes 1", build)
        assert indexes.count(paths).tolist() == [0, 1, 2]
        assert indexes.load(paths[2])["begin"].tolist() == [0, 1]
        forget(monkeypatch)
    assert sorted(build.built) == ["0.shard", "1.shard", "2.shard"]


def test_another_file_or_format_has_another_index(build, paths):
    Indexes("bytes 1", build).count(paths)
    with open(paths[1], "ab") as file:
        file.write(b"xxx")
    assert Indexes("bytes 1", build).count(paths).tolist() == [0, 4, 2]
    Indexes("bytes 2", build).count(paths[:1])
    assert build.built[3:] == ["1.shard", "0.shard"]


def test_counts_of_a_set_load_no_index(build, paths, monkeypatch):
    Indexes("bytes 1", build).count(paths)
    forget(monkeypatch)
    read, loaded = files.read, []
    monkeypatch.setattr(files, "read", lambda path: loaded.append(path) or read(path))
    assert Indexes("bytes 1", build).count(paths).tolist() == [0, 1, 2]
    assert len(loaded) == 1


def test_the_environment_says_where_indexes_are(build, paths, tmp_path, index_dir):
    Indexes("bytes 1", build).count(paths)
    assert len(list(index_dir.iterdir())) == 4  # and one of the set
    Indexes("bytes 1", build, str(tmp_path / "a" / "b")).count(paths)
    assert len(list((tmp_path / "a" / "b").iterdir())) == 4


def test_the_folder_may_be_far_away(build, paths, monkeypatch):
    folder = f"memory://{uuid.uuid4().hex}/index"
    for _ in range(2):
        assert Indexes("bytes 1", build, folder).count(paths).tolist() == [0, 1, 2]
        forget(monkeypatch)
    assert len(build.built) == 3 and len(fsspec.filesystem("memory").ls(folder)) == 4


@pytest.mark.parametrize("damage", [b"", b"PK", b"x" * 300, "half", "flipped"])
def test_a_damaged_index_is_made_again(build, paths, index_dir, monkeypatch, caplog, damage):
    Indexes("bytes 1", build).load(paths[2])
    forget(monkeypatch)
    (file,) = index_dir.iterdir()
    content = bytearray(file.read_bytes())
    content[content.index(b"NUMPY") + 60] ^= 1
    halves = {"half": content[: len(content) // 2], "flipped": content}
    file.write_bytes(halves.get(damage, damage))
    for _ in range(2):
        assert Indexes("bytes 1", build).load(paths[2])["begin"].tolist() == [0, 1]
        forget(monkeypatch)
    assert build.built == ["2.shard"] * 2 and f"{file}: is damaged" in caplog.text


def test_an_index_is_never_unpickled(build, paths, index_dir, monkeypatch):
    Indexes("bytes 1", build).load(paths[2])
    forget(monkeypatch)
    (file,) = index_dir.iterdir()

    class Evil:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    np.savez(file, count=np.array([Evil()], object), loss=pack(""), begin=narrow([0]))
    assert Indexes("bytes 1", build).load(paths[2])["count"] == 2


def test_a_full_disk_costs_the_index_and_one_warning(build, paths, index_dir, monkeypatch, caplog):
    class Full(io.BytesIO):
        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_full(file, mode, **kwargs):
        if mode != "wb":
            return open(file, mode, **kwargs)
        return Full()

    monkeypatch.setattr(files, "open", open_full, raising=False)
    indexes = Indexes("bytes 1", build)
    assert indexes.count(paths).tolist() == [0, 1, 2] and not indexes.is_kept
    forget(monkeypatch)
    assert indexes.load(paths[2])["begin"].tolist() == [0, 1]
    assert build.built.count("2.shard") == 2
    assert caplog.text.count("No space left on device") == 1 and str(index_dir) in caplog.text
    assert not list(index_dir.iterdir())  # no half of a file


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), None])
def test_a_folder_that_takes_no_files_costs_one_warning(
    build, paths, tmp_path, monkeypatch, caplog, error
):
    def refuse(*_):
        raise error

    if error:
        monkeypatch.setattr(files, "open", refuse, raising=False)
    (tmp_path / "file").touch()
    folder = tmp_path / ("folder" if error else "file")
    assert Indexes("bytes 1", build, str(folder)).count(paths).tolist() == [0, 1, 2]
    assert caplog.text.count("indexes cannot be kept in") == 1 and str(folder) in caplog.text


def test_an_index_that_cannot_be_read_is_made_again(build, paths, monkeypatch, caplog):
    Indexes("bytes 1", build).count(paths)
    forget(monkeypatch)
    read = files.read

    def refuse(path):
        if path.endswith(".npz"):
            raise files.ReadError(f"{path}: cannot be read")
        return read(path)

    monkeypatch.setattr(files, "read", refuse)
    assert Indexes("bytes 1", build).count(paths).tolist() == [0, 1, 2]
    assert caplog.text.count("indexes cannot be kept in") == 1


def test_what_is_lost_is_told_each_time_with_the_shard(build, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(index, "_LOSSES_TOLD", 2)
    for i in range(4):
        (tmp_path / f"{i}.shard").write_bytes(b"x!" if i else b"x")
    for _ in range(2):
        caplog.clear()
        Indexes("bytes 1", build).count(files.expand(f"{tmp_path}/*.shard"))
        assert [record.message for record in caplog.records] == [
            f"{tmp_path}/1.shard: a loss",
            f"{tmp_path}/2.shard: a loss",
            "and so on, of 3 shards",
        ]


def test_what_was_used_last_stays_in_memory():
    arrays = {name: {"begin": np.zeros(50, np.uint8)} for name in "abc"}
    memory = index._Memory(100)
    memory.put("a", arrays["a"])
    memory.put("b", arrays["b"])
    assert memory.get("a") is arrays["a"]
    memory.put("c", arrays["c"])
    memory.put("c", arrays["c"])
    assert memory.get("b") is None and memory.get("a") and memory.get("c")
    memory.put("d", {"begin": np.zeros(1000, np.uint8)})  # larger than all
    assert memory.get("d") and memory.get("c") is None


def test_many_shards_are_indexed_at_once_and_a_line_tells_how_far(
    tmp_path, monkeypatch, capsys, build
):
    monkeypatch.setattr(index, "_PROGRESS_SECONDS", -1.0)
    both = threading.Barrier(2, timeout=60)

    def wait(path):
        both.wait()
        return build(path)

    for i in range(4):
        (tmp_path / f"{i}.shard").write_bytes(b"x")
    assert Indexes("bytes 1", wait).count(files.expand(f"{tmp_path}/*")).tolist() == [1] * 4
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r"\d+ s ", "# s ", line) for line in lines] == [
        f"indexed {done} of 4 shards, about # s left" for done in (1, 2, 3)
    ]


def test_a_shard_that_cannot_be_indexed_ends_it(build, paths, tmp_path):
    with pytest.raises(BadInput, match="3.shard: cannot be read"):
        Indexes("bytes 1", build).count([*paths, f"{tmp_path}/3.shard"])


def test_threads_may_load_at_once(build, paths, monkeypatch):
    monkeypatch.setattr(index, "_memory", index._Memory(1))
    indexes = Indexes("bytes 1", build)
    with ThreadPoolExecutor(8) as pool:
        counts = pool.map(lambda i: int(indexes.load(paths[i % 3])["count"]), range(99))
    assert list(counts) == [0, 1, 2] * 33


def test_texts_and_numbers_come_back_as_they_were():
    assert unpack(pack("größe \udcff\n")) == "größe \udcff\n" and unpack(pack("")) == ""
    assert narrow([]).tolist() == [] and narrow([1 << 40]).tolist() == [1 << 40]
    assert narrow([0, 255]).dtype == np.uint8 and narrow([256]).dtype == np.uint16


@pytest.fixture
def tars(tmp_path):
    for i in range(3):
        with tarfile.open(tmp_path / f"{i}.tar", "w") as tar:
            for j in range(i + 1):
                tar.addfile(tarfile.TarInfo(f"{j}.jpg"))
    return tmp_path


def test_indexes_can_be_made_ahead(tars, capsys, index_dir):
    assert index.main([f"{tars}/{{0..1}}.tar", f"{tars}/2.tar"]) == 0
    assert capsys.readouterr().out == f"3 shards, 6 examples, indexed in {index_dir}\n"
    assert len(list(index_dir.iterdir())) == 4
    elsewhere = tars / "elsewhere"
    assert index.main([f"{tars}/0.tar", f"--index_dir={elsewhere}", "--format=webdataset"]) == 0
    assert len(list(elsewhere.iterdir())) == 2


@pytest.mark.parametrize(
    "args, message",
    [
        (["{tars}/3.tar"], "error: {tars}/3.tar: cannot be read (No such file or directory)"),
        (["{tars}/*.tfrecord"], "error: {tars}/*.tfrecord: matches no file"),
        (["{tars}/0.tar", "a.tfrecord"], "error: shards of several formats"),
        (["{tars}/0.zip"], "error: {tars}/0.zip: has none of ['.tar', '.tfrecord'] in its name"),
        (["{tars}/0.tar", "--index_dir={tars}/0.tar"], "error: {tars}/0.tar: no index could be"),
    ],
)
def test_what_cannot_be_indexed_ahead_is_said(tars, capsys, args, message):
    assert index.main([arg.replace("{tars}", str(tars)) for arg in args]) == 2
    assert message.replace("{tars}", str(tars)) in capsys.readouterr().err


def test_the_command_warns_of_what_is_lost(tars):
    content = (tars / "2.tar").read_bytes()
    (tars / "2.tar").write_bytes(content[:1536])
    command = [sys.executable, "-m", "data.index", f"{tars}/2.tar"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1 shards, 3 examples")
    assert done.stderr == (
        f"warning: {tars}/2.tar: is cut off or damaged at byte 1,536 of 1,536: its 3 examples "
        "before that are read\n"
    )
