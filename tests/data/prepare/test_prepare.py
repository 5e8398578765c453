"""The whole pipeline on a small data set in which it is known what has to go."""

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from data.prepare import __main__ as command
from data.prepare import run, scan, store
from data.prepare.run import prepare
from data.sources import BadExample, open_source, read_each
from data.sources.guess import guess
from mm.config import BadInput
from tests.data.prepare import planted

ROOT = Path(__file__).resolve().parents[3]
GONE = set(planted.PLANTED) | set(planted.CONTAMINATED)
KEPT = [i for i in range(51) if i not in GONE]
THREADS = "--direct_running_mode=multi_threading"


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Several blocks, and several partitions of hashes, of 51 examples."""
    run.find_beam()
    from data.prepare import pipeline

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "BLOCK", 16)
        patch.setattr("data.prepare.pipeline.BLOCK", 16)
        patch.setattr(pipeline, "_PARTITION_ENTRIES", 64)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return planted.write(tmp_path_factory.mktemp("planted") / "pairs")


@pytest.fixture(scope="module")
def prepared(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("prepared") / "pairs"
    prepare(planted.config(folder), str(output))
    return output


def files_of(output):
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file()
    }


def read_back(output):
    source = open_source(guess(str(output)), "config.input.source")
    return source.read(np.arange(len(source)))


def report(output):
    return json.loads((output / "report.json").read_text())


def test_what_is_bad_or_there_twice_is_dropped_and_said_why(prepared):
    expected = {"near an evaluation picture": [11, 12]}
    for number, (reason, _) in planted.PLANTED.items():
        expected.setdefault(reason, []).append(number)
    found = report(prepared)
    assert {reason: entry["examples"] for reason, entry in found["dropped"].items()} == expected
    assert found["examples"] == 51 and found["kept"] == len(KEPT)
    assert found["evaluation"] == {
        "test": {"pictures": 3, "broken": {"picture cannot be decoded": 1}}
    }


def test_what_stays_is_as_it_was_and_in_order(prepared):
    originals = planted.examples()
    found = read_back(prepared)
    assert [record["rank"] for record in found] == KEPT
    assert [record["image"] for record in found] == [originals[i][1] for i in KEPT]
    assert [record["caption"] for record in found] == [originals[i][2] for i in KEPT]


def test_shards_are_full_but_the_last(prepared):
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert [shard["examples"] for shard in manifest["shards"]] == [8, 8, 8, 8, len(KEPT) - 32]
    found = files_of(prepared)
    assert all(found[shard["name"]] == shard["sha256"] for shard in manifest["shards"])
    names = {shard["name"] for shard in manifest["shards"]}
    others = {"report.json", "report.md", "manifest.json"}
    assert found.keys() == names | others | {"1.0.0/dataset_info.json", "1.0.0/features.json"}


def test_the_report_counts_before_and_after(prepared):
    tables = report(prepared)["histograms"]
    sides = tables["shorter side, pixels"]
    assert sum(sides["read"]) == 49 and sum(sides["kept"]) == len(KEPT)
    assert sides["read"][sides["from"].index(16)] == 1  # the one of 30 pixels
    assert "| caption near another | 1 | 1.96% | 50 |" in (prepared / "report.md").read_text()


@pytest.mark.parametrize("flags", [["--direct_num_workers=1"], ["--direct_num_workers=4"]])
def test_every_byte_is_the_same_however_the_work_is_divided(prepared, folder, tmp_path, flags):
    prepare(planted.config(folder), str(tmp_path / "pairs"), [*flags, THREADS])
    assert files_of(tmp_path / "pairs") == files_of(prepared)


@pytest.mark.slow
def test_every_byte_is_the_same_from_processes(prepared, folder, tmp_path, monkeypatch):
    for module in ("scan", "pipeline"):  # processes see nothing of what is patched here
        monkeypatch.setattr(f"data.prepare.{module}.BLOCK", 4096)
    flags = ["--direct_num_workers=4", "--direct_running_mode=multi_processing"]
    prepare(planted.config(folder), str(tmp_path / "pairs"), flags)
    assert files_of(tmp_path / "pairs") == files_of(prepared)


def test_a_remote_folder_gets_the_same_files(prepared, folder):
    output = f"memory://{uuid.uuid4().hex}/pairs"
    prepare(planted.config(folder), output)
    memory = fsspec.filesystem("memory")
    found = {
        path.split("/pairs/", 1)[1]: hashlib.sha256(memory.cat_file(path)).hexdigest()
        for path in memory.find(output)
    }
    assert found == files_of(prepared)


def test_nothing_is_dropped_that_is_not_asked_for(folder, tmp_path):
    off = {"bytes": False, "pixels": False, "pictures": False, "captions": False}
    config = planted.config(folder, rules=None, duplicates=off, decontaminate=None)
    prepare(config, str(tmp_path / "pairs"))
    assert list(report(tmp_path / "pairs")["dropped"]) == [
        "picture cannot be decoded",
        "picture is cut off",
    ]
    assert report(tmp_path / "pairs")["kept"] == 49


@pytest.mark.parametrize("shuffle", [False, True])
def test_tar_shards_hold_what_stays(folder, tmp_path, shuffle):
    output = {"format": "tar", "examples_per_shard": 10, "shuffle": shuffle, "seed": 3}
    prepare(planted.config(folder, output=output), str(tmp_path / "My-Pairs"))
    index = json.loads((tmp_path / "My-Pairs/index.json").read_text())["shardlist"]
    assert [shard["nsamples"] for shard in index] == [10, 10, 10, len(KEPT) - 30]
    originals, found, place = planted.examples(), [], 0
    for shard in index:
        assert (tmp_path / "My-Pairs" / shard["url"]).stat().st_size == shard["filesize"]
        with tarfile.open(tmp_path / "My-Pairs" / shard["url"]) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
        for key in sorted({name.split(".")[0] for name in members}):
            assert key == f"{place:09d}"
            rank = json.loads(members[f"{key}.json"])["rank"]
            assert members[f"{key}.png"] == originals[rank][1]
            assert members[f"{key}.txt"].decode() == originals[rank][2]
            found.append(rank)
            place += 1
    assert sorted(found) == KEPT and (found == KEPT) is not shuffle
    spec = {"name": "webdataset", "path": f"{tmp_path}/My-Pairs/train-*.tar"}
    source = open_source(spec | {"index_dir": str(tmp_path / "index")}, "config.input.source")
    assert len(source) == len(KEPT)
    assert source.read(np.array([12]))[0]["image"] == originals[found[12]][1]


def test_a_score_file_decides_what_stays(folder, tmp_path):
    scores = np.arange(51) / 51
    np.savez(tmp_path / "s.npz", id=np.arange(51), score=scores, num_examples=51)
    rules = {"good": {"name": "score", "path": str(tmp_path / "s.npz"), "top": 0.5}}
    prepare(planted.config(folder, rules=rules, duplicates={}), str(tmp_path / "pairs"))
    assert min(record["rank"] for record in read_back(tmp_path / "pairs")) == 25
    np.savez(tmp_path / "s.npz", id=np.arange(50), score=scores[:50], num_examples=50)
    with pytest.raises(BadInput, match="config.rules.good: was made for 50 examples"):
        prepare(planted.config(folder, rules=rules), str(tmp_path / "again"))


def test_a_finished_data_set_is_left_alone(prepared, folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    prepare(planted.config(folder), str(prepared))
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*")} == before
    assert "is prepared already" in capsys.readouterr().out


def test_another_config_does_not_go_on_in_the_same_folder(prepared, folder):
    with pytest.raises(BadInput, match=r"config.image_key|config.duplicates") as error:
        prepare(planted.config(folder, duplicates={"pixels": False}), str(prepared))
    assert "was begun with another config: config.duplicates" in str(error.value)


def test_a_folder_with_other_things_is_refused(folder, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    config = planted.config(folder, output={"format": "tar"})
    with pytest.raises(BadInput, match="has .'thesis.tex'. in it; expected a new or empty"):
        prepare(config, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_that_failed_goes_on_and_ends_the_same(prepared, folder, tmp_path, monkeypatch):
    from data.prepare import shards

    output, real, written = tmp_path / "pairs", shards._write_array_record, []

    def failing(job, path, ids):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(ids)
        real(job, path, ids)

    one = ["--direct_num_workers=1", THREADS]
    monkeypatch.setattr(shards, "_write_array_record", failing)
    with pytest.raises(BadInput, match=r"No space left on device\); make room .* run it again"):
        prepare(planted.config(folder), str(output), one)
    assert not (output / "manifest.json").exists()
    half = [name for name in os.listdir(output / store.WORK) if name.startswith("half")]
    assert len(os.listdir(output / "1.0.0")) == 2 and not half

    done = {path: path.stat().st_mtime_ns for path in (output / "1.0.0").iterdir()}
    looked = []
    monkeypatch.setattr(scan, "look", lambda *_: looked.append(1))
    monkeypatch.setattr(shards, "_write_array_record", real)
    prepare(planted.config(folder), str(output), one)
    assert files_of(output) == files_of(prepared) and not looked
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())


def test_a_shard_that_was_damaged_meanwhile_is_written_again(
    prepared, folder, tmp_path, monkeypatch
):
    output = tmp_path / "pairs"
    with monkeypatch.context() as patch:
        patch.setattr(run, "_finish", lambda *_: None)
        prepare(planted.config(folder), str(output))
    damaged = output / "1.0.0/pairs-train.array_record-00001-of-00005"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    prepare(planted.config(folder), str(output))
    assert files_of(output) == files_of(prepared)


def test_how_far_a_run_is_can_be_seen(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "_PROGRESS_SECONDS", 0.01)
    prepare(planted.config(folder), str(tmp_path / "pairs"))
    assert " of 4 blocks looked at, 0 shards written" in capsys.readouterr().out


def test_two_runs_do_not_write_to_one_folder(folder, tmp_path):
    with run._only_one(str(tmp_path / "pairs")):
        with pytest.raises(BadInput, match="another run is writing to it"):
            prepare(planted.config(folder), str(tmp_path / "pairs"))


def test_a_full_disk_ends_in_one_line_and_leaves_no_half_shard(folder, tmp_path):
    """A limit to the size of files fails in the writer of ArrayRecord itself."""
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)); "
    run_main = "from data.prepare.__main__ import main; raise SystemExit(main())"
    found = subprocess.run(
        [sys.executable, "-c", limit + run_main, *flags(folder, tmp_path / "pairs")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 2
    errors = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "cannot be written (" in errors[0] and "File too large" in errors[0]
    assert "Traceback" not in found.stderr
    assert not list((tmp_path / "pairs").glob("1.0.0/*"))
    assert not list((tmp_path / "pairs").glob(".work/half-*"))


WATCH = """
import sys
seen = set()
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and set(str(arguments[1])) & set("wax+"):
        seen.add(arguments[0])
    elif event in ("os.mkdir", "os.rename"):
        seen.update(str(path) for path in arguments[:2] if isinstance(path, str))
