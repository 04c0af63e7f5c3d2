"""Read a pickle of plain data (dicts, lists, text, numbers, uint8 arrays) without running anything that it names.

CIFAR's Python version comes as pickles, which can run code when Python's own reader loads them. This reader steps
through the opcodes itself. It never imports, looks up or calls what a pickle names: the few names by which numpy
stores an array are recognised as text and answered by code of ours; any other name, and any other opcode, is refused.
"""

import math
import pickletools
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

MAX_OPCODES = 5_000_000
"""CIFAR-100's training file, the longest, has about 400,000."""

_NUMPY = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
_NAMES = {
    **{f"{module} _reconstruct": "new array" for module in _NUMPY},
    **{f"{module} _frombuffer": "array of bytes" for module in _NUMPY},
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
    "__builtin__ bytes": "bytes",
    "builtins bytes": "bytes",
    "__builtin__ bytearray": "bytes",
    "builtins bytearray": "bytes",
}
"""Names that a pickle of an array holds -> what they stand for here."""


class _Name(str):
    """One of the values of _NAMES; a pickle's own text is never a _Name."""

    __slots__ = ()


class _Type:
    """A numpy dtype of one byte, unsigned: the only one that is read."""


class _Array:
    """An array that a pickle makes first and fills later."""

    def __init__(self) -> None:
        self.pixels: NDArray[np.uint8] | None = None


_MARK = object()
_Stack: TypeAlias = list[Any]


class PickleRefusedError(ValueError):
    """The pickle holds more than plain data, or is damaged."""


def load_plain_pickle(raw: bytes) -> object:
    """Return the object that a pickle holds: None, bool, int, float, str, bytes, list, tuple, dict or a uint8 array.

    Text of Python 2 is decoded as Latin-1. Protocols 2 to 5 are read.

    Raises:
        PickleRefusedError: The pickle is damaged, or holds anything else; nothing of it was run.

    """
    try:
        return _Machine(len(raw)).run(raw)
    except PickleRefusedError:
        raise
    # pickletools raises ValueError for damaged pickles; the others come from lengths and stacks that don't fit.
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, MemoryError, UnicodeError) as error:
        raise PickleRefusedError(f"a damaged pickle ({type(error).__name__}: {error})") from error


