"""Reading plain data out of a pickled ``.npy`` file without unpickling it.

CALVIN keeps its language annotations in ``auto_lang_ann.npy``: a NumPy array of one object, a dictionary of
lists, texts and arrays, as a pickle. `pickle.load` runs whatever a file asks for, so it is not used here. A
pickle is a program for a small stack machine; `pickletools` lists its instructions, and this machine carries
out only those that build plain data. Nothing is ever imported or called: a name that the program asks for
becomes an inert `Global`, and what it would do with it an inert `Call`, of which only NumPy's arrays and
numbers are understood.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mode_policy.errors import DataError

#: Bytes of a file, at most: the annotations of CALVIN's largest split, embeddings included, take 40 MB.
MAX_BYTES = 2**29


@dataclass(frozen=True)
class Global:
    """A name that the program asked for; it is not looked up."""

    module: str
    name: str


@dataclass(eq=False)
class Call:
    """A call that the program asked for, and the state it gave the result; nothing is called."""

    function: Any
    arguments: tuple[Any, ...]
    state: Any = None


@dataclass
class _Machine:
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items


#: Instructions whose argument is the value itself.
_VALUES = {
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def load_object(path: Path) -> Any:
    """Return the one object of a pickled ``.npy`` file, as plain data.

    Dictionaries, lists, tuples, texts and numbers come out as such, arrays of numbers as NumPy arrays.

    Raises:
        DataError: if the file is damaged, too large, or holds anything but plain data.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DataError(f"{path} has {size / 2**20:.0f} MiB, more than annotations take; it is not read")
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            reader = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[
                version[0]
            ]
            shape, _, dtype = reader(file)
            program = file.read()
        if dtype.kind != "O" or shape != ():
            raise DataError(f"{path} holds {dtype} {shape}; expected is one object")
        value = _Plain()(_run(program))
    except DataError:
        raise
    except Exception as error:  # a damaged program fails in any way; nothing has run but this module
        raise DataError(
            f"{path} is damaged, or holds more than plain data ({error}); download it again"
        ) from error
    # An array of no dimensions that holds one object is written as a list of one.
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _run(program: bytes) -> Any:
    """Carry out a pickle's instructions that build data; raise `DataError` at any other."""
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(program):
        name = opcode.name
        if name in _VALUES:
            machine.stack.append(argument)
        elif name in _CONSTANTS:
            machine.stack.append(_CONSTANTS[name])
        elif name == "STOP":
            return machine.stack[-1]
        elif not _step(machine, name, argument):
            raise DataError(f"it uses {name}, which plain data do not need")
    raise DataError("it ends before it is complete")


def _step(m: _Machine, name: str, argument: Any) -> bool:
    """Carry out one instruction on the machine; return whether it is known."""
    match name:
        case "PROTO" | "FRAME":
            pass
        case "MARK":
            m.marks.append(len(m.stack))
        case "POP":
            m.stack.pop()
        case "EMPTY_LIST":
            m.stack.append([])
        case "EMPTY_DICT":
            m.stack.append({})
        case "EMPTY_TUPLE":
            m.stack.append(())
        case "LIST":
            m.stack.append(m.pop_to_mark())
        case "TUPLE":
            m.stack.append(tuple(m.pop_to_mark()))
        case "DICT":
            items = m.pop_to_mark()
            m.stack.append(dict(zip(items[::2], items[1::2], strict=True)))
        case "TUPLE1" | "TUPLE2" | "TUPLE3":
            count = int(name[-1])
            items = m.stack[-count:]
            del m.stack[-count:]
            m.stack.append(tuple(items))
        case "APPEND":
            item = m.stack.pop()
            m.stack[-1].append(item)
        case "APPENDS":
            items = m.pop_to_mark()
            m.stack[-1].extend(items)
        case "SETITEM":
            value, key = m.stack.pop(), m.stack.pop()
            m.stack[-1][key] = value
        case "SETITEMS":
            items = m.pop_to_mark()
            m.stack[-1].update(zip(items[::2], items[1::2], strict=True))
        case "PUT" | "BINPUT" | "LONG_BINPUT":
            m.memo[int(argument)] = m.stack[-1]
        case "MEMOIZE":
            m.memo[len(m.memo)] = m.stack[-1]
        case "GET" | "BINGET" | "LONG_BINGET":
            m.stack.append(m.memo[int(argument)])
        case "GLOBAL":
            m.stack.append(Global(*argument.split(" ")))
        case "STACK_GLOBAL":
            attribute, module = m.stack.pop(), m.stack.pop()
            m.stack.append(Global(module, attribute))
        case "REDUCE":
            arguments, function = m.stack.pop(), m.stack.pop()
            m.stack.append(Call(function, arguments))
        case "BUILD":
            state = m.stack.pop()
            if not isinstance(m.stack[-1], Call):
                return False
            m.stack[-1].state = state
        case _:
            return False
    return True


class _Plain:
    """Turns what the program built into plain data.

    Each object is turned once: a few lists that hold each other many times over would otherwise fill the
        memory.
    """

    def __init__(self) -> None:
        self._done: dict[int, Any] = {}

    def __call__(self, x: Any, depth: int = 0) -> Any:
        """Return plain data; raise `DataError` at a call that is none of NumPy's."""
        if depth > 20:
            raise DataError("it is nested deeper than annotations are")
        if isinstance(x, Global):
            raise DataError(f"it asks for {x.module}.{x.name}")
        if not isinstance(x, dict | list | tuple | Call):
            return x
        if id(x) not in self._done:
            self._done[id(x)] = self._turn(x, depth + 1)
        return self._done[id(x)]

    def _turn(self, x: Any, depth: int) -> Any:
        if isinstance(x, dict):
            return {self(key, depth): self(value, depth) for key, value in x.items()}
        if isinstance(x, list | tuple):
            return type(x)(self(item, depth) for item in x)
        return _numpy(x, lambda part: self(part, depth))


def _numpy(call: Call, plain: Callable[[Any], Any]) -> Any:
    """Make the array, number or bytes that a call of NumPy's own pickles describes."""
    function = call.function
    if not isinstance(function, Global):
        raise DataError("it calls what it built itself")
    known = (function.module.replace("numpy._core", "numpy.core"), function.name)
    if known == ("numpy.core.multiarray", "_reconstruct"):
        _, shape, described, fortran, values = call.state
        dtype = _dtype(described)
        if dtype.kind == "O":
            return plain(values)
        array = np.frombuffer(plain(values), dtype)
        return array.reshape(shape, order="F" if fortran else "C")
    if known == ("numpy.core.multiarray", "scalar"):
        return np.frombuffer(plain(call.arguments[1]), _dtype(call.arguments[0]))[0].item()
    if known == ("_codecs", "encode"):
        text, encoding = call.arguments
        if encoding == "latin1":
            return str(text).encode("latin1")
    raise DataError(f"it calls {function.module}.{function.name}")


def _dtype(x: Any) -> np.dtype[Any]:
    """Return the type that a call of ``numpy.dtype`` describes: plain numbers, texts or objects."""
    if not isinstance(x, Call) or x.function != Global("numpy", "dtype"):
        raise DataError("it holds an array of unknown type")
    dtype = np.dtype(x.arguments[0])
    if dtype.kind not in "fiubUSO" or dtype.names:
        raise DataError(f"it holds an array of {dtype}")
    order = x.state[1] if isinstance(x.state, tuple) else "|"
    return dtype if order in ("|", "=") else dtype.newbyteorder(order)
