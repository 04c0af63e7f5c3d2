"""Read files of torch.save, of today (zip archives) and of before 2020, as data."""

import io
import math
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mocokit.engine.checkpoint import require_plain_archive
from mocokit.foreign.pickled import Builders, DataReader, Inert, PickleError

MAGIC = 0x1950A86A20F9469CFC6C
"""First pickle in a file of torch before 1.6."""

BIG_ENDIAN = "was written on a machine with big-endian numbers; write it again on an ordinary one"

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
"""Storage class in a file -> type of its elements."""


def read_torch_file(path: Path) -> Any:
    """Return the object in a file of torch.save: tensors on the CPU, plain values, and records of everything else.

    Raises:
        PickleError: The file is damaged, no file of torch.save, or names something that runs code.
        ValueError, OSError, zipfile.BadZipFile: It is damaged.

    """
    with path.open("rb") as file:
        return _read_archive(path) if zipfile.is_zipfile(file) else _read_old(path)


def _read_archive(path: Path) -> Any:
    """Read a zip archive: `NAME/data.pkl`, and a member `NAME/data/KEY` for each storage."""
    with zipfile.ZipFile(path) as archive:
        if any("/code/" in name for name in archive.namelist()):
            raise PickleError("a TorchScript program, which is never run; save the state dict of its module")
    require_plain_archive(path)
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("data.pkl") and name.count("/") <= 1]
        if not pickles:
            raise PickleError("an archive without data.pkl; torch.save did not write it")
        root = pickles[0].removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise PickleError(BIG_ENDIAN)

        def read_storage(key: str) -> bytearray:
            return bytearray(archive.read(f"{root}data/{key}"))

        storages = _Storages(read_storage)
        return storages.reader().read(io.BytesIO(archive.read(pickles[0])))


def _read_old(path: Path) -> Any:
    """Read four pickles (a number, a version, the machine, the object), the storages' keys, then the storages."""
    with path.open("rb") as file:
        if DataReader({}, _no_storage).read(file) != MAGIC:
            raise PickleError("torch.save did not write this pickle, and a plain pickle holds no torch weights")
        DataReader({}, _no_storage).read(file)  # version of the format
        machine = DataReader({}, _no_storage).read(file)
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise PickleError(BIG_ENDIAN)
        start = file.tell()
        first = _Storages(lambda key: bytearray())  # only to learn each storage's type; its content comes afterwards
        first.reader().read(file)
        contents = _old_storages(file, first.types)
        file.seek(start)
        return _Storages(lambda key: contents[key]).reader().read(file)


def _old_storages(file: BinaryIO, types: dict[str, torch.dtype]) -> dict[str, bytearray]:
    """Return key -> bytes of each storage; the file stands before the list of keys."""
    keys = DataReader({}, _no_storage).read(file)
    if not isinstance(keys, list):
        raise PickleError("damaged: no list of storages")
    contents = {}
    for key in map(str, keys):
        if key not in types:
            raise PickleError("damaged: a storage that no tensor uses")
        (count,) = struct.unpack("<q", file.read(8))
        size = count * types[key].itemsize
        here = file.tell()
        if size < 0 or here + size > file.seek(0, io.SEEK_END):
            raise PickleError("cut: it ends within its weights")
        file.seek(here)
        contents[key] = bytearray(file.read(size))
    return contents


def _no_storage(key: Any) -> Any:
    raise PickleError("damaged: a storage where there is none")


class _Storage:
    """Flat tensor of all elements of a storage."""

    def __init__(self, content: bytearray, dtype: torch.dtype) -> None:
        whole = len(content) // dtype.itemsize
        self.flat = torch.frombuffer(content, dtype=dtype, count=whole) if whole else torch.empty(0, dtype=dtype)
        self.dtype = dtype


class _Storages:
    """Storages of one file, each read once; and the functions that make tensors of them.

    Args:
        read_storage: Function from a storage's key to its bytes.

    """

    def __init__(self, read_storage: Callable[[str], bytearray]) -> None:
        self.read_storage = read_storage
        self.types: dict[str, torch.dtype] = {}
        self.contents: dict[str, bytearray] = {}

    def reader(self) -> DataReader:
        """Return the interpreter that makes these tensors."""
        builders: Builders = {
            "torch._utils._rebuild_tensor": self.tensor,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
            "torch._tensor._rebuild_from_type_v2": self.rebuilt,
            "torch.nn.parameter.Parameter": lambda data, *_: data,
        }
        self.builders = builders
        return DataReader(builders, self.load)

    def load(self, key: Any) -> _Storage:
        """Return the storage of a persistent id, ("storage", class, key, device, number of elements, ...)."""
        match key:
            case ("storage", Inert(name=name), str() | int() as number, _, int(), *view) if view in ([], [None]):
                dtype = STORAGES.get(name.rpartition(".")[2])
            case _:  # a view of another storage, of torch before 0.4, comes here too
                raise PickleError("damaged: a persistent id that is no storage")
        if dtype is None:
            raise PickleError(f"holds a {name}, which is no type of weights that is known here")
        number = str(number)
        self.types[number] = dtype
        if number not in self.contents:
            self.contents[number] = self.read_storage(number)
        return _Storage(self.contents[number], dtype)

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor | Inert:
        """Return a view of a storage; raise PickleError if it would reach beyond the storage."""
        if not isinstance(storage, _Storage):
            return Inert("torch.Tensor")
        shapes = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)
        if not shapes or not all(type(number) is int and 0 <= number < 2**40 for number in (offset, *size, *stride)):
            raise PickleError("damaged: a tensor whose shape is no shape")
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        if math.prod(size) == 0:
            return torch.empty(size, dtype=storage.dtype) if max(size) < 2**20 else Inert("torch.Tensor")
        if not len(storage.flat):  # the first pass over an old file, before its weights are read
            return Inert("torch.Tensor")
        if last >= len(storage.flat):
            raise PickleError("damaged: a tensor that reaches beyond its weights")
        return storage.flat.as_strided(size, stride, offset)

    def rebuilt(self, function: Any, _type: Any, arguments: Any, *_: Any) -> Any:
        """Return a tensor of a subclass, or with attributes, as a plain tensor."""
        if isinstance(function, Inert) and function.name in self.builders and isinstance(arguments, tuple):
            return self.builders[function.name](*arguments)
        return Inert("torch.Tensor")
