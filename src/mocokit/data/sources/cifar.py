"""Source of CIFAR-10 and CIFAR-100 as they are distributed: the Python and the binary version, unpacked or as .tar.gz.

Python's pickles are read by plain_pickle.py, which runs nothing. The training batches are the images; the test batch
is named by its file, `cifar-10-batches-py/test_batch`, also below the .tar.gz.
"""

import gzip
import hashlib
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from mocokit.data.sources.limits import IS_POINTER, LFS_POINTER
from mocokit.data.sources.plain_pickle import PickleRefusedError, load_plain_pickle
from mocokit.data.sources.tar_members import damage_as_tar_error, has_data, safe_members
from mocokit.settings import require

SIDE_PX = 32
_IMAGE_BYTES = 3 * SIDE_PX * SIDE_PX
_BATCH = re.compile(r"(data_batch_\d|test_batch|train|test)(\.bin)?")
_NAMES_FILES = ("batches.meta", "meta", "batches.meta.txt", "fine_label_names.txt", "coarse_label_names.txt")
_MAX_NAMES_BYTES = 2**20
MAX_BYTES = 2**29
"""Unpacked size of the data set; CIFAR-100 has 186 MB."""
FOLDER = re.compile(r"cifar-10-batches-(py|bin)|cifar-100-(python|binary)")
"""Names of the folders of the four versions."""


@dataclass(frozen=True, eq=False)
class CifarSource:
    """Images of CIFAR, held in memory."""

    path: Path
    pixels: NDArray[np.uint8]
    """(N, 32, 32, 3)"""
    batches: tuple[tuple[str, int], ...]
    """(name, number of images) of each batch, in order."""
    sha256: str
    """Hash of the batches' bytes."""
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]
    label_note: str = ""
    test_part: str = ""

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, index: int) -> str:
        """Return `path/batch#row`."""
        for batch, count in self.batches:
            if index < count:
                return f"{self.path / batch}#{index}"
            index -= count
        raise IndexError(index)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return the pixels, (32, 32, 3)."""
        image: NDArray[np.uint8] = self.pixels[index]
        return image


@dataclass(frozen=True)
class _Batch:
    """Pixels and labels of one file."""

    pixels: NDArray[np.uint8]
    """(n, 3072), each row a red, a green and a blue plane."""
    labels: dict[str, tuple[int, ...]]
    """Class numbers by "fine" and, in CIFAR-100, "coarse"."""


def is_cifar_folder(folder: Path) -> bool:
    """Return True for a folder with the files of one of CIFAR's versions."""
    if not FOLDER.fullmatch(folder.name):
        return any((folder / name).is_file() for name in ("data_batch_1", "data_batch_1.bin")) and not any(
            folder.glob("*.jpg")
        )
    return any(_BATCH.fullmatch(path.name) for path in folder.iterdir())


def is_cifar_batch(path: Path) -> bool:
    """Return True for one batch of CIFAR in its folder."""
    return bool(_BATCH.fullmatch(path.name)) and is_cifar_folder(path.parent)


def is_cifar_tar(path: Path) -> bool:
    """Return True if the first file of a .tar or .tar.gz is one of CIFAR's; reads no further."""
    try:
        with _open_tar(path, max_bytes=2**20) as archive:
            first = next((member.name for member in safe_members(archive) if member.isreg()), "")
    except (tarfile.TarError, OSError):
        return False
    return _is_member(first)


@contextmanager
def _open_tar(path: Path, *, max_bytes: int) -> Iterator[tarfile.TarFile]:
    """Context manager that reads a .tar or .tar.gz as a stream, of at most `max_bytes` when unpacked."""
    with path.open("rb") as start:
        packed = start.read(2) == b"\x1f\x8b"
    with (
        gzip.open(path) if packed else path.open("rb") as file,
        damage_as_tar_error(),
        tarfile.open(fileobj=_Bounded(cast(IO[bytes], file), max_bytes), mode="r|") as archive,  # type: ignore[call-overload]
    ):
        yield archive


