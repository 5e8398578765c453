"""Reading by position, near and far, and what happens when it fails."""

import os
import re
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data import files
from data.latest import Latest
from mm.config import BadInput


class Flaky(MemoryFileSystem):
    """Fails the first times that a file is read."""

    protocol = "flaky"
    store: dict = {}
    pseudo_dirs = [""]
    failures = 0
    error: Exception = ConnectionResetError("reset by peer")
    fetched: list = []

    def cat_file(self, path, start=None, end=None, **kwargs):
        if Flaky.failures:
            Flaky.failures -= 1
            raise Flaky.error
        Flaky.fetched.append((start, end))
        return super().cat_file(path, start, end, **kwargs)


@pytest.fixture
def flaky(monkeypatch):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(files, "_FIRST_PAUSE_SECONDS", 0.0)
    Flaky.failures, Flaky.fetched = 0, []
    path = f"flaky://{uuid.uuid4().hex}/a.bin"
    fsspec.filesystem("flaky").pipe_file(path, bytes(range(256)) * 4)
    return path


@pytest.mark.parametrize(
    "pattern, names",
    [
        ("{0..2}.tar", ["0.tar", "1.tar", "2.tar"]),
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("{b,a}/{0..1}", ["b/0", "b/1", "a/0", "a/1"]),
        (["x", "{0..1}", "x"], ["x", "0", "1"]),
    ],
)
def test_braces_count_and_list(pattern, names):
    assert files.expand(pattern) == names


