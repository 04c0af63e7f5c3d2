"""Checkpoints: the whole state of a run, written so that a crash never damages the checkpoint before.

A file is complete or absent: it is written under a temporary name, flushed to the disk, then renamed. It ends in the
SHA-256 of all bytes before it, so that a flipped bit is found. The digest is the comment of the zip archive that torch
writes, so `torch.load` and `unzip` still read the file. Loading runs no code from the file.
"""

import copy
import errno
import hashlib
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mocokit.data.sources.limits import is_pointer_file

CHECKPOINT_NAME = re.compile(r"step_(\d{9})\.pt")

PARTIAL = ".partial"
"""Suffix of a file that is being written, or whose writer was killed."""

COMMENT = b"sha256:"
"""Start of the archive's comment; the digest follows, 64 characters of hex."""

COMMENT_BYTES = len(COMMENT) + 64

UNREADABLE = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    NotImplementedError,
    struct.error,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
)
"""Errors that `load_tensors` raises for a file that is cut, damaged, not a checkpoint, or would run code."""


LFS_ADVICE = "a git-lfs pointer, not the weights themselves; fetch them with: git lfs install && git lfs pull"


class CheckpointError(ValueError):
    """Error of a checkpoint that can't be read; the message names the file and the reason."""


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint after `step` optimizer steps."""
    return folder / f"step_{step:09d}.pt"


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the paths of the complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step_*.pt") if CHECKPOINT_NAME.fullmatch(path.name))


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)`, flush that file to the disk, then rename it to `path`.

    Raises:
        OSError: The disk is full or gone. An older file at `path` is untouched, and the temporary file is removed.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + PARTIAL)
    try:
        with temporary.open("wb") as file:
            mode = os.fstat(file.fileno()).st_mode  # what the umask allows; some writers make their own, private file
        write(temporary)
        temporary.chmod(mode & 0o777)
        flush_to_disk(temporary)
        temporary.replace(path)
        flush_folder(path.parent)  # else a crash of the machine could undo the renaming
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file like `write_atomically`."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def flush_to_disk(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb+") as file:  # Windows flushes only what may be written
        os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """Wait until a folder's entries are on the disk; does nothing where folders can't be flushed.

    Those are network file systems without that call, and Windows, which does not open folders.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def save_checkpoint(folder: Path, state: dict[str, Any], *, step: int, keep_last: int) -> Path:
    """Write the state after `step` steps and delete all but the newest `keep_last` checkpoints.

    Raises:
        OSError: It could not be written; older checkpoints are untouched. The message says what to do.

    """
    path = checkpoint_path(folder, step)
    try:
        write_atomically(path, lambda temporary: _torch_save(state, temporary))
    except OSError as error:
        older = list_checkpoints(folder)
        kept = f"{older[-1].name} is intact" if older else "there is no older one"
        raise OSError(
            error.errno,
            f"checkpoint not saved ({error.strerror or error}); {kept}; make room, then resume",
            str(path),
        ) from error
    for old in list_checkpoints(folder)[:-keep_last]:
        old.unlink(missing_ok=True)
    return path


def remove_partial(folder: Path) -> None:
    """Delete the partial files of killed writers in `folder`; call it only while no process writes there."""
    for path in folder.glob("*" + PARTIAL):
        path.unlink(missing_ok=True)


def copied_to_cpu(state: Any) -> Any:
    """Return `state`, nested as it is, with copies of its tensors in CPU memory, which training does not change."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        copied = copy.copy(state)  # keeps the versions that torch attaches to a state dict
        copied.update((name, copied_to_cpu(value)) for name, value in state.items())
        return copied
    if isinstance(state, list | tuple):
        return type(state)(copied_to_cpu(value) for value in state)
    return state


def _torch_save(state: dict[str, Any], path: Path) -> None:
    """Write torch.save's archive, then its comment with the digest.

    A zip archive ends in 2 bytes with the length of its comment, then the comment. Both are written here: 2 bytes in
    place of torch's 0, then "sha256:" and the digest of all bytes up to here.
    """
    try:
        with path.open("w+b") as file:
            torch.save(state, file)
            file.seek(-2, os.SEEK_END)
            file.write(COMMENT_BYTES.to_bytes(2, "little") + COMMENT)
            file.write(_digest(file, num_bytes=file.tell()))
    except RuntimeError as error:  # so torch's zip writer reports a full disk, when it closes the file
        cause = error.__context__
        raise cause if isinstance(cause, OSError) else OSError(None, str(error).splitlines()[0]) from error


def _digest(file: BinaryIO, *, num_bytes: int) -> bytes:
    """Return the SHA-256, in hex, of the first `num_bytes` of a file; leave the file's position after them."""
    digest = hashlib.sha256()
    file.seek(0)
    while num_bytes and (chunk := file.read(min(num_bytes, 1 << 20))):
        digest.update(chunk)
        num_bytes -= len(chunk)
    return digest.hexdigest().encode()


def _verify(path: Path) -> None:
    """Raise ValueError if the file has changed since it was written; a file from before checksums existed passes."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(-min(size, COMMENT_BYTES), os.SEEK_END)
        end = file.read()
        if (
            end[-22:-18] == b"PK\5\6" and end[-2:] == b"\0\0"
        ):  # an archive without a comment: its last record has 22 bytes
            return
        if not end.startswith(COMMENT):
            raise ValueError("cut off or damaged at its end")
        if end.removeprefix(COMMENT) != _digest(file, num_bytes=size - 64):
            raise ValueError("damaged: its SHA-256 is not the one it was written with")


def require_plain_archive(path: Path) -> None:
    """Raise ValueError if a zip archive could unpack to more memory than the file has bytes.

    A hostile archive of a few bytes could fill the memory, if its entries are compressed, or many entries share the
    same bytes. torch.save does neither: it stores entries uncompressed, one after the other.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("its parts are compressed, which torch.save never does")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise ValueError("its parts are larger than the file")


def load_tensors(path: Path) -> object:
    """Return the object in a file of torch.save, on the CPU, without running code from it.

    Raises:
        UNREADABLE: Any of these errors.

    """
    if zipfile.is_zipfile(path):
        require_plain_archive(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state in one checkpoint file, on the CPU.

    Raises:
        CheckpointError: The file is cut, damaged, not a checkpoint, or a pickle that would run code.

    """
    try:
        if is_pointer_file(path):
            raise ValueError(LFS_ADVICE)
        _verify(path)
        state = load_tensors(path)
    except UNREADABLE as error:
        reason = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason})") from error
    if not isinstance(state, dict) or "step" not in state:
        raise CheckpointError(f"{path}: not a mocokit checkpoint (no step in it)")
    return state


def read_newest_entry(folder: Path, name: str) -> object:
    """Return one entry of the newest checkpoint that can be opened, without reading its tensors; None if none has it.

    The file's digest is not checked: `load_newest` does that.
    """
    for path in reversed(list_checkpoints(folder)):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except UNREADABLE:
            continue
        return state.get(name) if isinstance(state, dict) else None
    return None


def load_newest(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the newest state that can be read, and a line about each newer file that can't.

    Raises:
        CheckpointError: No file can be read.

    """
    problems: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return load_checkpoint(path), problems
        except CheckpointError as error:
            problems.append(str(error))
    detail = "; ".join(problems) or "the folder holds none"
    raise CheckpointError(f"{folder}: no checkpoint to resume from ({detail})")