sys.addaudithook(watch)
from data.prepare.__main__ import main
code = main()
used = {name for name in sys.modules if name.split(".")[0] == "mm"}
assert used == {"mm", "mm.config", "mm.registry"}, used  # no model code
print("WRITTEN", *sorted(seen), sep="\\n")
raise SystemExit(code)
"""


def test_nothing_is_written_outside_of_the_output(folder, tmp_path):
    # TensorFlow's Keras imports matplotlib where there is one, which makes folders for its fonts.
    fonts = tmp_path / "matplotlib"
    found = subprocess.run(
        [sys.executable, "-B", "-c", WATCH, *flags(folder, tmp_path / "pairs")],
        cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"MPLCONFIGDIR": str(fonts)},
    )  # fmt: skip
    written = found.stdout.split("WRITTEN\n")[1].split()
    assert len(written) > 10
    outside = [path for path in written if not path.startswith(str(tmp_path / "pairs"))]
    assert [
        path for path in outside if path != "/dev/null" and not path.startswith(str(fonts))
    ] == []


def test_what_is_where_in_tar_shards_is_kept_in_the_output(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MM_INDEX_DIR", raising=False)
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for number, image, caption in planted.examples()[:3]:
            for ending, content in (("png", image), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{number}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    arguments = [f"--config=configs/prepare.py:{tmp_path}/0.tar", f"--output={tmp_path}/pairs"]
    for _ in range(2):
        assert command.main([*arguments, "--direct_num_workers=1"]) == 0
        assert not (tmp_path / "home").exists() and not (tmp_path / "pairs/.work").exists()
    assert "MM_INDEX_DIR" not in os.environ


@pytest.mark.parametrize(
    "extra, message",
    [
        ([], "Missing GCS path option: temp_location"),
        (["--temp_location=gs://bucket-1/t", "--staging_location=gs://bucket-1/s"], "beam[gcp]"),
    ],
)
def test_a_runner_that_cannot_be_is_refused_in_one_line(folder, tmp_path, capsys, extra, message):
    given = ["--runner=DataflowRunner", "--project=project-1", "--region=europe-west1"]
    assert command.main([*flags(folder, tmp_path / "pairs"), *given, *extra]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --runner=DataflowRunner: ") and message in error
    assert len(error.splitlines()) == 1


def test_another_runner_writes_the_same_bytes(folder, prepared, tmp_path):
    runner = "apache_beam.runners.direct.direct_runner.BundleBasedDirectRunner"
    prepare(planted.config(folder), str(tmp_path / "pairs"), [f"--runner={runner}"])
    assert files_of(tmp_path / "pairs") == files_of(prepared)


def test_what_workers_raise_is_found_in_any_text():
    for kind in ("BadInput", "data.sources.BadExample", "data.files.MissingError", "ReadError"):
        text = f"Traceback\n  x\n{kind}: a.tar: is gone [while running 'Scan']\n"
        assert run._SAID.findall(text) == ["a.tar: is gone"]


def flags(folder, output):
    """Of the command line, for the planted data set without captions' duplicates."""
    return [
        f"--config=configs/prepare.py:{folder}/pairs.jsonl",
        f"--output={output}",
        "--config.output.examples_per_shard=40",
        "--direct_num_workers=1",
    ]


