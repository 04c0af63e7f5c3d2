"""A pickle is read as data: nothing is imported, called, or given more memory than the file has bytes."""

import argparse
import io
import os
import pickle
import re
import struct
import sys
import tracemalloc
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mocokit.foreign.pickled import DangerousPickleError, DataReader, Inert, PickleError
from mocokit.foreign.torch_file import read_torch_file


def _no_storage(key: Any) -> Any:
    raise PickleError("no storage here")


def _read(raw: bytes) -> Any:
    return DataReader({}, _no_storage).read(io.BytesIO(raw))


VALUES: list[Any] = [
    None,
    True,
    7,
    -(2**80),
    0.5,
    "text",
    b"bytes",
    [1, [2]],
    (1, 2, 3, 4),
    {"a": {"b": (1,)}},
    [],
    (),
    {},
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_plain_values_come_back(value: Any, protocol: int) -> None:
    if value == b"bytes" and protocol < 3:  # as a call of _codecs.encode, which stays a record
        assert _read(pickle.dumps(value, protocol)).name == "_codecs.encode"
    else:
        assert _read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", range(6))
def test_shared_and_circular_lists_come_back(protocol: int) -> None:
    circle: list[Any] = [1]
    circle += [circle, circle]
    read = _read(pickle.dumps(circle, protocol))
    assert read[1] is read
    assert read[2] is read


class _Counter:
    """Counts how often anything of it is called; pickles by each of Python's ways."""

    calls = 0

    def __new__(cls, *_: Any) -> "_Counter":
        cls.calls += 1
        return super().__new__(cls)

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).calls += 1


class _Kinds(dict[str, int]):
    pass


@pytest.mark.parametrize("protocol", range(6))
def test_objects_become_records_and_their_classes_are_never_called(protocol: int) -> None:
    content = [_Counter(5), argparse.Namespace(lr=0.1), {1, 2}, np.float64(3), defaultdict(int, a=1), _Kinds(b=2)]
    raw = pickle.dumps([*content, getattr, OrderedDict(c=3), torch.float16, os.path.join], protocol)
    before = _Counter.calls
    read = _read(raw.replace(b"posixpath", b"posixpeth"))
    assert _Counter.calls == before
    assert read[7] == {"c": 3}
    records = [value for value in read if isinstance(value, Inert)]
    assert len(records) == len(read) - 1
    assert read[0].state == {"value": 5} and read[1].state == {"lr": 0.1}
    assert read[4].items == {"a": 1} and read[5].items == {"b": 2}


def test_no_module_is_imported_because_a_file_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap_module.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert _read(b"ctrap_module\nThing\n(tR.").name == "trap_module.Thing"
    assert "trap_module" not in sys.modules


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("os.system", b"cos\nsystem\n(S'touch x'\ntR."),
        ("posix.system", b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x07touch x\x85R."),
        ("subprocess.Popen", b"(S'touch x'\nisubprocess\nPopen\n."),
        ("builtins.eval", b"c__builtin__\neval\n(S'1'\ntR."),
        ("builtins.exec", b"\x80\x02cbuiltins\nexec\nX\x01\x00\x00\x001\x85R."),
        ("os.path.join", b"\x80\x04\x8c\x02os\x8c\x09path.join\x93."),
        ("importlib._bootstrap._gcd_import", b"cimportlib._bootstrap\n_gcd_import\n."),
    ],
)
def test_names_that_run_programs_are_refused(name: str, raw: bytes) -> None:
    with pytest.raises(DangerousPickleError, match=name.replace(".", r"\.")):
        _read(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"N",
        b".",
        b"0.",
        b"t.",
        b"(u.",
        b"}(I1\nu.",
        b"I1\nI2\nR.",
        b"cmodule\nname\nI1\nR.",
        b"Np0\n0(tR.",
        b"g0\n.",
        b"\x80\x02N\x85Q.",
        b"]I1\n(e.",
        b"I1\nI2\na.",
        b"\x82\x01.",
        b"\x80\x05\x97.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fx.",
        b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00x.",
        b"(((" * 50 + b".",
    ],
    ids=range(20),
)
def test_damaged_pickles_are_errors(raw: bytes) -> None:
    if raw == b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.":  # the length of a frame is only a hint, and not used
        assert _read(raw) is None
        return
    with pytest.raises(ValueError):
        _read(raw)


