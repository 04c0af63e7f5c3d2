"""Read a pickle as data: plain values and tensors, and nothing is imported or called because the file names it.

Python's own unpickler looks up each name in the file and calls what it finds. This reader knows a handful of names (see
`Builders`). Each other class or function stays a name, and what the pickle would have made with it is an `Inert` record
of that name, its arguments, its items and its state. So a checkpoint with the objects of ten libraries in its metadata
can be read where none of them is installed, and a hostile one can only describe what it would have liked to run.
"""

import pickletools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

MAX_TEXT = 2**20
"""Longest text (characters) that may be a key of a dictionary."""


class PickleError(ValueError):
    """Error of a pickle that is damaged, or uses something that no checkpoint needs."""


class DangerousPickleError(PickleError):
    """Error of a pickle that names a function which starts programs or runs code."""


DANGEROUS_MODULES = frozenset(
    {"os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "pty", "importlib", "runpy", "code", "codeop"}
    | {"commands", "webbrowser", "ctypes", "_ctypes", "multiprocessing", "marshal", "pickle", "_pickle", "cffi", "pip"}
    | {"asyncio", "timeit", "pdb", "bdb"}
)
DANGEROUS_FUNCTIONS = frozenset({"eval", "exec", "compile", "open", "__import__", "breakpoint"})
"""Modules, and functions of `builtins`, that no checkpoint has a reason to name. Reading them here would run nothing,
but who put them in wanted that, so the file is refused. Everything else is only described."""


@dataclass(eq=False, repr=False)
class Inert:
    """Record of an object of a class that is not known here: nothing of the class was imported or run."""

    name: str
    """Module and name of the class or function, such as `argparse.Namespace`."""
    arguments: tuple[Any, ...] = ()
    """Arguments that it would have been called with."""
    items: dict[Hashable, Any] = field(default_factory=dict)
    """Entries, if it is a kind of dictionary."""
    elements: list[Any] = field(default_factory=list)
    """Elements, if it is a kind of list or set."""
    state: Any = None
    """State that it would have been restored with, most often a dictionary of its attributes."""


class _Mark:
    """Mark on the stack, at which the elements of a list, tuple or dictionary begin."""


MARK = _Mark()

Builders = dict[str, Callable[..., Any]]
"""Name in the file -> function of ours that builds the value from the arguments."""


def _ordered_dict(pairs: Any = ()) -> dict[Hashable, Any]:
    """Return the dictionary of (key, value) pairs, as Python 2 wrote an OrderedDict."""
    return {_plain_key(key): value for key, value in pairs}


def _reconstructed(kind: Any, _base: Any = None, content: Any = None) -> Inert:
    """Return the record of an object of protocols 0 and 1, which write a kind of dictionary or list in one piece."""
    if not isinstance(kind, Inert):
        raise PickleError("damaged pickle: an object of something that is no class")
    items = content if isinstance(content, dict) else {}
    return Inert(kind.name, items=items, elements=content if isinstance(content, list) else [])


BUILDERS: Builders = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": tuple,
    "copyreg._reconstructor": _reconstructed,
    "copy_reg._reconstructor": _reconstructed,  # Python 2's name
}

CONSTANTS: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}

PUSH = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING"}
    | {"SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES"}
    | {"BINBYTES8", "BYTEARRAY8"}
)
"""Opcodes that push their argument."""

TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """Stack and memo of the interpreter, and the values that it makes.

    Args:
        builders: Functions for names beyond `BUILDERS`.
        load_persistent: Function from a persistent id (torch: the description of a storage) to the object.

    """

    def __init__(self, builders: Builders, load_persistent: Callable[[Any], Any]) -> None:
        self.builders = {**BUILDERS, **builders}
        self.load_persistent = load_persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def _pop(self, count: int) -> list[Any]:
        """Take the last `count` elements off the stack, which must not include a mark."""
        if count > len(self.stack):
            raise PickleError("damaged pickle: its stack is empty")
        taken = self.stack[len(self.stack) - count :]
        if any(value is MARK for value in taken):
            raise PickleError("damaged pickle: a mark where a value belongs")
        del self.stack[len(self.stack) - count :]
        return taken

    def _pop_to_mark(self) -> list[Any]:
        """Take the elements above the last mark off the stack, and the mark."""
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is MARK:
                taken = self.stack[place + 1 :]
                del self.stack[place:]
                return taken
        raise PickleError("damaged pickle: no mark")

    def _named(self, module: Any, attribute: Any) -> Inert:
        """Return the record of a name in the file."""
        if not (isinstance(module, str) and isinstance(attribute, str)):
            raise PickleError("damaged pickle: a name that is no text")
        module = "builtins" if module == "__builtin__" else module  # Python 2's name
        name = f"{module}.{attribute}"
        function = module == "builtins" and attribute.split(".")[0] in DANGEROUS_FUNCTIONS
        if function or module.split(".")[0] in DANGEROUS_MODULES:
            raise DangerousPickleError(name)
        return Inert(name)

    def _build(self, function: Any, arguments: Any) -> Any:
        """Return the value of a call in the file: built by a function of ours, or a record."""
        if not isinstance(arguments, tuple):
            raise PickleError("damaged pickle: arguments that are no tuple")
        if not isinstance(function, Inert):
            raise PickleError("damaged pickle: a call of something that is no name")
        builder = self.builders.get(function.name)
        if builder is None or function.arguments:
            return Inert(function.name, arguments)
        return builder(*arguments)

    def _set_items(self, values: list[Any]) -> None:
        """Put the alternating keys and values into the dictionary on the stack's top."""
        if len(values) % 2:
            raise PickleError("damaged pickle: a key without a value")
        target = self.stack[-1]
        items = target.items if isinstance(target, Inert) else target
        if not isinstance(items, dict):
            raise PickleError("damaged pickle: items of something that is no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            items[_plain_key(key)] = value

    def _extend(self, values: list[Any]) -> None:
        """Append the values to the list on the stack's top."""
        target = self.stack[-1]
        elements = target.elements if isinstance(target, Inert) else target
        if not isinstance(elements, list):
            raise PickleError("damaged pickle: elements of something that is no list")
        elements.extend(values)


class DataReader(_Machine):
    """Interpreter of one pickle: a method `_do_NAME` for each opcode that is more than a constant."""

    def read(self, file: BinaryIO) -> Any:
        """Return the object of the pickle that starts here; the file stands behind it afterwards.

        Raises:
            PickleError: It is damaged, cut, or names something dangerous.

        """
        try:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "STOP":
                    return self._pop(1)[0]
                self._step(opcode.name, argument)
        except (IndexError, TypeError, KeyError, OverflowError, RuntimeError) as error:
            raise PickleError(f"damaged pickle ({type(error).__name__}: {error})") from error
        raise PickleError("the pickle has no end")

    def _step(self, name: str, argument: Any) -> None:
        """Carry out one opcode."""
        if name in PUSH:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in TUPLES:
            self.stack.append(tuple(self._pop(TUPLES[name])))
        elif name in ("PROTO", "FRAME"):
            pass
        else:
            step = getattr(self, f"_do_{name.lower()}", None)
            if step is None:
                raise PickleError(f"uses the opcode {name}, which no checkpoint needs")
            step(argument)

    # One method an opcode, in the order of pickletools' documentation.

    def _do_mark(self, _: None) -> None:
        self.stack.append(MARK)

    def _do_pop(self, _: None) -> None:
        self.stack.pop()

    def _do_pop_mark(self, _: None) -> None:
        self._pop_to_mark()

    def _do_dup(self, _: None) -> None:
        self.stack.append(self.stack[-1])

    def _do_put(self, key: Any) -> None:
        self.memo[int(key)] = self.stack[-1]

    _do_binput = _do_put
    _do_long_binput = _do_put

    def _do_memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _do_get(self, key: Any) -> None:
        self.stack.append(self.memo[int(key)])

    _do_binget = _do_get
    _do_long_binget = _do_get

    def _do_empty_list(self, _: None) -> None:
        self.stack.append([])

    def _do_list(self, _: None) -> None:
        self.stack.append(self._pop_to_mark())

    def _do_tuple(self, _: None) -> None:
        self.stack.append(tuple(self._pop_to_mark()))

    def _do_empty_dict(self, _: None) -> None:
        self.stack.append({})

    def _do_dict(self, _: None) -> None:
        values = self._pop_to_mark()
        self.stack.append({})
        self._set_items(values)

    def _do_setitem(self, _: None) -> None:
        self._set_items(self._pop(2))

    def _do_setitems(self, _: None) -> None:
        self._set_items(self._pop_to_mark())

    def _do_append(self, _: None) -> None:
        self._extend(self._pop(1))

    def _do_appends(self, _: None) -> None:
        self._extend(self._pop_to_mark())

    _do_additems = _do_appends

    def _do_empty_set(self, _: None) -> None:
        self.stack.append(Inert("builtins.set"))

    def _do_frozenset(self, _: None) -> None:
        self.stack.append(Inert("builtins.frozenset", elements=self._pop_to_mark()))

    def _do_global(self, name: str) -> None:
        module, _, attribute = name.partition(" ")  # as pickletools gives it
        self.stack.append(self._named(module, attribute))

    def _do_stack_global(self, _: None) -> None:
        module, attribute = self._pop(2)
        self.stack.append(self._named(module, attribute))

    def _do_reduce(self, _: None) -> None:
        function, arguments = self._pop(2)
        self.stack.append(self._build(function, arguments))

    def _do_newobj(self, _: None) -> None:
        self._do_reduce(_)

    def _do_newobj_ex(self, _: None) -> None:
        function, arguments, keywords = self._pop(3)
        self.stack.append(self._build(function, (*arguments, keywords)))

    def _do_inst(self, name: str) -> None:
        module, _, attribute = name.partition(" ")
        arguments = tuple(self._pop_to_mark())
        self.stack.append(self._build(self._named(module, attribute), arguments))

    def _do_obj(self, _: None) -> None:
        function, *arguments = self._pop_to_mark()
        self.stack.append(self._build(function, tuple(arguments)))

    def _do_build(self, _: None) -> None:
        (state,) = self._pop(1)
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].state = state
        # The attributes of a dictionary (OrderedDict: the versions of a state dict's modules) and of a tensor say
        # nothing about the weights.

    def _do_persid(self, key: Any) -> None:
        self.stack.append(self.load_persistent(key))

    def _do_binpersid(self, _: None) -> None:
        (key,) = self._pop(1)
        self.stack.append(self.load_persistent(key))


def _plain_key(key: Any) -> Hashable:
    """Return a dictionary's key; a tuple becomes its place in memory.

    The hash of nested tuples can take 2^n steps for n bytes of a pickle, and nothing here looks a tuple up.
    """
    if isinstance(key, str | bytes) and len(key) > MAX_TEXT:
        raise PickleError("damaged pickle: a key of a million characters")
    if key is None or isinstance(key, str | bytes | int | float | Inert):
        return cast(Hashable, key)
    return f"<{type(key).__name__} {id(key)}>"
