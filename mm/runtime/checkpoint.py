"""Checkpoints: a plain tree of arrays by path, and a JSON manifest beside it (orbax underneath).

`<directory>/<step>/` appears by one rename when every byte of it is written; until then it has
another name, which nobody reads and which the next start removes. Python classes (optax's tuples,
our TrainState) are not stored, only the names on the way to each array, so code can be reorganised
without breaking weights.
"""

import contextlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.tree_util import keystr
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    LatestN,
    PreservationPolicy,
)

from mm.config import BadInput

FORMAT_VERSION = 1
# Of arrays that replicas have in common so many write a part each, if parts have so many bytes.
_WRITERS, _SLICE = 8, 1 << 20
_TRASH = "deleted"  # a checkpoint on its way out is renamed first, so none is ever seen in part


class Checkpointer:
    """Saves and restores train states in `directory`, asynchronously, on all processes together.

    every_steps: `due(step)` is True on its multiples.
    keep_last: how many of the newest to keep.
    keep_best: the key of a metric, higher is better, such as "seen/text_to_image/recall@1"; the
      best checkpoint by it is kept too. Only checkpoints saved with a finite value compete.
    read_only: never writes or removes anything; for reading beside a run that goes on.
    """

    def __init__(
        self,
        directory: os.PathLike | str,
        *,
        every_steps: int = 1,
        keep_last: int = 1,
        keep_best: str | None = None,
        read_only: bool = False,
    ):
        for key, value in (("every_steps", every_steps), ("keep_last", keep_last)):
            if value < 1:
                raise BadInput(f"{key}={value} must be at least 1")
        self.directory = epath.Path(directory)
        self.every_steps = every_steps
        self._best = _Best(keep_best)
        self._read_only = read_only
        if read_only and not self.directory.is_dir():
            raise BadInput(f"no checkpoints: {self.directory} does not exist")
        self._check_metrics()
        self._manager = ocp.CheckpointManager(
            self.directory.absolute(),
            item_handlers={
                # zstd shrinks float32 weights by a tenth and takes ten times the CPU
                "state": ocp.PyTreeCheckpointHandler(
                    use_compression=False, type_handler_registry=_handlers()
                ),
                "manifest": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
                todelete_subdir=_TRASH,
                preservation_policy=AnyPreservationPolicy([LatestN(keep_last), self._best]),
                best_fn=len,  # only its presence counts: without one, metrics are not stored
            ),
        )
        self._empty_trash()

    def due(self, step: int) -> bool:
        """Whether `step` is one of the regular ones."""
        return step % self.every_steps == 0

    def save(
        self, step: int, state: Any, manifest: Mapping, metrics: Mapping | None = None
    ) -> bool:
        """Starts saving and returns once the arrays may be donated; False if `step` is there.

        Waits for the previous save first. What goes wrong in the background is raised by the next
        save, wait or close. `manifest`: what JSON can hold; format_version and step are added.
        """
        if self._read_only:
            raise ValueError("save on a read-only Checkpointer")
        if step in self._manager.all_steps():
            return False
        self._empty_trash()
        manifest = {"format_version": FORMAT_VERSION, "step": step, **manifest}
        return self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(state_to_tree(state)),
                manifest=ocp.args.JsonSave(json.loads(json.dumps(manifest))),
            ),
            metrics={key: float(value) for key, value in (metrics or {}).items()},
            force=True,
        )

    def steps(self) -> list[int]:
        """The steps that have a whole checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The newest step with a whole checkpoint, or None."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step with the best value of the keep_best metric, or None."""
        known = [(self._best.value(self._manager.metrics(step)), step) for step in self.steps()]
        return max((pair for pair in known if pair[0] is not None), default=(None, None))[1]

    def metrics(self, step: int) -> dict[str, float]:
        """What it was saved with: the results of an evaluation at that step, {} without one."""
        return dict(self._manager.metrics(step) or {})

    def arrays(self, step: int) -> dict:
        """What `step` holds, as nested dicts of things with a shape and a dtype; nothing is read.

        Raises BadInput as `restore` does.
        """
        return self._guard(step, lambda: self._manager.item_metadata(step)["state"].tree)

    def manifest(self, step: int | None = None) -> dict:
        """The manifest of `step` (default: the latest). Raises BadInput as `restore` does."""
        step = self._existing(step)
        manifest = self._read(step, manifest=ocp.args.JsonRestore())["manifest"]
        found = manifest.get("format_version") if isinstance(manifest, dict) else None
        if found != FORMAT_VERSION:
            raise BadInput(
                f"checkpoint {self.directory / str(step)} has format version {found}, this program "
                f"reads {FORMAT_VERSION}; use the version of the code that wrote it"
            )
        return manifest

    def restore(
        self, abstract_state: Any, step: int | None = None, partial: bool = False
    ) -> tuple[Any, dict]:
        """Returns (state, manifest) of `step` (default: the latest).

        abstract_state: a tree of ShapeDtypeStructs with shardings; every array is read straight
        into its sharding, a device its own part. Raises BadInput when there is no such checkpoint,
        it cannot be read, or its names, shapes or dtypes are not exactly those of `abstract_state`.
        partial: it may have more arrays, which are not read.
        """
        step = self._existing(step)
        manifest = self.manifest(step)
        wanted = state_to_tree(abstract_state)
        self._compare(step, wanted, partial)
        arguments = ocp.args.PyTreeRestore(
            item=wanted,
            restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
            partial_restore=partial,
        )
        return tree_to_state(self._read(step, state=arguments)["state"], abstract_state), manifest

    def wait(self) -> None:
        """Returns when the save under way, if any, is whole on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then releases threads; the last call."""
        self._manager.wait_until_finished()
        self._manager.close()
        self._empty_trash()

    def _existing(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise BadInput(f"no checkpoint in {self.directory}; train first, or check the path")
        if step is not None and step not in steps:
            raise BadInput(f"no checkpoint of step {step} in {self.directory}; it has {steps}")
        return steps[-1] if step is None else step

    def _read(self, step: int, **items: Any) -> Any:
        return self._guard(
            step, lambda: self._manager.restore(step, args=ocp.args.Composite(**items))
        )

    def _check_metrics(self) -> None:
        """Orbax reads all the metrics when it opens, and does not say which are damaged."""
        for file in self.directory.glob("*/metrics/metrics"):
            if file.parents[1].name.isdigit():
                self._guard(
                    int(file.parents[1].name), lambda file=file: json.loads(file.read_text())
                )

    def _guard(self, step: int, read: Callable[[], Any]) -> Any:
        """Runs `read`; whatever it raises becomes a BadInput that says how to go on."""
        try:
            with _hush_late_callbacks():
                return read()
        except Exception as error:  # orbax, tensorstore and JSON each raise their own kinds
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            names = [path.name for path in self.directory.iterdir() if path.name.isdigit()]
            earlier = max((int(name) for name in names if int(name) < step), default=None)
            back = "start again" if earlier is None else f"go back to step {earlier}"
            raise BadInput(
                f"checkpoint {self.directory / str(step)} cannot be read ({reason}); "
                f"delete that directory to {back}"
            ) from error

    def _compare(self, step: int, wanted: dict, partial: bool) -> None:
        """Raises BadInput unless checkpoint and program hold the same arrays (partial: or more)."""
        wanted, found = _signatures(wanted), _signatures(self.arrays(step))
        differences = {
            "missing in the checkpoint": [name for name in wanted if name not in found],
            "unknown to the program": [
                name for name in found if name not in wanted and not partial
            ],
            "of another shape": [
                f"{name}: checkpoint {found[name]}, program {wanted[name]}"
                for name in wanted
                if name in found and found[name] != wanted[name]
            ],
        }
        parts = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in differences.items()
            if names
        ]
        if parts:
            advice = "use the config it was trained with, or another --workdir"
            raise BadInput(
                f"checkpoint {self.directory / str(step)} does not fit this program: "
                f"{'; '.join(parts)}; {'take fewer parameters' if partial else advice}"
            )

    def _empty_trash(self) -> None:
        trash = self.directory / _TRASH
        if jax.process_index() == 0 and not self._read_only and trash.exists():
            for leaving in trash.iterdir():
                shutil.rmtree(leaving, ignore_errors=True)  # a leftover costs space, nothing else