def test_a_memo_of_four_billion_places_takes_no_memory() -> None:
    """Python's own unpickler makes a table as long as the largest number in the file: 64 GB here."""
    tracemalloc.start()
    assert _read(b"Nr\xff\xff\xff\xff.") is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_tuples_that_double_do_not_hang_as_keys() -> None:
    """Each tuple holds the one before twice, so that the hash of the last one takes 2^80 steps."""
    doubled = b"".join(b"2\x86q" + bytes([number]) for number in range(80))
    assert len(_read(b"\x80\x02}I1\n" + doubled + b"Ns.")) == 1
    assert len(_read(b"\x80\x02ccollections\nOrderedDict\n]I1\n" + doubled + b"N\x86a\x85R.")) == 1


def test_lists_that_nest_a_hundred_thousand_deep_do_not_crash() -> None:
    assert _read(b"]" * 10**5 + b"a" * (10**5 - 1) + b".")


def _saved(content: Any, path: Path, change: Callable[[bytes], bytes]) -> Path:
    """Write a file of torch.save whose pickle is changed."""
    torch.save(content, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in members.items():
            archive.writestr(name, change(raw) if name.endswith("data.pkl") else raw)
    return path


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"K\x07K\x05\x86", b"K\x07K\x06\x86"),
        (b"K\x07K\x05\x86", b"M\xff\xffM\xff\xff\x86"),
        (b"K\x07K\x05\x86", b"K\x07J\xff\xff\xff\xff\x86"),
        (b"K\x07K\x05\x86", b"K\x07N\x86"),
        (b"K\x05K\x01\x86", b"K\x06K\x01\x86"),
        (b"FloatStorage", b"MumboStorage"),
        (b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x007"),
    ],
)
def test_tensors_that_reach_beyond_their_storage_are_errors(before: bytes, after: bytes, tmp_path: Path) -> None:
    def change(raw: bytes) -> bytes:
        assert before in raw
        return raw.replace(before, after)

    path = _saved({"w": torch.arange(35.0).view(7, 5)}, tmp_path / "x.pth", change)
    with pytest.raises((ValueError, KeyError)):
        read_torch_file(path)


def test_a_tensor_without_stride_takes_no_memory(tmp_path: Path) -> None:
    """Its shape says 4 TB, its storage 4 bytes."""

    def change(raw: bytes) -> bytes:
        return raw.replace(b"K\x01K\x01\x86", b"J\xff\xff\x0f\x00J\xff\xff\x0f\x00\x86", 1).replace(
            b"K\x01K\x01\x86", b"K\x00K\x00\x86", 1
        )

    path = _saved({"w": torch.ones(1, 1)}, tmp_path / "x.pth", change)
    assert read_torch_file(path)["w"].shape == (2**20 - 1, 2**20 - 1)


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
def test_tensors_of_each_type_come_back(dtype: torch.dtype, old_format: bool, tmp_path: Path) -> None:
    whole = torch.randint(0, 2, (6, 8)).to(dtype)
    content = {"whole": whole, "part": whole[1:4, ::2].t(), "none": whole[:0], "one": torch.nn.Buffer(whole[2, 2])}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not old_format)
    read = read_torch_file(tmp_path / "x.pth")
    for name, value in content.items():
        assert torch.equal(read[name], value)
        assert read[name].dtype == dtype


@pytest.mark.parametrize("old_format", [False, True])
def test_a_file_that_lies_about_its_numbers_order_is_refused(old_format: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=not old_format)
    raw = path.read_bytes()
    if old_format:
        path.write_bytes(re.sub(rb"(little_endianq.)\x88", lambda match: match[1] + b"\x89", raw))
    else:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, member in members.items():
                archive.writestr(name, b"big" if name.endswith("byteorder") else member)
    with pytest.raises(PickleError, match="big-endian"):
        read_torch_file(path)


def test_an_old_file_whose_storage_is_longer_than_the_file_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(struct.pack("<q", 3), struct.pack("<q", 2**40)))
    with pytest.raises(PickleError, match="cut: it ends within its weights"):
        read_torch_file(path)