def test_stars_match_what_is_there_in_order(tmp_path):
    for name in ("b.tar", "a.tar", "c.txt"):
        (tmp_path / name).touch()
    assert files.expand(f"{tmp_path}/*.tar") == [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"]
    with pytest.raises(BadInput, match=r"\*\.png: matches no file"):
        files.expand(f"{tmp_path}/*.png")


def test_brackets_in_a_name_that_is_there_are_of_the_name(tmp_path):
    (tmp_path / "some[1].tar").touch()
    assert files.expand(f"{tmp_path}/some[1].tar") == [f"{tmp_path}/some[1].tar"]


def test_stars_match_far_away(flaky):
    folder = files.parent(flaky)
    assert files.expand(f"{folder}/*.bin") == [flaky]


def test_a_link_that_leads_in_a_circle_is_followed_once(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.png").touch()
    (tmp_path / "self").symlink_to(tmp_path)
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    assert sorted(files.walk(str(tmp_path))) == ["a.png", "b/c.png"]


@pytest.mark.parametrize("start, stop", [(0, None), (3, 10), (250, 300), (1000, 2000), (5, 5)])
def test_a_part_of_a_file_is_the_same_near_and_far(tmp_path, flaky, monkeypatch, start, stop):
    monkeypatch.setattr(files, "_BLOCK_BYTES", 100)
    path = str(tmp_path / "a.bin")
    want = (bytes(range(256)) * 4)[start:stop]
    (tmp_path / "a.bin").write_bytes(bytes(range(256)) * 4)
    assert files.read(path, start, stop) == files.read(flaky, start, stop) == want
    assert files.size(path) == files.size(flaky) == 1024


def test_neighbours_in_a_block_cost_one_way(flaky, monkeypatch):
    monkeypatch.setattr(files, "_BLOCK_BYTES", 512)
    for start in range(0, 500, 50):
        files.read(flaky, start, start + 10)
    assert Flaky.fetched == [(0, 512)]


def test_the_oldest_blocks_are_forgotten(flaky, monkeypatch):
    monkeypatch.setattr(files, "_BLOCK_BYTES", 100)
    monkeypatch.setattr(files, "_blocks", Latest(files._fetch_block, 200))
    for start in (0, 100, 0, 200, 0, 100):
        files.read(flaky, start, start + 1)
    assert [start for start, _ in Flaky.fetched] == [0, 100, 200, 100]


def test_threads_that_want_a_block_fetch_it_once(flaky):
    threads = [threading.Thread(target=files.read, args=(flaky, 1, 2)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Flaky.fetched) == 1


@pytest.mark.parametrize("start, stop", [(0, None), (3, 10)])
def test_a_read_that_fails_twice_then_works_is_like_any_other(flaky, start, stop):
    Flaky.failures = 2
    assert files.read(flaky, start, stop) == (bytes(range(256)) * 4)[start:stop]


def test_an_error_of_a_client_of_a_store_may_pass_too(flaky, monkeypatch):
    error = type("HttpError", (Exception,), {"__module__": "gcsfs.retry"})
    monkeypatch.setattr(Flaky, "error", error("502"))
    Flaky.failures = 2
    assert len(files.read(flaky)) == 1024


def test_a_mistake_of_ours_is_not_tried_again(flaky, monkeypatch):
    monkeypatch.setattr(Flaky, "error", TypeError("no such argument"))
    Flaky.failures = 2
    with pytest.raises(TypeError, match="no such argument"):
        files.read(flaky)
    assert Flaky.failures == 1


def test_a_read_that_always_fails_ends_in_one_line(flaky):
    Flaky.failures = 99
    with pytest.raises(files.ReadError, match="a.bin: cannot be read, tried 5 times .*reset by"):
        files.read(flaky)
    Flaky.failures = 0
    assert len(files.read(flaky)) == 1024  # a failure is not remembered


def test_the_longest_read_is_known_while_it_lasts(tmp_path, monkeypatch):
    (tmp_path / "a.bin").write_bytes(b"abc")
    found, real = [], files._read_local

    def slow(*args):
        time.sleep(0.05)
        found.append(files.longest_read())
        return real(*args)

    monkeypatch.setattr(files, "_read_local", slow)
    assert files.read(f"{tmp_path}/a.bin") == b"abc"
    [(seconds, path)] = found
    assert seconds >= 0.05 and path == f"{tmp_path}/a.bin"
    assert files.longest_read() is None


def test_a_slow_read_is_told_of(flaky, monkeypatch, caplog):
    files.read(flaky)
    assert not caplog.text
    monkeypatch.setattr(files, "_SLOW_SECONDS", 0.05)
    real = MemoryFileSystem.cat_file
    monkeypatch.setattr(
        MemoryFileSystem, "cat_file", lambda *args, **given: time.sleep(0.1) or real(*args, **given)
    )
    files.read(flaky)
    assert re.search(r"a.bin: one read took \d+ s", caplog.text)


def test_a_size_of_the_cache_that_is_none_is_said(flaky, monkeypatch):
    monkeypatch.setattr(files, "_CACHE_MB", "much")
    with pytest.raises(BadInput, match="MM_READ_CACHE_MB=much: expected a whole number of MiB"):
        files.read(flaky, 0, 10)
    found = subprocess.run(
        [sys.executable, "-c", "from data import files; print(files._blocks._max_bytes)"],
        env=os.environ | {"MM_READ_CACHE_MB": "3"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(found.stdout) == 3 << 20


def test_a_copy_of_what_is_far_away_lies_here(flaky, tmp_path):
    assert files.local_copy(str(tmp_path)) == str(tmp_path)
    with open(files.local_copy(flaky), "rb") as file:
        assert file.read() == bytes(range(256)) * 4


def test_a_file_that_is_not_there_is_said_once(tmp_path):
    (tmp_path / "pairs.jsonl").touch()
    with pytest.raises(BadInput, match="did you mean 'pairs.jsonl'"):
        files.read(str(tmp_path / "pair.jsonl"))
    with pytest.raises(BadInput, match="none/a: cannot be read"):
        files.read("memory://none/a")


def test_the_names_of_a_large_folder_are_not_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MAX_NEAR", 2)
    for name in ("1.png", "2.png", "3.png"):
        (tmp_path / name).touch()
    with pytest.raises(files.MissingError) as error:
        files.read(str(tmp_path / "4.png"))
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize("name", ["none", "a.txt/b", "", "x" * 300])
def test_a_file_that_cannot_be_there_is_missing_at_once(tmp_path, name, caplog):
    (tmp_path / "a.txt").touch()
    with pytest.raises(files.MissingError, match="cannot be read"):
        files.read(f"{tmp_path}/{name}")
    assert not caplog.records


def test_a_tree_is_walked_near_and_far(tmp_path):
    names = ["a.txt", "b/c.txt", "b/d/e.txt", "f.txt"]
    far = f"memory://{uuid.uuid4().hex}"
    for name in [*names, ".hidden", "b/.git/g.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        fsspec.filesystem("memory").pipe_file(f"{far}/{name}", b"")
    assert files.walk(str(tmp_path)) == files.walk(f"{tmp_path}/") == files.walk(far) == names
    with pytest.raises(files.MissingError, match="tree: cannot be read"):
        files.walk(str(tmp_path / "tree"))


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").touch()
    assert files.expand(["~/a.txt", "~/*.txt"]) == [f"{tmp_path}/a.txt"]


def test_a_protocol_that_nobody_knows_is_refused():
    with pytest.raises(BadInput, match="sg://a/b: cannot be opened .*sg"):
        files.read("sg://a/b")


def test_names_are_inside_a_folder_unless_they_say_where_they_are():
    assert files.join("gs://b/c", "d.png") == "gs://b/c/d.png"
    assert files.join("/b", "gs://c/d.png") == "gs://c/d.png"
    assert files.join("/b", "/c/d.png") == "/c/d.png"
    assert files.parent("gs://b/c.json") == "gs://b"
    assert files.parent("c.json") == "."


def test_a_file_is_written_whole_with_its_folder(tmp_path):
    for path in (f"{tmp_path}/a/b/c.bin", f"memory://{uuid.uuid4().hex}/c.bin"):
        assert not files.exists(path)
        files.write(path, b"first")
        files.write(path, b"second")
        assert files.exists(path) and files.read(path) == b"second"
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["c.bin"]


def test_the_stamp_of_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInput, match="none.tar: cannot be read"):
        files.stamp(f"{tmp_path}/none.tar")


@pytest.fixture
def far_folder():
    far = f"memory://{uuid.uuid4().hex}"
    for name in ("a.json", "a.bin", "b/c.json"):
        fsspec.filesystem("memory").pipe_file(f"{far}/{name}", name.encode())
    return far


def test_of_a_far_folder_the_named_files_are_copied_for_a_while(far_folder, tmp_path):
    with files.local_folder(far_folder, (".json",)) as folder:
        assert [path.name for path in Path(folder).iterdir()] == ["a.json"]
        assert Path(folder, "a.json").read_text() == "a.json"
    assert not Path(folder).exists()
    with files.local_folder(str(tmp_path), (".json",)) as folder:
        assert folder == str(tmp_path)


def test_a_folder_for_which_there_is_no_room_is_refused(far_folder, monkeypatch):
    full = SimpleNamespace(free=5)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: full)
    with pytest.raises(BadInput, match="have 6 bytes, .* has room for 5; set TMPDIR to a folder"):
        with files.local_folder(far_folder, (".json",)):
            pass


def test_a_copy_that_is_cut_is_an_error(far_folder, monkeypatch):
    monkeypatch.setattr(files, "_FIRST_PAUSE_SECONDS", 0)
    cut = lambda self, path, local: Path(local).write_bytes(b"a.j")  # noqa: E731
    monkeypatch.setattr(MemoryFileSystem, "get_file", cut)
    with pytest.raises(files.ReadError, match="a.json: cannot be read, tried .*3 of 6 bytes came"):
        with files.local_folder(far_folder, (".json",)):
            pass
