import gc
import json
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from data import files, loader
from data.chunks import Maker, Slots
from data.loader import eval_batches, host_batches, host_rows, train_batches
from data.order import example_at
from data.preprocess.parse import parse
from data.profile import Profile
from data.sources import open_source
from data.tokenizers import train as tokenizer_train
from mm.config import BadInput

SIZE = 23  # does not divide the batch: batches span epochs


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    source = open_source({"name": "synthetic", "num_examples": 50}, "source")
    corpus = tokenizer_train.texts(source, ["label", "tags"])
    path.write_text(tokenizer_train.train(corpus, 200))
    return path


@pytest.fixture(scope="module")
def preprocess(tokenizer):
    ops = (
        "decode|random_resized_crop(8)|flip|color_jitter(0.4, 0.4, 0.4, 0.1)|grayscale(0.2)"
        f"|caption('label', 'tags')|tokenize('{tokenizer}', 12)|group('concept')"
    )
    return parse(ops, where="config.input.preprocess")


@pytest.fixture(scope="module")
def source():
    spec = {"name": "synthetic", "num_examples": SIZE, "image_size": 12, "cache": True}
    return open_source(spec, "source")


def sharded(*shape_and_spec, devices=8):
    names = ("replica", "fsdp", "tensor")
    shape = shape_and_spec or (1, devices, 1)
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * 3)
    return NamedSharding(mesh, P(("replica", "fsdp")))


def rows_of(source, preprocess, at, rows, start=0):
    """The rows of one batch, as a host that holds them makes them."""
    maker = Maker(source, preprocess, Slots(at, instead=None, seed=5), valid=False)
    return next(host_batches(maker, rows, profile=Profile(1), start=start)).rows


def take(batches, count):
    with batches:
        return [jax.tree.map(np.asarray, next(batches)) for _ in range(count)]


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for key in left:
        np.testing.assert_array_equal(left[key], right[key], err_msg=key)


def test_a_batch_has_the_promised_columns(source, preprocess):
    sharding = sharded()
    with train_batches(
        source, preprocess, global_batch_size=16, seed=0, sharding=sharding
    ) as batches:
        batch = next(batches)
    shapes = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
    assert shapes == {
        "image": ((16, 8, 8, 3), "uint8"),
        "text": ((16, 12), "int32"),
        "text_mask": ((16, 12), "bool"),
        "group": ((16,), "int32"),
        "id": ((16,), "uint32"),
    }
    assert all(value.sharding.is_equivalent_to(sharding, value.ndim) for value in batch.values())


def test_ids_follow_the_order(source, preprocess):
    batches = train_batches(source, preprocess, global_batch_size=16, seed=3, sharding=sharded())
    found = np.concatenate([batch["id"] for batch in take(batches, 4)])
    np.testing.assert_array_equal(found, example_at(np.arange(64), SIZE, seed=3)[0])


@pytest.mark.parametrize("mesh", [(1, 1, 8), (2, 2, 2), (8, 1, 1)])
def test_the_mesh_does_not_change_the_batch(source, preprocess, mesh):
    expected = take(
        train_batches(source, preprocess, global_batch_size=16, seed=0, sharding=sharded()), 2
    )
    found = take(
        train_batches(source, preprocess, global_batch_size=16, seed=0, sharding=sharded(*mesh)), 2
    )
    for left, right in zip(expected, found, strict=True):
        assert_equal(left, right)


@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_hosts_together_hold_the_batch_that_one_holds(source, preprocess, hosts, monkeypatch):
    """Each host reads its rows, interleaved and unequal in number, in chunks of another size."""

    def rows_of_batch(rows):
        def at(step, rows):
            return *example_at(step * 16 + rows, SIZE, 0), np.ones(len(rows), bool)

        return rows_of(source, preprocess, at, rows, start=1)

    whole = rows_of_batch(np.arange(16))
    monkeypatch.setattr(loader, "_CHUNK_ROWS", 3)
    for host in range(hosts):
        rows = np.arange(16)[host::hosts]
        assert_equal(rows_of_batch(rows), {key: value[rows] for key, value in whole.items()})


