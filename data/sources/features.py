"""What the fields of records are where the files do not say it themselves."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from data.sources import BadExample, Feature
from mm.config import BadInput, suggest

_BYTES = ("image", "text", "bytes")
_NUMBERS = ("bool", "float16", "float32", "float64")
_NUMBERS += tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))


def declared(spec: Mapping[str, Any]) -> dict[str, Feature]:
    """{"caption": "text", "embedding": ("float32", 512), "tags": ("text", None)} as features.

    None is any number of values, (64, 64, 3) an array. Raises BadInput where there is no such type.
    """
    return {key: _feature(key, value) for key, value in spec.items()}


def _feature(key: str, value: Any) -> Feature:
    dtype, shape = value, ()
    if isinstance(value, tuple | list) and len(value) == 2:
        dtype, shape = value
    if dtype not in _BYTES + _NUMBERS:
        near = suggest(str(dtype), _BYTES + _NUMBERS)
        raise BadInput(
            f"{key}={value!r}: expected one of {[*_BYTES, *_NUMBERS]}, or (one of them, how many)"
            f"{near}"
        )
    if shape is None:
        return Feature(dtype, ragged=True)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if not all(type(size) is int and size > 0 for size in shape):
        raise BadInput(f"{key}={value!r}: expected sizes of at least 1, or None for any number")
    if shape and dtype in _BYTES:
        raise BadInput(f"{key}={value!r}: only numbers have a shape; ({dtype!r}, None) is a list")
    return Feature(dtype, shape=shape)


def shaped(values: list, feature: Feature, where: str, key: str) -> Any:
    """The flat values of the field `key` as its feature says: a list, an array or one value."""
    if feature.dtype not in _BYTES:
        try:
            values = np.array(values, feature.dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise wrong_type(f"{where}: {key}", values, feature) from error
    if feature.ragged:
        return values
    if len(values) != math.prod(feature.shape):
        raise wrong_shape(f"{where}: {key}", (len(values),), feature)
    return np.reshape(values, feature.shape) if feature.shape else values[0]


def from_json(value: Any, feature: Feature, where: str, key: str) -> Any:
    """A JSON value that is not null; a whole number may stand where a float is expected."""
    if feature.dtype == "text":
        values = value if feature.ragged else [value]
        if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
            raise wrong_type(f"{where}: {key}", value, feature)
        for item in values:
            check_text(item, f"{where}: {key}")
        return shaped(values, feature, where, key)
    try:
        array = np.array(value)
    except ValueError as error:  # lists of several lengths
        raise wrong_type(f"{where}: {key}", value, feature) from error
    kinds = "biuf" if feature.dtype.startswith("float") else "biu"
    if (array.size and array.dtype.kind not in kinds) or (feature.ragged and array.ndim != 1):
        raise wrong_type(f"{where}: {key}", value, feature)
    if not feature.ragged and array.shape != feature.shape:
        raise wrong_shape(f"{where}: {key}", array.shape, feature)
    return shaped(array.ravel().tolist(), feature, where, key)


def check_text(value: str, where: str) -> None:
    """JSON can spell half of a surrogate pair, at which a tokenizer would break."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        message = f"{where}={value!a:.80}: {error.reason}"
        raise BadExample(message, "text is no UTF-8") from error


def text(encoded: bytes, where: str, key: str) -> str:
    try:
        return encoded.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadExample(f"{where}: {key}: is no UTF-8 ({error})", "text is no UTF-8") from error


def missing(where: str, key: str, have: Any) -> BadExample:
    have = sorted(have)
    return BadExample(
        f"{where}: has no field {key!r}{suggest(key, have)} (have {have[:20]})", "field is missing"
    )


def wrong_type(where: str, value: Any, feature: Feature) -> BadExample:
    return BadExample(
        f"{where}: {value!r:.80}: expected {feature.dtype}", "field has the wrong type"
    )


def wrong_shape(where: str, shape: tuple[int, ...], feature: Feature) -> BadExample:
    return BadExample(
        f"{where}: has shape {list(shape)}, expected {list(feature.shape)}",
        "field has the wrong shape",
    )
