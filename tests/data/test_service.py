"""Chunks that other processes make: the same batches, whatever comes late or not at all."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import tensorflow as tf
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from data import service
from data.chunks import Room, Span
from data.faults import Fault
from data.input import open_input
from data.loader import train_batches
from data.profile import Profile
from mm.config import BadInput, load, plain

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    others = dict.fromkeys("model objectives optimizer sharding evals checkpoint log".split(), {{}})
    return ConfigDict(dict(others, seed=3, total_steps=1, global_batch_size=16, input=dict(
        source=dict(name="jsonl", path={path!r}),
        preprocess="decode|random_resized_crop(8)|flip|group('caption')",
        phases=((3, "decode|resize(12)|group('caption')"),),
    )))
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Twenty pictures, one of them broken."""
    folder = tmp_path_factory.mktemp("service")
    lines = []
    for i in range(20):
        picture = tf.io.encode_png(np.full((16, 16, 3), 10 * i, np.uint8)).numpy()
        (folder / f"{i}.png").write_bytes(picture if i != 7 else b"broken")
        lines.append(f'{{"image": "{i}.png", "caption": "picture {i}"}}\n')
    (folder / "pairs.jsonl").write_text("".join(lines))
    (folder / "config.py").write_text(CONFIG.format(path=str(folder / "pairs.jsonl")))
    return folder / "config.py"


def serve(config, *flags):
    command = [sys.executable, "-m", "data.service", f"--config={config}", "--host=localhost"]
    given = dict(stdout=subprocess.PIPE, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    process = subprocess.Popen([*command, *flags], **given)
    address = process.stdout.readline().strip().removeprefix("--config.input.service=")
    return process, address


@pytest.fixture
def processes():
    found = []
    yield found
    for process in reversed(found):
        process.kill()
        process.wait()
        process.stdout.close()


def batches(config, **changes):
    config = plain(load(str(config)))
    opened = open_input(config["input"], "config.input")
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    given = {key: config[key] for key in ("seed", "global_batch_size")} | opened.rest | changes
    sharding = NamedSharding(mesh, P("fsdp"))
    return train_batches(
        opened.source, opened.preprocess, sharding=sharding, max_bad_share=0.5, **given
    )


def test_batches_are_those_of_a_run_without_a_service(config, processes, monkeypatch, caplog):
    """Of two workers; and when both are gone, nothing but a line in the log is different."""
    first, address = serve(config)
    processes.append(first)
    processes.append(serve(config, f"--dispatcher={address.partition('://')[2]}")[0])
    with pytest.raises(BadInput, match="its workers prepare other data"):
        with batches(config, service=address, seed=4) as far:
            next(far)
    monkeypatch.setattr(service, "_PATIENCE_SECONDS", 3.0)
    with (
        batches(config, start_step=1) as here,
        batches(config, start_step=1, service=address) as far,
    ):
        number = 0
        while number <= 10 or "nothing came from" not in caplog.text:
            assert number < 1000  # TensorFlow holds some that came before
            if number == 10:
                caplog.clear()
                for process in processes:
                    process.kill()
            want, found = next(here), next(far)
            assert want.keys() == found.keys()
            for key in want:
                np.testing.assert_array_equal(want[key], found[key], err_msg=key)
            number += 1
        assert far.faults.counts == here.faults.counts != {}
        assert "service" in far.profile.seconds()


def test_a_key_that_no_run_has_is_refused_as_the_run_refuses_it(config, capsys):
    assert service.main([f"--config={config}", "--config.sed=1"]) == 2
    assert "config: unknown key 'sed'; did you mean 'seed'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "there, message",
    [
        ("localhost:5050", "expected grpc://HOST:PORT"),
        ("grpc://localhost:1", "nobody answers .*start `python -m data.service` there"),
    ],
)
def test_a_service_that_is_not_there_is_refused(config, there, message):
    with pytest.raises(BadInput, match=message):
        batches(config, service=there)


def span(stop, parts=2):
    """Chunks that hold their number; those made here are negative."""

    def make(step, rows, out=None):
        return {"n": np.full(len(rows), -(parts * step + rows[0]))}, {}

    rows = [np.array([part]) for part in range(parts)]
    example = {"n": np.zeros(1, np.int64)}
    return Span(make, rows, 0, stop, example, Room([1] * parts, example))


def in_order(arriving, stop=40):
    class Chunks:
        def as_numpy_iterator(self):
            for number in arriving:
                faults = {"0": [number, "is odd", "odd"]} if number == 3 else {}
                report = f'{{"faults": {faults}}}'.replace("'", '"').encode()
                yield np.int64(number), report, np.array([number])

    taken = service._Arriving(Chunks(), "grpc://a:1", 4)
    found = list(service._in_order(span(stop), Profile(1), taken, ["n"], "grpc://a:1"))
    return [int(chunk["n"][0]) for chunk, _ in found], [faults for _, faults in found]


def test_chunks_come_in_order_however_they_arrive():
    numbers = np.random.default_rng(0).permutation(20).tolist()
    found, faults = in_order(numbers, 20)
    assert found == list(range(20))
    assert faults[3] == {0: Fault(3, "is odd", "odd")} and not any(faults[:3] + faults[4:])


def test_a_chunk_that_never_comes_is_made_here():
    found, _ = in_order([n for n in range(40) if n not in (5, 39)])
    assert found == [-n if n in (5, 39) else n for n in range(40)]


def test_a_late_chunk_is_made_here_and_then_left_out():
    found, _ = in_order([*range(5), *range(6, 40), 5])
    assert found == [-n if n == 5 else n for n in range(40)]


def test_what_a_worker_could_not_make_ends_the_run():
    class Chunks:
        def as_numpy_iterator(self):
            yield np.int64(0), b'{"error": "config.input: no"}', np.zeros(0)

    with pytest.raises(BadInput, match="a worker of grpc://a:1: config.input: no"):
        taken = service._Arriving(Chunks(), "grpc://a:1", 4)
        list(service._in_order(span(4), Profile(1), taken, ["n"], "grpc://a:1"))