def test_an_example_looks_the_same_wherever_it_stands(source, preprocess):
    """(id, epoch) decides; neither the neighbours in the chunk nor the place do."""

    def at(ids, epochs):
        def every(step, rows):
            return ids[rows], epochs[rows], np.ones(len(rows), bool)

        return rows_of(source, preprocess, every, np.arange(len(ids)))

    ids, epochs = np.arange(SIZE), np.arange(SIZE) % 3
    whole = at(ids, epochs)
    shuffled = np.random.default_rng(0).permutation(SIZE)[:9]
    assert_equal(
        at(ids[shuffled], epochs[shuffled]), {key: value[shuffled] for key, value in whole.items()}
    )
    other_epoch = at(ids, epochs + 1)
    changed = np.any(whole["image"] != other_epoch["image"], axis=(1, 2, 3))
    assert changed.all()


def test_starting_late_gives_the_batch_of_that_step(source, preprocess):
    def batches(start):
        return train_batches(
            source, preprocess, global_batch_size=8, seed=1, sharding=sharded(), start_step=start
        )

    assert_equal(take(batches(0), 5)[4], take(batches(4), 1)[0])
    far = take(batches(10**9), 1)[0]  # would never return if it had to skip
    np.testing.assert_array_equal(far["id"], example_at(np.arange(8) + 8 * 10**9, SIZE, seed=1)[0])


def test_each_process_reads_only_the_rows_of_its_devices():
    assert host_rows(16, sharded(1, 4, 2)).tolist() == list(range(16))
    two = jax.make_mesh((4,), ("fsdp",), axis_types=(AxisType.Auto,), devices=jax.devices()[4:])
    assert host_rows(8, NamedSharding(two, P("fsdp"))).tolist() == list(range(8))


def test_a_batch_that_does_not_divide_is_refused(source, preprocess):
    with pytest.raises(BadInput, match="batch size 12.*multiple of 8"):
        train_batches(source, preprocess, global_batch_size=12, seed=0, sharding=sharded())


def test_eval_goes_over_all_once_and_marks_the_filling(source, preprocess):
    batches = list(eval_batches(source, preprocess, batch_size=16, sharding=sharded()))
    assert len(batches) == 2
    valid = np.concatenate([batch["valid"] for batch in batches])
    ids = np.concatenate([batch["id"] for batch in batches])
    np.testing.assert_array_equal(valid, np.arange(32) < SIZE)
    np.testing.assert_array_equal(ids[valid], np.arange(SIZE))


def test_rows_without_a_group_op_are_groups_of_their_own(source):
    preprocess = parse("decode|resize(8)", where="config.input.preprocess")
    batches = list(eval_batches(source, preprocess, batch_size=8, sharding=sharded()))
    groups = np.concatenate([b["group"][b["valid"]] for b in batches])
    assert len(set(groups.tolist())) == SIZE


class Broken:
    features = {"label": ("text", False, ())}

    def __init__(self, bad):
        self.features = open_source({"name": "synthetic", "num_examples": 1}, "x").features
        self.bad = bad

    def __len__(self):
        return 10**6

    def read(self, ids, keys=None):
        if self.bad in ids:
            raise OSError(f"disk on fire at example {self.bad}")
        return [{"concept": "x"} for _ in ids]


def test_an_error_while_reading_reaches_the_loop_as_it_was(capfd):
    preprocess = parse("group('concept')", where="config.input.preprocess")
    bad = int(example_at(np.arange(40, 41), 10**6, seed=0)[0][0])
    batches = train_batches(
        Broken(bad), preprocess, global_batch_size=8, seed=0, sharding=sharded()
    )
    for _ in range(5):
        next(batches)
    capfd.readouterr()
    with pytest.raises(OSError, match=f"disk on fire at example {bad}"):
        next(batches)
    assert "disk on fire" not in capfd.readouterr().err  # TensorFlow's own report
    with pytest.raises(StopIteration):
        next(batches)