def find_step(checkpointer: Checkpointer, step: str) -> int | None:
    """The number that a step as text means; None is the latest."""
    if step == "latest":
        return None
    if step == "best":
        best = checkpointer.best_step()
        if best is None:
            raise BadInput(
                f"step=best: no checkpoint in {checkpointer.directory} has the metric of "
                "config.checkpoint.keep_best; give a number or latest"
            )
        return best
    if not step.isdecimal():
        raise BadInput(f"step={step}: expected a number, latest or best")
    return int(step)


@contextlib.contextmanager
def _hush_late_callbacks() -> Iterator[None]:
    """Keeps a failed read to one message.

    Orbax ends its event loop at the first array that fails; tensorstore's threads then print a
    traceback for each of the others, also after the exception has reached us. So the filter goes
    only if all went well.
    """
    hook = sys.unraisablehook

    def without_late_callbacks(raised):
        if str(raised.exc_value) != "Event loop is closed":
            hook(raised)

    sys.unraisablehook = without_late_callbacks
    yield
    sys.unraisablehook = hook


def _handlers() -> ocp.type_handlers.TypeHandlerRegistry:
    """How arrays are written and read: small ones by one replica, whole, others by a few.

    By default orbax cuts each replicated array in as many pieces as it has replicas, and compiles
    a program for every shape and piece: in the first save of a small model that takes a tenth of
    the time of its whole start.
    """
    arrays = ocp.type_handlers.ArrayHandler(
        min_slice_bytes_for_replica_parallel=_SLICE, max_replicas_for_replica_parallel=_WRITERS
    )
    scalar = ocp.type_handlers.ScalarHandler()
    return ocp.type_handlers.create_type_handler_registry(
        *((kind, scalar) for kind in (int, float, np.number)),
        (np.ndarray, ocp.type_handlers.NumpyHandler()),
        (jax.Array, arrays),
    )