def test_the_command_line_prepares_with_the_recipe(folder, tmp_path, capsys):
    assert command.main(flags(folder, tmp_path / "pairs")) == 0
    out = capsys.readouterr().out
    assert "'dataset': 'pairs', 'split': 'train'" in out and "picture near another" in out
    assert len(read_back(tmp_path / "pairs")) == 41


@pytest.mark.parametrize(
    "extra, message",
    [
        (["--projct=mine"], "--projct=mine: no such flag, here or of Apache Beam; did you mean"),
        (["--config.rules.size.min_sid=3"], "did you mean 'min_side'?"),
        (["--config.caption_key=text"], "config.caption_key='text': the source has no text field"),
        (["--config.output.format=zip"], "expected one of ['array_record', 'tar']"),
        (["--config.output.split=a/b"], "config.output.split='a/b': expected letters, digits"),
        (["--config.duplicates.max_distance=17"], "expected 0 to 16"),
        (["--output=/tmp/Pairs-1"], "expected lower-case letters, digits and _"),
    ],
)
def test_wrong_input_is_said_in_one_line(folder, tmp_path, capsys, extra, message):
    assert command.main([*flags(folder, tmp_path / "pairs"), *extra]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "pairs").exists()


def test_when_all_is_dropped_the_report_says_why(folder, tmp_path):
    rules = {"size": {"name": "size", "min_side": 5000}}
    with pytest.raises(BadInput, match="all 51 examples are dropped; see .*report.md"):
        prepare(planted.config(folder, rules=rules), str(tmp_path / "pairs"))
    assert report(tmp_path / "pairs")["dropped"]["rule size"]["count"] == 49