class _Bounded:
    """A file that ends in an error after a number of bytes: a small .gz can unpack to terabytes."""

    def __init__(self, file: IO[bytes], max_bytes: int) -> None:
        self._file = file
        self._unread = max_bytes

    def read(self, count: int) -> bytes:
        """Return the next bytes."""
        raw = self._file.read(count)
        self._unread -= len(raw)
        if self._unread < 0:
            raise tarfile.ReadError("it unpacks to more bytes than CIFAR has")
        return raw


def _is_member(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return len(parts) >= 2 and FOLDER.fullmatch(parts[-2]) is not None


def open_cifar(path: Path, *, batch: str = "", labels: str = "") -> CifarSource:
    """Return a source of CIFAR's training images, or of one batch.

    Args:
        path: The folder, or the .tar.gz.
        batch: Name of the only file to read, such as test_batch; empty: all training batches.
        labels: "fine" or "coarse", of CIFAR-100; empty: fine.

    Raises:
        ValueError: A file is missing, damaged or no plain data.

    """
    try:
        files = dict(_read_folder(path, batch) if path.is_dir() else _read_tar(path, batch))
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"data={path}: can't be read as CIFAR ({error})") from error
    names = sorted(name for name in files if _BATCH.fullmatch(name) and (batch or not name.startswith("test")))
    if not names:
        wanted = batch or "training batches (data_batch_1 ..., or train)"
        raise ValueError(f"data={path}: lacks CIFAR's {wanted}")
    batches = [_read_batch(path, name, files[name]) for name in names]
    kind = labels.removesuffix("_labels") or "fine"
    numbers = [one.labels.get(kind) for one in batches]
    require(None not in numbers, "label_column", labels, f"{path} has the labels {', '.join(batches[0].labels)}")
    digest = hashlib.sha256(b"".join(hashlib.sha256(files[name]).digest() for name in names)).hexdigest()
    found = tuple(number for part in numbers if part is not None for number in part)
    class_names = _class_names(path, files, kind, count=max(found) + 1)
    test = next((name for name in ("test_batch", "test_batch.bin", "test", "test.bin") if name in files), "")
    return CifarSource(
        path=path,
        pixels=np.concatenate([_upright(one.pixels) for one in batches]),
        batches=tuple((name, len(one.pixels)) for name, one in zip(names, batches, strict=True)),
        sha256=digest,
        labels=found,
        class_names=class_names,
        label_note="; ".join(_notes(kind if "coarse" in batches[0].labels else "", "" if batch else test)),
        test_part=f"{path}/{test}" if test and not batch else "",
    )


def _notes(kind: str, test: str) -> Iterator[str]:
    """Yield what to tell beside the classes: which of CIFAR-100's labels, and which images are not among these."""
    if kind:
        yield f"{kind} labels"
    if test:
        yield f"its {test} is left out here, and evaluations test on it; give the file itself to use its images"


def _upright(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    planes = rows.reshape(-1, 3, SIDE_PX, SIDE_PX)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))  # (n, 32, 32, 3)


