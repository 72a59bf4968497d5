"""The wire format: msgpack with NumPy arrays, as openpi's servers and clients speak it.

An array is a map ``{b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [..]}``, a NumPy
scalar is ``{b"__npgeneric__": True, b"data": value, b"dtype": "<f4"}``. Only plain numbers, booleans and
strings cross: arrays of Python objects would need pickle, which executes what a stranger sends.
"""

from __future__ import annotations

import re
from typing import Any

import msgpack
import numpy as np

#: Booleans, integers, floats, byte strings, strings.
_DTYPE = re.compile(r"[<>=|]?[biufSU][0-9]{1,4}")
_MAX_DIMENSIONS = 8
#: Values in one message. Arrays are one each; small ones take sixty times more memory than bytes on the wire,
#: and seconds to read.
_MAX_VALUES = 100_000


class WireError(ValueError):
    """A message that is malformed, or holds what may not cross."""


def pack(message: Any) -> bytes:
    """Return a message of plain data and arrays as bytes.

    Raises:
        WireError: if it holds an array of objects, or something that is no data.
    """
    try:
        packed: bytes = msgpack.packb(message, default=_encode)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"this cannot be sent: {error}") from error
    return packed


def unpack(data: bytes) -> Any:
    """Return the message that `pack` made bytes of; arrays are read-only views of them.

    Raises:
        WireError: naming what is wrong with it.
    """
    values = 0

    def counted(value: Any) -> Any:
        nonlocal values
        values += 1 + len(value)
        if values > _MAX_VALUES:
            raise WireError(f"more than {_MAX_VALUES} values")
        return _decode(value) if isinstance(value, dict) else value

    try:
        return msgpack.unpackb(
            data,
            object_hook=counted,
            list_hook=counted,
            ext_hook=_refuse,
            max_array_len=_MAX_VALUES,
            max_map_len=_MAX_VALUES,
        )
    except WireError:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"no msgpack message: {error or type(error).__name__}") from error


def _encode(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.kind not in "biufSU":
            raise WireError(f"arrays of {value.dtype} cannot be sent; convert them to numbers")
        if isinstance(value, np.ndarray):
            return {
                b"__ndarray__": True,
                b"data": value.tobytes(),
                b"dtype": value.dtype.str,
                b"shape": value.shape,
            }
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"{type(value).__name__} is neither plain data nor an array")


def _decode(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return _array(value.get(b"data"), _dtype(value.get(b"dtype")), value.get(b"shape"))
    if b"__npgeneric__" in value:
        dtype, data = _dtype(value.get(b"dtype")), value.get(b"data")
        if not isinstance(data, (bool, int, float, str, bytes)):
            raise WireError(f"a NumPy scalar that is a {type(data).__name__}")
        try:
            return dtype.type(data)
        except (ValueError, OverflowError, TypeError) as error:
            raise WireError(f"{data!r} is no {dtype}") from error
    return value


def _dtype(name: Any) -> np.dtype[Any]:
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise WireError(f"arrays of {name!r} are refused")
    try:
        dtype = np.dtype(name)
    except TypeError as error:
        raise WireError(f"arrays of {name!r} are refused") from error
    if dtype.itemsize == 0:
        raise WireError(f"arrays of {name!r} are refused")
    return dtype


def _array(data: Any, dtype: np.dtype[Any], shape: Any) -> np.ndarray:
    sizes = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    if not sizes or len(shape) > _MAX_DIMENSIONS:
        raise WireError(f"{shape!r} is no shape")
    count = 1
    for n in shape:
        count *= n
    if not isinstance(data, bytes) or len(data) != count * dtype.itemsize:
        raise WireError(f"an array of shape {shape} and type {dtype} that does not fit its data")
    array: np.ndarray = np.frombuffer(data, dtype).reshape(shape) if count else np.empty(shape, dtype)
    return array


def _refuse(code: int, data: bytes) -> Any:
    raise WireError(f"extension type {code} is refused")