class _Best(PreservationPolicy):
    """Keeps the checkpoint with the highest finite value of one metric; the newest on a tie."""

    def __init__(self, key: str | None):
        self.key = key

    def value(self, metrics: Mapping | None) -> float | None:
        value = (metrics or {}).get(self.key)
        return value if value is not None and math.isfinite(value) else None

    def should_preserve(self, checkpoints, *, context):
        values = [self.value(info.metrics) for info in checkpoints]
        known = [(value, i) for i, value in enumerate(values) if value is not None]
        best = max(known)[1] if known else None
        return [i == best for i in range(len(checkpoints))]


def state_to_tree(state: Any) -> dict:
    """Nested dicts with the same leaves, keyed by each key's name on the path from the root.

    Raises ValueError if two leaves get the same path.
    """
    tree: dict = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        *parents, last = names_of(path)
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        if not isinstance(node, dict) or last in node:
            raise ValueError(f"two arrays at {'/'.join(names_of(path))}")
        node[last] = leaf
    return tree


def tree_to_state(tree: Mapping, like: Any) -> Any:
    """The inverse of `state_to_tree`: `tree`'s leaves in the structure of `like`."""

    def find(path, _):
        node = tree
        for name in names_of(path):
            node = node[name]
        return node

    return jax.tree_util.tree_map_with_path(find, like)


def names_of(path: tuple) -> list[str]:
    """The names on a jax.tree_util key path: attribute and dict keys, indices as digits."""
    return [keystr((key,), simple=True) for key in path]


def _signatures(tree: Any) -> dict[str, str]:
    """{"params/image/kernel": "float32[192,768]"} for every leaf, parameters first."""
    found = {
        "/".join(names_of(path)): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    return dict(sorted(found.items(), key=lambda item: not item[0].startswith("params/")))
