"""What the parts of a step read of a batch."""

from collections.abc import Iterable
from typing import NamedTuple

from jax import ShapeDtypeStruct


class Read(NamedTuple):
    """An array of a batch: `shape` and `dtype` are an example's."""

    name: str
    shape: tuple[int, ...]
    dtype: str


ID = Read("id", (), "uint32")
GROUP = Read("group", (), "int32")  # rows of the same number show the same thing


def images(shape: tuple[int, ...], *names: str) -> tuple[Read, ...]:
    """Pictures [h, w, 3], clips [t, h, w, 3]; of other channels than 3, such as spectrograms."""
    dtype = "uint8" if shape[-1] == 3 else "float32"
    return tuple(Read(name, shape, dtype) for name in names)


def texts(length: int, *names: str) -> tuple[Read, ...]:
    """Token ids, and which of them are real."""
    return tuple(
        read
        for name in names
        for read in (Read(name, (length,), "int32"), Read(f"{name}_mask", (length,), "bool"))
    )


def batch_spec(reads: Iterable[Read], batch_size: int) -> dict[str, ShapeDtypeStruct]:
    """The arrays of `batch_size` examples."""
    return {read.name: ShapeDtypeStruct((batch_size, *read.shape), read.dtype) for read in reads}
