"""Prepares the examples of a run on other machines, where one host's cores cannot feed its chips.

  python -m data.service --config=configs/siglip.py:... --port=5050

on any number of machines, all but the first with --dispatcher=FIRST:5050, and then the run with
--config.input.service=grpc://FIRST:5050; --host is a machine's name where its own is not known to
the others. Chunks come through tf.data service, in any order and
maybe not all, if a machine goes: what is in a chunk depends on its number alone, so the run puts
them in order and makes itself what does not come. Batches are those of a run without a service.

TensorFlow takes Python functions to other machines by name only. So a worker registers its own,
under a name that is a hash of all that decides what it returns.
"""

import argparse
import json
import logging
import queue
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.ops import gen_script_ops, script_ops

from command_line import split_overrides
from data.chunks import Chunk, Maker, Span, fill
from data.faults import Fault
from data.files import ReadError
from data.profile import Profile, stage
from mm import registry
from mm.config import BadInput, load, override, plain

log = logging.getLogger(__name__)
_SERVICE = tf.data.experimental.service
_EARLY = 16  # chunks that may wait for one that is late, besides those of two batches
_CONNECT_SECONDS = 5.0
# So long is waited for what was never late, or is late again.
_PATIENCE_SECONDS, _IMPATIENCE_SECONDS = 10.0, 0.05
_served: dict[str, Callable] = {}  # TensorFlow's own registry lets go of what nobody else holds