def _read_folder(path: Path, batch: str) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of the files that are needed; of a test batch that is not, no bytes."""
    for file in sorted(path.iterdir()):
        if _is_wanted(file.name, batch) and file.is_file():
            require(file.stat().st_size <= MAX_BYTES, "data", file, f"more than {MAX_BYTES:,} bytes")
            yield file.name, b"" if _is_unread(file.name, batch) else file.read_bytes()


def _read_tar(path: Path, batch: str) -> Iterator[tuple[str, bytes]]:
    """Yield what `_read_folder` does, of the only folder in a .tar.gz."""
    with _open_tar(path, max_bytes=MAX_BYTES) as archive:
        for member in safe_members(archive):
            name = PurePosixPath(member.name).name
            if has_data(member) and _is_wanted(name, batch):
                content = None if _is_unread(name, batch) else archive.extractfile(member)
                yield name, content.read(member.size) if content else b""


def _is_wanted(name: str, batch: str) -> bool:
    return name in _NAMES_FILES or (name == batch if batch else _BATCH.fullmatch(name) is not None)


def _is_unread(name: str, batch: str) -> bool:
    """Return True for a test batch when the training batches are asked for: only its name matters."""
    return not batch and name.startswith("test")


def _read_batch(path: Path, name: str, raw: bytes) -> _Batch:
    if raw.startswith(LFS_POINTER):
        raise ValueError(f"data={path / name}: {IS_POINTER}")
    read: Callable[[str, bytes], _Batch] = _read_binary if name.endswith(".bin") else _read_pickle
    try:
        return read(name, raw)
    except PickleRefusedError as error:
        raise ValueError(f"data={path / name}: refused, since it is no plain CIFAR pickle: {error}") from error
    except ValueError as error:
        raise ValueError(f"data={path / name}: not a batch of CIFAR ({error})") from error


def _read_binary(name: str, raw: bytes) -> _Batch:
    """Return a batch of the binary version: each image is preceded by its class, in CIFAR-100 by coarse and fine."""
    kinds = ("fine",) if "batch" in name else ("coarse", "fine")
    record = len(kinds) + _IMAGE_BYTES
    if not raw or len(raw) % record:
        raise ValueError(f"{len(raw)} bytes, not a multiple of {record}")
    rows = np.frombuffer(raw, np.uint8).reshape(-1, record)
    labels = {kind: tuple(rows[:, number].tolist()) for number, kind in enumerate(kinds)}
    return _Batch(rows[:, len(kinds) :], labels)


def _read_pickle(_name: str, raw: bytes) -> _Batch:
    """Return a batch of the Python version."""
    found = load_plain_pickle(raw)
    content = _by_text(found)
    pixels = content.get("data")
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != _IMAGE_BYTES or not len(pixels):
        raise ValueError(f"its data is no array (n, {_IMAGE_BYTES})")
    fine = content.get("labels", content.get("fine_labels"))
    labels = {"fine": _numbers(fine, len(pixels))}
    if "coarse_labels" in content:
        labels["coarse"] = _numbers(content["coarse_labels"], len(pixels))
    return _Batch(pixels, labels)


def _by_text(found: object) -> Mapping[str, object]:
    """Return the dict with its keys as text; Python 3 may have written them as bytes."""
    if not isinstance(found, dict):
        raise ValueError("it holds no dict")
    return {key.decode("latin-1") if isinstance(key, bytes) else str(key): value for key, value in found.items()}


def _numbers(found: object, count: int) -> tuple[int, ...]:
    if not isinstance(found, list) or len(found) != count:
        raise ValueError(f"its labels are not a list of {count}")
    if not all(type(number) is int and 0 <= number < 256 for number in found):
        raise ValueError("its labels are not numbers from 0 to 255")
    return tuple(found)


def _class_names(path: Path, files: Mapping[str, bytes], kind: str, *, count: int) -> tuple[str, ...]:
    """Return the names that the data set gives its classes; numbers if the file of names is missing."""
    names: list[str] = []
    for file in ("batches.meta", "meta"):
        if file in files and not files[file].startswith(LFS_POINTER):
            try:
                content = _by_text(load_plain_pickle(files[file][:_MAX_NAMES_BYTES]))
            except ValueError as error:
                raise ValueError(f"data={path / file}: refused, since it is no plain CIFAR pickle: {error}") from error
            listed = content.get("label_names", content.get(f"{kind}_label_names"))
            if isinstance(listed, list) and all(isinstance(name, str | bytes) for name in listed):
                names = [name.decode("latin-1") if isinstance(name, bytes) else name for name in listed]
    for file in ("batches.meta.txt", f"{kind}_label_names.txt"):
        if file in files:
            names = files[file][:_MAX_NAMES_BYTES].decode("latin-1").split()
    if len(names) < count or len(set(names)) < len(names):
        return tuple(f"{number:03d}" for number in range(count))
    return tuple(names)