def test_a_missing_field_is_refused_before_anything_is_read(source):
    preprocess = parse("caption('lable')", where="config.input.preprocess")
    with pytest.raises(BadInput, match=r"caption\('lable'\).*did you mean 'label'"):
        train_batches(source, preprocess, global_batch_size=8, seed=0, sharding=sharded())


@pytest.mark.parametrize("how", ["close", "drop"])
def test_no_thread_is_left_when_the_iterator_goes(source, preprocess, how):
    before = threading.active_count()
    batches = train_batches(source, preprocess, global_batch_size=8, seed=0, sharding=sharded())
    next(batches)
    if how == "close":
        batches.close()
        with pytest.raises(StopIteration):
            next(batches)
    del batches
    gc.collect()
    assert threading.active_count() == before


@pytest.mark.parametrize("end", ["pass", "raise SystemExit(7)"])
def test_a_program_that_forgets_the_iterator_ends_by_itself(end):
    code = f"""
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from data.loader import train_batches
from data.preprocess.parse import parse
from data.sources import open_source
source = open_source(dict(name="synthetic", num_examples=9, image_size=8), "x")
mesh = jax.make_mesh((jax.device_count(),), ("fsdp",), axis_types=(AxisType.Auto,))
sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
ops = parse("decode|resize(8)", where="x")
batches = train_batches(source, ops, global_batch_size=16, seed=0, sharding=sharding)
next(batches)
{end}
"""
    run = subprocess.run([sys.executable, "-c", code], timeout=300, capture_output=True, text=True)
    assert run.returncode == (7 if "7" in end else 0), run.stderr
    assert "Traceback" not in run.stderr


def test_a_batch_is_the_same_of_any_number_of_chunks(source, preprocess, monkeypatch):
    """And stays as it is while others are made, in memory that was another's before."""
    monkeypatch.setattr("data.heap._LARGE_BYTES", 1)
    given = dict(global_batch_size=48, seed=0, sharding=sharded())
    whole = take(train_batches(source, preprocess, **given), 12)
    monkeypatch.setattr(loader, "_CHUNK_ROWS", 5)
    with train_batches(source, preprocess, **given, num_workers=3) as batches:
        found = [next(batches) for _ in range(12)]
        for want, batch in zip(whole, found, strict=True):
            assert_equal(jax.tree.map(np.asarray, batch), want)


def test_a_read_that_hangs_is_named_and_changes_nothing(tmp_path, monkeypatch, caplog):
    """As a slow shard: its batch comes late, but it is the batch of that number."""
    spec = {"name": "synthetic", "num_examples": 20, "image_size": 8}
    lines = []
    for i, record in enumerate(open_source(spec, "source").read(np.arange(20), ["image"])):
        (tmp_path / f"{i}.png").write_bytes(record["image"])
        lines.append(json.dumps({"image": f"{i}.png", "caption": "a"}))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    pairs = open_source({"name": "jsonl", "path": str(tmp_path / "pairs.jsonl")}, "source")
    ops = parse("decode|resize(8)", where="config.input.preprocess")
    given = dict(global_batch_size=16, seed=0, sharding=sharded())
    want = take(train_batches(pairs, ops, **given), 3)
    real, left = files._read_local, [1]

    def slow(path, *args):
        if path.endswith("/7.png") and left:
            left.pop()
            deadline = time.monotonic() + 60
            while "has taken" not in caplog.text and time.monotonic() < deadline:
                time.sleep(0.02)
        return real(path, *args)

    monkeypatch.setattr(files, "_read_local", slow)
    monkeypatch.setattr("data.iterator._LONG_SECONDS", 0.2)
    for batch, other in zip(take(train_batches(pairs, ops, **given), 3), want, strict=True):
        assert_equal(batch, other)
    assert f"the read of {tmp_path}/7.png has taken" in caplog.text and not left