def serve(name: str, maker: Maker) -> None:
    """Registers `maker` in this process, for chunks of `remote_chunks` with the same name."""
    example, _ = maker(0, np.zeros(1, np.int64))

    def make(step: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
        """The report as JSON and the arrays; those of no rows if an example cannot be made."""
        try:
            chunk, faults = maker(int(step), rows)
            report = {"faults": {str(row): fault for row, fault in faults.items()}}
        except BadInput as error:
            chunk = {key: value[:0] for key, value in example.items()}
            report = {"error": str(error)}
        return [np.bytes_(json.dumps(report).encode()), *(chunk[key] for key in sorted(example))]

    _served[name] = make
    script_ops._py_funcs._funcs[name] = make


def remote_chunks(
    span: Span, profile: Profile, service: str, name: str, prefetch: int
) -> Iterator[tuple[Chunk, dict[int, Fault]]]:
    """The chunks of a span in order, made by the workers of `service`, or here if one is late.

    name: under which the workers serve the same maker. prefetch: batches taken ahead. Raises
    BadInput when nobody serves there, or a worker could not make a chunk.
    """
    _check_there(service)
    keys, count = sorted(span.example), len(span.parts)
    types = [tf.string, *(tf.as_dtype(span.example[key].dtype) for key in keys)]
    table = tf.ragged.constant([part.tolist() for part in span.parts], dtype=tf.int64)

    def made(number: tf.Tensor) -> list[tf.Tensor]:
        arguments = [number // count, table[number % count]]
        return [number, *gen_script_ops.py_func(input=arguments, token=name, Tout=types)]

    options = tf.data.Options()
    options.experimental_external_state_policy = tf.data.experimental.ExternalStatePolicy.IGNORE
    chunks = tf.data.Dataset.range(span.start, span.stop)
    chunks = chunks.map(made, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
    chunks = chunks.with_options(options).apply(
        _SERVICE.distribute(processing_mode=_SERVICE.ShardingPolicy.DYNAMIC, service=service)
    )
    arriving = _Arriving(chunks, service, prefetch * count)
    return _in_order(span, profile, arriving, keys, service)


def _in_order(
    span: Span, profile: Profile, arriving: "_Arriving", keys: Sequence[str], service: str
) -> Iterator[tuple[Chunk, dict[int, Fault]]]:
    early: dict[int, Sequence[Any]] = {}
    for number in range(span.start, span.stop):
        with profile.counting(), stage("service"):
            while number not in early and len(early) < 2 * len(span.parts) + _EARLY:
                found = arriving.next()
                if found is None:
                    break
                if found[0] >= number:  # else it was made here meanwhile
                    early[int(found[0])] = found[1:]
        if number not in early:
            with profile.counting():
                chunk = span.make(number)
            yield chunk
            continue
        report, *columns = early.pop(number)
        report = json.loads(report)
        if "error" in report:
            raise BadInput(f"a worker of {service}: {report['error']}")
        faults = {int(row): Fault(*fault) for row, fault in report["faults"].items()}
        yield fill(span.place(number), dict(zip(keys, columns, strict=True))), faults


class _Arriving:
    """What comes from the service, taken by a thread: TensorFlow would wait for it for ever."""

    def __init__(self, chunks: tf.data.Dataset, service: str, ahead: int):
        self._service, self._patience = service, _PATIENCE_SECONDS
        self._ready: queue.Queue = queue.Queue(ahead)
        threading.Thread(target=self._take, args=(chunks,), name="service", daemon=True).start()

    def next(self) -> Sequence[Any] | None:
        """The next chunk, or None when none comes in time, or any more."""
        try:
            found = self._ready.get(timeout=self._patience)
        except queue.Empty:
            if self._patience == _PATIENCE_SECONDS:
                log.warning(
                    "nothing came from %s for %.0f s; chunks are made here until something does",
                    self._service,
                    self._patience,
                )
            self._patience = _IMPATIENCE_SECONDS
            return None
        if isinstance(found, Exception):
            self._ready.put(found)  # for the next time
            return _raised(found, self._service)
        self._patience = _PATIENCE_SECONDS
        return found

    def _take(self, chunks: tf.data.Dataset) -> None:
        try:
            for found in chunks.as_numpy_iterator():
                self._ready.put(found)
            self._ready.put(StopIteration())
        except Exception as error:  # whoever waits for it knows what to do
            self._ready.put(error)


def _raised(error: Exception, service: str) -> None:
    """None at the end; else raises what the user has to know."""
    if isinstance(error, StopIteration):
        return
    if "Could not find callback" in str(error):
        raise BadInput(
            f"service={service!r}: its workers prepare other data; start them with this config"
        ) from error
    if isinstance(error, tf.errors.OpError):
        raise ReadError(f"service={service!r}: {str(error).splitlines()[0]}") from error
    raise error


def _check_there(service: str) -> None:
    protocol, _, address = service.partition("://")
    host, _, port = address.rpartition(":")
    if protocol != "grpc" or not host or not port.isdecimal():
        raise BadInput(f"service={service!r}: expected grpc://HOST:PORT")
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise BadInput(
            f"service={service!r}: nobody answers ({error}); start `python -m data.service` there"
        ) from error


def main(arguments: Sequence[str] | None = None, stop: threading.Event | None = None) -> int:
    """Serves until it is told to stop; returns 0, or 2 when the input was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m data.service",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="that of the run")
    parser.add_argument(
        "--port", type=int, default=0, help="where others reach this; 0: any that is free"
    )
    parser.add_argument(
        "--host", default=socket.gethostname(), help="the name under which others reach this"
    )
    parser.add_argument(
        "--dispatcher", help="HOST:PORT of the first machine; by default this is it"
    )
    parser.add_argument(
        "--config.KEY", metavar="VALUE", dest="_", help="set any key, as for the run"
    )
    overrides, rest = split_overrides(sys.argv[1:] if arguments is None else arguments)
    flags = parser.parse_args(rest)
    from mm.recipe import Recipe  # here, since what prepares data for others has no recipe

    try:
        config = load(flags.config)
        override(config, overrides)
        registry.check(Recipe, plain(config), "config")  # a wrong key would be a right one's
        address, servers = start(plain(config), flags.host, flags.port, flags.dispatcher)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"--config.input.service=grpc://{address}", flush=True)
    (stop or threading.Event()).wait()
    del servers
    return 0


def start(
    config: Mapping, host: str, port: int = 0, dispatcher: str | None = None
) -> tuple[str, list[Any]]:
    """(the dispatcher's HOST:PORT, a worker for the run of `config` and maybe the dispatcher)."""
    from data.input import open_input  # here, since loader and service know each other
    from data.loader import train_makers

    opened = open_input(config["input"], "config.input")
    given = {key: opened.rest[key] for key in ("phases", "order") if key in opened.rest}
    given |= {key: config[key] for key in ("global_batch_size", "seed")}
    for _, maker, name in train_makers(opened.source, opened.preprocess, **given):
        serve(name(), maker)
    servers = []
    if dispatcher is None:
        servers.append(_SERVICE.DispatchServer(_SERVICE.DispatcherConfig(port=port)))
        dispatcher, port = f"{host}:{servers[0].target.rpartition(':')[2]}", 0
    reached = dict(worker_address=f"{host}:%port%", data_transfer_address=f"{host}:%port%")
    worker = _SERVICE.WorkerConfig(dispatcher_address=dispatcher, port=port, **reached)
    return dispatcher, [*servers, _SERVICE.WorkerServer(worker)]


if __name__ == "__main__":
    sys.exit(main())
