"""The reader of pickles gives plain data, and runs nothing whatever a pickle asks for."""

import contextlib
import os
import pickle
import struct
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mocokit.data.sources.plain_pickle import PickleRefusedError, load_plain_pickle

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.binary(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@settings(max_examples=30)
@given(PLAIN, st.sampled_from([2, 3, 4, 5]))
def test_plain_data_comes_back_as_python_reads_it(value: object, protocol: int) -> None:
    assert load_plain_pickle(pickle.dumps(value, protocol=protocol)) == value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_of_uint8_comes_back(protocol: int, order: Any) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(4, 6).copy(order=order)
    loaded = load_plain_pickle(pickle.dumps({"data": array, "again": array}, protocol=protocol))
    assert isinstance(loaded, dict)
    assert all(np.array_equal(loaded[key], array) for key in ("data", "again"))


def test_the_opcodes_of_python_2_are_read() -> None:
    """CIFAR's own files were written by Python 2: byte strings, and arrays with their bytes as such a string."""
    content = bytes(range(6))
    raw = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b"
        b"\x87Rq\x05(K\x01K\x02K\x03\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", 6) + content + b"tbU\x06labelsq\x08]q\x09(K\x06K\x09eu."
    )
    loaded = load_plain_pickle(raw)
    assert isinstance(loaded, dict)
    assert np.array_equal(loaded["data"], np.arange(6, dtype=np.uint8).reshape(2, 3))
    assert loaded["labels"] == [6, 9]


class _Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class _Plain:
    """An ordinary object of a class."""


def _hostile(marker: Path) -> list[bytes]:
    command = f"touch {marker}"
    objects: list[Any] = [
        _Calls(os.system, command),
        _Calls(exec, f"open({str(marker)!r}, 'w')"),
        _Calls(eval, "1"),
        _Calls(getattr, "text", "upper"),
        _Calls(np.fromfile, "/etc/passwd"),
        _Calls(np.ndarray, (2**40,)),
        _Plain(),
        OrderedDict(a=1),
        {1, 2},
        np.zeros(3, np.float64),
        np.array([print], dtype=object),
        np.dtype("O"),
        np.zeros(2, np.dtype([("a", "u1")])),
        os.path.join,
    ]
    raws = [pickle.dumps({"data": value}, protocol=protocol) for value in objects for protocol in (0, 2, 3, 4, 5)]
    names = (b"os\nsystem", b"posix\nsystem", b"builtins\nexec", b"numpy\nload", b"numpy\n__builtins__")
    raws += [b"\x80\x02c" + name + b"\n(U" + bytes([len(command)]) + command.encode() + b"tR." for name in names]
    raws += [b"\x80\x02(U" + bytes([len(command)]) + command.encode() + b"ios\nsystem\n."]  # INST
    raws += [b"\x80\x02(cos\nsystem\nU" + bytes([len(command)]) + command.encode() + b"o."]  # OBJ
    raws += [b"\x80\x02cnumpy\nndarray\n)\x81.", b"\x80\x02P1\n.", b"\x80\x02U\x01aQ.", b"\x80\x02\x82\x01."]
    return raws


def test_hostile_pickles_are_refused_and_nothing_is_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for raw in _hostile(marker):
        with pytest.raises(PickleRefusedError):
            load_plain_pickle(raw)
    assert not marker.exists()


def _nested_tuples(depth: int) -> bytes:
    """A tuple that holds the one before twice, and so on: 2**depth items when it is printed, compared or hashed."""
    return b")q\x00" + b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(depth))


@pytest.mark.parametrize(
    "use",
    [
        b"0cnumpy\ndtype\nh\x50\x85R.",  # POP is no operation of plain data either
        b"}h\x50K\x01s.",  # as a key
        b"cnumpy\ndtype\nh\x50\x85R.",
        b"c_codecs\nencode\nU\x01ah\x50\x86R.",
        b"h\x50h\x50\x93.",
    ],
)
def test_a_tuple_of_tuples_takes_no_time(use: bytes) -> None:
    with pytest.raises(PickleRefusedError):
        load_plain_pickle(b"\x80\x04" + _nested_tuples(80) + use)


def test_copying_the_same_bytes_again_and_again_is_refused() -> None:
    text = b"X" + struct.pack("<I", 10**6) + b"a" * 10**6 + b"q\x00"
    call = b"c_codecs\nencode\nh\x00U\x06latin1\x86R"
    tracemalloc.start()
    with pytest.raises(PickleRefusedError, match="many times over"):
        load_plain_pickle(b"\x80\x02" + text + call * 1000 + b".")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 10**6


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x02].",
        b"\x80\x02K",
        b"\x80\x02e.",
        b"\x80\x02h\x07.",
        b"\x80\x02K\x01K\x02s.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"a.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x02R.",
        b"garbage",
    ],
)
def test_damaged_pickles_are_refused(raw: bytes) -> None:
    if raw == b"\x80\x02].":
        assert load_plain_pickle(raw) == []
        return
    with pytest.raises(PickleRefusedError):
        load_plain_pickle(raw)


@given(st.data())
def test_a_changed_pickle_is_read_or_refused(data: st.DataObject) -> None:
    raw = bytearray(pickle.dumps({"data": np.zeros((2, 8), np.uint8), "labels": [0, 1]}, protocol=2))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(PickleRefusedError):
        load_plain_pickle(bytes(raw))
