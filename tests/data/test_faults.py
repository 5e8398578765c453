"""Examples that are broken: counted, replaced the same way everywhere, and not too many."""

import contextlib
import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from data.chunks import Maker, Slots
from data.faults import Fault, FaultCount
from data.files import ReadError
from data.loader import eval_batches, train_batches
from data.order import example_at
from data.preprocess.parse import parse
from data.sources import BadExample, Feature
from data.tokenizers.train import train
from mm.config import BadInput

SIZE = 50
OPS = parse("numbers('value', 1)", where="config.input.preprocess")


class Some:
    """Numbers, some of them broken. `reads` counts how often each is asked for."""

    features = {"value": Feature("float32", shape=(1,))}

    def __init__(self, bad, size=SIZE):
        self.bad, self.size, self.reads = set(bad), size, np.zeros(size, int)

    def __len__(self):
        return self.size

    def read(self, ids, keys=None):
        np.add.at(self.reads, ids, 1)
        for i in ids.tolist():
            if i in self.bad:
                raise BadExample(f"example {i}: odd", "is odd" if i % 2 else "is even")
        return [{"value": [float(i)]} for i in ids]


def sharding(devices=8):
    mesh = jax.make_mesh(
        (devices,), ("fsdp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    return NamedSharding(mesh, P("fsdp"))


def batches(source, **changes):
    given = dict(global_batch_size=16, seed=0, sharding=sharding(), max_bad_share=1.0) | changes
    return train_batches(source, OPS, **given)


def ids(iterator, count):
    with iterator:
        return np.concatenate([np.asarray(next(iterator)["id"]) for _ in range(count)])


def test_a_bad_example_is_replaced_and_the_others_stay():
    want = example_at(np.arange(16 * 20), SIZE, 0)[0]
    bad = {3, 10, 11}
    found = ids(batches(Some(bad)), 20)
    replaced = np.isin(want, list(bad))
    np.testing.assert_array_equal(found[~replaced], want[~replaced])
    assert not np.isin(found, list(bad)).any()
    assert len(set(found[replaced].tolist())) > 3  # not always by the same one


def test_faults_are_counted_by_reason_when_the_batch_is_taken():
    iterator = batches(Some({3, 10, 11}))
    with iterator:
        for _ in range(25):  # 400 examples: 8 epochs
            next(iterator)
        assert iterator.faults.counts == {"is even": 8, "is odd": 16}


@given(st.sets(st.integers(0, SIZE - 1), max_size=45), st.integers(1, 7), st.data())
@settings(max_examples=30, deadline=None)
def test_what_replaces_it_depends_on_the_slot_alone(bad, hosts, data):
    """Not on the rows around it, nor on what was found broken before."""

    def maker():
        def at(step, rows):
            return *example_at(step * 20 + rows, SIZE, 0), np.ones(len(rows), bool)

        def instead(step, row, number):
            return int(example_at(np.array([step * 20 + row + 31 * (number + 1)]), SIZE, 9)[0][0])

        return Maker(Some(bad), OPS, Slots(at, instead, seed=0), valid=False)

    one, many = maker(), maker()
    whole = [one(step, np.arange(20)) for step in range(4)]
    for step in data.draw(st.permutations(range(4))):
        for host in range(hosts):
            rows = np.arange(20)[host::hosts]
            chunk, faults = many(step, rows)
            np.testing.assert_array_equal(chunk["id"], whole[step][0]["id"][rows])
            assert faults == {
                row: whole[step][1][row] for row in rows.tolist() if row in whole[step][1]
            }


def test_a_bad_example_is_not_read_again():
    source = Some({3})
    ids(batches(source), 25)
    assert source.reads[3] <= 3  # in a chunk, in a smaller one, alone; in 8 epochs


def test_what_was_drawn_badly_once_may_be_good_in_another_epoch(tmp_path):
    """Wherever a run begins: it remembers no more than what is broken in every epoch."""

    class Captions(Some):
        features = {"captions": Feature("text", ragged=True)}

        def read(self, ids, keys=None):
            return [{"captions": ["a", "" if i == 3 else "b"]} for i in ids.tolist()]

    (tmp_path / "t.json").write_text(train(["a", "b"], 16))
    ops = parse(f"choose('captions')|tokenize('{tmp_path}/t.json', 4)", where="config.input.a")

    def found(start):
        given = dict(global_batch_size=8, seed=0, sharding=sharding(), max_bad_share=1.0)
        with train_batches(Captions((), 8), ops, start_step=start, **given) as batches:
            return [np.asarray(next(batches)["id"]) for _ in range(start, 20)]

    whole = found(0)
    replaced = [3 not in ids for ids in whole]
    assert any(replaced) and not all(replaced)
    for start in (3, 9, 15):
        np.testing.assert_array_equal(found(start), whole[start:])


def test_what_fills_up_the_last_batch_is_not_counted():
    source = Some({100}, 101)
    with eval_batches(source, OPS, batch_size=64, sharding=sharding()) as found:
        valid = np.concatenate([np.asarray(batch["valid"]) for batch in found])
        assert found.faults.counts == {"is even": 1}
    np.testing.assert_array_equal(np.flatnonzero(valid), range(100))


def test_in_an_evaluation_it_is_left_out(caplog):
    with eval_batches(
        Some({3, 4}), OPS, batch_size=16, sharding=sharding(), max_bad_share=0.1
    ) as found:
        rows = list(found)
    valid = np.concatenate([np.asarray(batch["valid"]) for batch in rows])
    np.testing.assert_array_equal(np.flatnonzero(~valid), [3, 4, *range(SIZE, 64)])
    assert (
        "config.input: 2 examples are broken and were left out (1 is even, 1 is odd)" in caplog.text
    )


def test_too_many_stop_the_run_with_a_table():
    iterator = batches(Some(range(0, SIZE, 2)), max_bad_share=0.05)
    with pytest.raises(BadInput) as error, iterator:
        for _ in range(100):
            next(iterator)
    first, second = str(error.value).splitlines()
    assert first.startswith("config.input: 5") and "more than max_bad_share=0.05" in first
    assert "is even: example" in second and "the first: example" in second


def test_a_share_of_none_stops_at_the_first():
    iterator = batches(Some({7}), max_bad_share=0.0)
    with pytest.raises(BadInput, match=r"1 of(.|\n)*example 7: odd"), iterator:
        for _ in range(10):
            next(iterator)


def test_a_source_with_nothing_whole_ends_in_one_line():
    with pytest.raises(
        BadInput, match="and 100 that were drawn instead are broken, the first: exam"
    ):
        batches(Some(range(SIZE)))


def test_a_read_that_fails_is_no_bad_example():
    class Gone(Some):
        def read(self, ids, keys=None):
            if 7 in ids:
                raise ReadError("a.tar: cannot be read, tried 5 times (reset)")
            return super().read(ids, keys)

    iterator = batches(Gone(()))
    with pytest.raises(ReadError, match="tried 5 times"), iterator:
        for _ in range(10):
            next(iterator)
    assert iterator.faults.counts == {}


def test_counts_go_on_where_a_run_was_stopped():
    def counts(start, stop, before):
        iterator = batches(Some({3, 10}), start_step=start, bad_examples=before)
        ids(iterator, stop - start)
        return json.loads(json.dumps(iterator.faults.counts))

    assert counts(7, 25, counts(0, 7, {})) == counts(0, 25, {})


def test_the_share_is_of_what_was_drawn_since_the_start():
    count = FaultCount("config.input", 0.01, {"is odd": 500})
    count.add(16, [])
    assert count.counts == {"is odd": 500}
    assert count.told() == "config.input: 500 examples are broken and were replaced (500 is odd)"


def test_one_process_of_several_stops_only_for_the_share_of_all():
    count = FaultCount("config.input", 0.01, processes=4)
    bad = [Fault(i, "is odd", "odd") for i in range(10)]
    for _ in range(3):  # 30 of 1,000 here, of 4,000 in all
        count.add(1000, bad)
    assert count.totals == {"drawn": 3000, "bad": 30}
    with pytest.raises(BadInput, match="121 of 12,000 examples are broken"):
        count.check(drawn=12_000, bad=121)
    count.check(drawn=12_000, bad=120)


@pytest.mark.parametrize(("bad", "stops"), [(1, False), (2, False), (3, True)])
def test_the_share_of_an_evaluation_is_of_its_source(bad, stops):
    given = dict(batch_size=8, sharding=sharding(), max_bad_share=0.01)
    raises = pytest.raises(BadInput, match="3 of .* examples are broken")
    with eval_batches(Some(range(bad), 200), OPS, **given) as found:
        with raises if stops else contextlib.nullcontext():
            assert sum(np.asarray(batch["valid"]).sum() for batch in found) == 200 - bad


@pytest.mark.parametrize("share", [0, 0.01])
def test_one_broken_example_of_a_few_is_no_reason_to_stop_but_where_none_may_be(share):
    given = dict(batch_size=8, sharding=sharding(), max_bad_share=share)
    with eval_batches(Some({20}, 32), OPS, **given) as found:
        with pytest.raises(BadInput, match="1 of") if share == 0 else contextlib.nullcontext():
            assert sum(np.asarray(batch["valid"]).sum() for batch in found) == 31


def test_neighbours_that_are_all_broken_leave_an_evaluation_whole():
    """As where a folder of a source was lost: more in a row than a slot draws."""
    given = dict(batch_size=64, sharding=sharding(), max_bad_share=1.0)
    with eval_batches(Some(range(300, 700), 1000), OPS, **given) as found:
        valid = np.concatenate([np.asarray(batch["valid"]) for batch in found])
    assert valid.sum() == 600


def test_one_bad_example_of_a_chunk_does_not_cost_a_pass_for_each():
    source = Some(range(0, 4096, 100), size=4096)
    ids(batches(source, global_batch_size=4096), 1)
    assert source.reads.sum() < 4 * 4096


def test_a_part_of_a_mixture_is_replaced_from_that_part():
    from data.sources.mixture import Mixture, _counts

    parts = [Some({1, 2, 3}, 10), Some((), 90)]
    source = Mixture(parts, ["a", "b"], _counts([(0, {"a": 1, "b": 1})], ["a", "b"]))
    with (
        batches(source) as iterator,
        batches(
            Mixture(
                [Some((), 10), Some((), 90)],
                ["a", "b"],
                _counts([(0, {"a": 1, "b": 1})], ["a", "b"]),
            )
        ) as whole,
    ):
        for _ in range(20):
            found, want = (np.asarray(next(x)["id"]) < 10 for x in (iterator, whole))
            np.testing.assert_array_equal(found, want)


def test_a_run_that_goes_on_reads_no_example_of_an_earlier_batch():
    """Of windows: but for what its batches hold, nothing is read to get there."""
    source = Some(set(), 2000)
    source.shards = np.full(20, 100)
    given = dict(order={"name": "windows", "lanes": 4, "size": 16}, prefetch=1)
    want = ids(batches(source, **given), 60).reshape(60, 16)
    source.reads[:] = 0
    found = ids(batches(source, **given, start_step=40), 10)
    np.testing.assert_array_equal(found, want[40:50].ravel())
    read = set(np.flatnonzero(source.reads).tolist())
    assert set(found.tolist()) <= read <= set(want[40:60].ravel().tolist())