def test_lines_that_cannot_be_read_are_counted_by_what_is_wrong(folder, tmp_path):
    lines = (folder / "pairs.jsonl").read_text().splitlines()[:20]
    lines[3], lines[7] = "{", lines[7].replace("7.png", "none.png")
    lines[18] = lines[18].replace("caption", "kaption")
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes((folder / f"{number}.png").read_bytes())
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    prepare(planted.config(tmp_path, decontaminate=None), str(tmp_path / "new/pairs"))
    lost = report(tmp_path / "new/pairs")["dropped"].values()
    assert sorted(entry["examples"] for entry in lost) == [[3], [7], [18]]


class Broken:
    """Example 3 cannot be read."""

    def read(self, ids, keys=None):
        if 3 in ids:
            raise BadExample("line 3: is no JSON", "line is no JSON")
        return [{"number": i} for i in ids.tolist()]


def test_a_broken_example_does_not_take_its_neighbours_with_it():
    found = read_each(Broken(), np.array([2, 3, 4]))
    assert found[0] == {"number": 2} and found[2] == {"number": 4}
    assert isinstance(found[1], BadExample) and found[1].reason == "line is no JSON"


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_the_same(folder, tmp_path):
    def start(output):
        return subprocess.Popen(
            [sys.executable, "-m", "data.prepare", *flags(folder, output),
             "--config.output.examples_per_shard=2"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    whole, killed = tmp_path / "a/pairs", tmp_path / "b/pairs"
    assert start(whole).wait() == 0
    process = start(killed)
    while process.poll() is None and len(list(killed.glob("1.0.0/*"))) < 3:
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    assert not (killed / "manifest.json").exists()
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in killed.glob("1.0.0/*")}
    assert start(killed).wait() == 0
    assert files_of(killed) == files_of(whole)
    # The last may have got its name, and not yet its line in the manifest.
    assert sum(path.stat().st_mtime_ns == time for path, time in done.items()) >= len(done) - 1


PEAK = """
import resource, sys
from data.prepare.run import prepare
source = {"name": "synthetic", "num_examples": int(sys.argv[1]), "image_size": 256}
prepare({"source": source}, sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_pictures(tmp_path):
    """1,200 pictures of 256 x 256 are 110 MB as PNG, and more in one shard than a chunk of them."""
    peaks = []
    for count in (100, 1200):
        found = subprocess.run(
            [sys.executable, "-c", PEAK, str(count), str(tmp_path / f"pictures_{count}")],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks.append(int(found.stdout.splitlines()[-1]) / 1024)
    written = sum(path.stat().st_size for path in (tmp_path / "pictures_1200").rglob("*"))
    assert written > 100 * 2**20
    assert peaks[1] - peaks[0] < 50, peaks


def test_a_null_in_a_field_that_is_written_drops_the_example(tmp_path):
    """It used to stop the run when all was looked at and the shards were written."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(6):
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        width = None if i == 4 else i
        lines.append({"image": f"{i}.png", "caption": f"picture {i}", "width": width})
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = {"source": guess(str(tmp_path / "pairs.jsonl")), "caption_key": "caption"}
    prepare(config, str(tmp_path / "all"))
    assert report(tmp_path / "all")["dropped"]["field is null"]["examples"] == [4]
    assert [record["width"] for record in read_back(tmp_path / "all")] == [0, 1, 2, 3, 5]
    prepare(config | {"fields": ()}, str(tmp_path / "two"))
    assert report(tmp_path / "two")["kept"] == 6
    assert sorted(read_back(tmp_path / "two")[0]) == ["caption", "image"]


def test_a_field_that_is_not_there_is_refused(folder, tmp_path):
    with pytest.raises(BadInput, match="no field 'captoin'; did you mean 'caption'"):
        prepare(planted.config(folder) | {"fields": ("captoin",)}, str(tmp_path / "pairs"))


def test_a_key_that_no_config_has_is_refused_with_the_nearest(tmp_path, capsys):
    flags = ["--config=configs/prepare.py:pairs.jsonl", f"--output={tmp_path}/pairs"]
    assert command.main([*flags, "--config.cption_key=text"]) == 2
    assert "config: unknown key 'cption_key'; did you mean 'caption_key'" in capsys.readouterr().err