class _Machine:
    """Stack and memo of one pickle while it is read.

    Objects that the pickle names twice are shared, never copied, so that memory stays in proportion to the file. They
    are also never compared, hashed or printed before their type is known: a tuple that holds the one before twice, 60
    deep, would take for ever.

    Args:
        size: Bytes of the pickle.

    """

    def __init__(self, size: int) -> None:
        self.unspent = size
        """Bytes that may still be copied; a pickle that holds each array once copies fewer than its own length."""
        self.stack: _Stack = []
        self.memo: dict[int, Any] = {}

    def run(self, raw: bytes) -> object:
        """Step through all opcodes; return what is left on the stack at the end."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(raw)):
            if count >= MAX_OPCODES:
                raise PickleRefusedError(f"more than {MAX_OPCODES:,} operations")
            if opcode.name == "STOP":
                break
            if opcode.name in _IGNORED:
                continue
            if opcode.name in _CONSTANTS:
                self.stack.append(_CONSTANTS[opcode.name]())
            elif opcode.name in _ARGUMENTS:
                self.stack.append(argument)
            elif opcode.name in _STEPS:
                _STEPS[opcode.name](self, argument)
            else:
                raise PickleRefusedError(f"the operation {opcode.name}, which plain data does not need")
        return _finished(self.stack.pop())

    def pop_to_mark(self) -> _Stack:
        """Remove the newest mark and all above it; return what was above it."""
        for start in range(len(self.stack) - 1, -1, -1):
            if self.stack[start] is _MARK:
                items = self.stack[start + 1 :]
                del self.stack[start:]
                return items
        raise PickleRefusedError("a damaged pickle (no mark)")

    def put(self, number: int | None) -> None:
        """Remember the top of the stack by a number, the next one if it is None."""
        self.memo[len(self.memo) if number is None else number] = self.stack[-1]

    def pop_tuple(self, length: int) -> None:
        """Replace the `length` topmost items by a tuple of them."""
        if len(self.stack) < length:
            raise PickleRefusedError("a damaged pickle (the stack is empty)")
        items = tuple(self.stack[-length:])
        del self.stack[-length:]
        self.stack.append(items)

    def extend(self, items: _Stack) -> None:
        """Append items to the list on top of the stack."""
        if type(self.stack[-1]) is not list:
            raise PickleRefusedError("items for something that is no list")
        self.stack[-1].extend(items)

    def set_items(self, items: _Stack) -> None:
        """Put key, value, key, value, ... into the dict on top of the stack."""
        if type(self.stack[-1]) is not dict:
            raise PickleRefusedError("items for something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | bytes | int):
                raise PickleRefusedError(f"a key of type {type(key).__name__}")
            self.stack[-1][key] = value

    def name(self, text: str) -> None:
        """Push what a name stands for; refuse all names but those of arrays."""
        if text not in _NAMES:
            raise PickleRefusedError(f"it names {text.replace(' ', '.')}, which is not plain data")
        self.stack.append(_Name(_NAMES[text]))

    def stack_name(self) -> None:
        """Push what the name stands for whose module and name are on the stack."""
        name = self.stack.pop()
        module = self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleRefusedError("a name that is no text")
        self.name(f"{module} {name}")

    def reduce(self) -> None:
        """Replace a name and its arguments by the object of ours that stands for such a call."""
        arguments = self.stack.pop()
        name = self.stack.pop()
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise PickleRefusedError("a call of something that is no name of an array")
        self.stack.append(self._answer(name, arguments))

    def build(self) -> None:
        """Fill the array, or check the dtype, below the top of the stack with the state on top of it."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, _Type):
            return  # byte order and alignment, which a type of one byte does not have
        if not isinstance(target, _Array) or not isinstance(state, tuple) or len(state) != 5:
            raise PickleRefusedError("a state for something that is no array")
        _, shape, kind, in_columns, content = state
        target.pixels = self._pixels(content, shape, kind, order="F" if in_columns else "C")

    def _answer(self, name: _Name, arguments: tuple[Any, ...]) -> object:
        """Return the object of ours that stands for a call of a known name."""
        if name == "new array":
            return _Array()
        if name == "dtype" and arguments and isinstance(arguments[0], str):
            if arguments[0] not in {"u1", "|u1", "uint8"}:
                raise PickleRefusedError(f"an array of {arguments[0][:20]!r}, not of uint8")
            return _Type()
        if name == "array of bytes" and len(arguments) == 4:
            content, kind, shape, order = arguments
            array = _Array()
            array.pixels = self._pixels(content, shape, kind, order=order)
            return array
        if name == "encode" and len(arguments) == 2 and isinstance(arguments[1], str) and arguments[1] == "latin1":
            return self._encoded(arguments[0])
        if name == "bytes" and (not arguments or (len(arguments) == 1 and isinstance(arguments[0], bytes | bytearray))):
            self._spend(len(arguments[0]) if arguments else 0)
            return bytes(*arguments)
        raise PickleRefusedError(f"a call of {name} with other arguments than arrays have")

    def _spend(self, count: int) -> None:
        self.unspent -= count
        if self.unspent < 0:
            raise PickleRefusedError("it holds the same bytes many times over")

    def _encoded(self, text: object) -> bytes:
        """Return text of Python 2 as the bytes that it was."""
        if not isinstance(text, str):
            raise PickleRefusedError("text that is no text")
        self._spend(len(text))
        return text.encode("latin-1")

    def _pixels(self, content: object, shape: object, kind: object, *, order: object) -> NDArray[np.uint8]:
        """Return the array with these bytes and this shape; raise PickleRefusedError unless they fit."""
        if not isinstance(kind, _Type) or not isinstance(shape, tuple) or not 1 <= len(shape) <= 4:
            raise PickleRefusedError("an array of another kind than uint8")
        raw = self._encoded(content) if isinstance(content, str) else content
        if not isinstance(raw, bytes | bytearray) or not all(type(side) is int and 0 <= side < 2**40 for side in shape):
            raise PickleRefusedError("an array without bytes or shape")
        if len(raw) != math.prod(shape):
            raise PickleRefusedError(f"an array of shape {shape} with {len(raw)} bytes")
        in_columns = isinstance(order, str) and order == "F"
        return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if in_columns else "C")


def _finished(value: object) -> object:
    """Return the value with arrays in place of the objects that stood for them, in a dict of them too.

    No deeper: an array within a list stays what it is here, which no caller knows.
    """
    if isinstance(value, _Array):
        return value.pixels
    if isinstance(value, dict):
        return {key: item.pixels if isinstance(item, _Array) else item for key, item in value.items()}
    return value


_IGNORED = frozenset({"PROTO", "FRAME"})
_CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": lambda: (),
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "MARK": lambda: _MARK,
}
_ARGUMENTS = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"}
    | {"BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)
"""Opcodes that push their argument."""
_STEPS: dict[str, Callable[[_Machine, Any], object]] = {
    "BINPUT": lambda machine, number: machine.put(number),
    "LONG_BINPUT": lambda machine, number: machine.put(number),
    "MEMOIZE": lambda machine, _: machine.put(None),
    "BINGET": lambda machine, number: machine.stack.append(machine.memo[number]),
    "LONG_BINGET": lambda machine, number: machine.stack.append(machine.memo[number]),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.pop_tuple(1),
    "TUPLE2": lambda machine, _: machine.pop_tuple(2),
    "TUPLE3": lambda machine, _: machine.pop_tuple(3),
    "LIST": lambda machine, _: machine.stack.append(machine.pop_to_mark()),
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "GLOBAL": lambda machine, text: machine.name(text),
    "STACK_GLOBAL": lambda machine, _: machine.stack_name(),
    "REDUCE": lambda machine, _: machine.reduce(),
    "BUILD": lambda machine, _: machine.build(),
}
