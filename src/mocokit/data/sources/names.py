"""Names of a data set's images, kept as one block of bytes.

ImageNet's 1.28 million names are 110 MB as Python strings. Reading a string changes its reference count, so each forked
worker would get a copy of every page that it reads a name from. Of one block of bytes, nothing is written.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

_BLOCK = 4096
"""Names that iteration unpacks at a time."""


class Names(Sequence[str]):
    """Immutable sequence of strings; equal to a tuple of the same strings.

    Args:
        names: The strings. Bytes of paths that are not UTF-8 are kept (surrogateescape).

    """

    __slots__ = ("_starts", "_text")

    def __init__(self, names: Iterable[str] = ()) -> None:
        text = bytearray()
        starts = [0]
        for name in names:
            text += name.encode("utf-8", "surrogateescape")
            text += b"\0"
            starts.append(len(text))
        self._text = bytes(text)
        """The names, each with a NUL behind it: the one character that no path holds."""
        self._starts = np.array(starts, np.int64)
        """(N + 1,) position of each name in the text, and the end of the text."""

    @classmethod
    def split(cls, joined: NDArray[np.uint8]) -> "Names":
        """Return the names whose bytes `join_names` gave; none for no bytes."""
        names = cls()
        if joined.size:
            names._text = joined.tobytes() + b"\0"
            ends = np.flatnonzero(np.frombuffer(names._text, np.uint8) == 0)
            names._starts = np.concatenate([[0], ends + 1])
        return names

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            first, stop, step = index.indices(len(self))
            if step == 1:
                return tuple(self._decoded(first, stop))
            return tuple(self[number] for number in range(first, stop, step))
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"name {index} of {count}")
        number = index % count
        return _decode(self._text[self._starts[number] : self._starts[number + 1] - 1])

    def __iter__(self) -> Iterator[str]:
        return self._decoded(0, len(self))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return self._text == other._text and bool(np.array_equal(self._starts, other._starts))
        return tuple(self) == other if isinstance(other, tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))  # equal objects have equal hashes

    def __repr__(self) -> str:
        return f"Names({len(self):,}: {', '.join(self[:3])}{', ...' if len(self) > 3 else ''})"

    def _decoded(self, first: int, stop: int) -> Iterator[str]:
        """Yield the names from number `first` to `stop` - 1; decoding many at once takes a quarter of the time."""
        for block in range(first, stop, _BLOCK):
            end = min(block + _BLOCK, stop)
            names = _decode(self._text[self._starts[block] : self._starts[end] - 1]).split("\0")
            if len(names) == end - block:
                yield from names
            else:  # one of them holds a NUL
                yield from map(_decode, self.encoded(block, end))

    def encoded(self, first: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of each name from number `first` to `stop` - 1; None: to the last."""
        stop = len(self) if stop is None else stop
        for block in range(first, stop, _BLOCK):
            starts = self._starts[block : min(block + _BLOCK, stop) + 1].tolist()
            for start, end in itertools.pairwise(starts):
                yield self._text[start : end - 1]

    def joined(self) -> bytes:
        """Return the bytes of all names, with NUL between them."""
        return self._text[:-1]


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def join_names(names: Iterable[str]) -> bytes:
    """Return the bytes of all names, with NUL between them."""
    return names.joined() if isinstance(names, Names) else "\0".join(names).encode("utf-8", "surrogateescape")
