"""The run folder: its file names, the lock that keeps other processes out, and what is written at a start.

config.toml holds the settings that the user asked for, resolved.toml the numbers that were derived from them.
"""

import contextlib
import errno
import logging
import os
import platform
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import tomli_w
from filelock import FileLock, Timeout

from mocokit import distributed
from mocokit.engine.checkpoint import PARTIAL, remove_partial, write_text_atomically
from mocokit.engine.machine import describe_machine
from mocokit.settings import require

LOGGER = logging.getLogger("mocokit")

LOCK_WAIT_S = 3.0
"""Time to wait for the lock of a process that was just killed: its loader workers hold it until they notice, 1 s."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of file systems that have no locks."""

LOCK_FILES = (".lock", ".lock.holder")


class RunFolder:
    """Paths of a run folder's files.

    Args:
        path: The folder; it need not exist yet.

    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.config = self.path / "config.toml"
        self.resolved = self.path / "resolved.toml"
        self.environment = self.path / "environment.toml"
        self.log = self.path / "log.txt"
        self.checkpoints = self.path / "checkpoints"
        self.backbone = self.path / "backbone.safetensors"
        self.images = self.path / "images.npz"
        self.view_sheet = self.path / "views.png"
        self.lock_file, self.lock_holder = (self.path / name for name in LOCK_FILES)
        self.made_folders: list[Path] = []
        """Folders that were missing and that `locked` made."""
        self.is_kept = False
        """False until `keep`: an error then removes what new_folder.py made."""

    @property
    def has_run(self) -> bool:
        """True if a run began in this folder."""
        return self.config.is_file()

    def require_free(self) -> None:
        """Raise ValueError if no run can start here; the message says what to do.

        The folder has files, another process runs in it, or it can't be made or written.
        """
        self.require_unused()
        self.require_empty()
        existing = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        require(existing.is_dir(), "out", self.path, f"{existing} is a file; choose another folder")
        problem = f"{existing} can't be written (no permission, or a read-only disk); choose another folder"
        require(os.access(existing, os.W_OK | os.X_OK), "out", self.path, problem)

    def require_unused(self) -> None:
        """Raise ValueError if another process runs in the folder; the message names it."""
        if self.lock_file.is_file():
            with self.locked():
                pass

    def require_empty(self) -> None:
        """Raise ValueError if the path is a file, or a folder with more than what a start leaves that was killed."""
        if not self.path.exists():
            return
        if not self.path.is_dir() or self.has_run or any(not _is_of_start(path) for path in self.path.iterdir()):
            remedy = f"continue it with `mocokit resume {self.path}` or" if self.has_run else "please"
            raise ValueError(f"out={self.path}: exists and is not empty; {remedy} choose another folder")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Context manager that keeps other processes from running in this folder.

        The system frees the lock when this process ends, even if it is killed. On a file system without locks, a
        warning says that nothing keeps others out.

        Raises:
            ValueError: Another process runs in this folder; the message names it.

        """
        self.made_folders += [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.lock_file)
        try:
            lock.acquire(timeout=LOCK_WAIT_S)
        except Timeout as error:
            known = self.lock_holder.exists()
            holder = self.lock_holder.read_text(encoding="utf-8").strip() if known else "another process"
            raise ValueError(
                f"out={self.path}: in use by {holder}; wait for it to end, or choose another folder"
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            LOGGER.warning("%s: this file system has no locks (%s): start no second run in it", self.path, error)
        try:
            self._write_holder()
            yield
        finally:
            lock.release()

    def _write_holder(self) -> None:
        """Write who holds the lock; on a full disk, remove the lock's files from a folder that was made for it."""
        try:
            self.lock_holder.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        except OSError:
            for path in (self.lock_file, self.lock_holder) if self.made_folders else ():
                with contextlib.suppress(PermissionError):  # Windows deletes no file that is open
                    path.unlink(missing_ok=True)
            raise

    def remove_partial(self) -> None:
        """Delete files that a killed process left half-written; call only while `locked`."""
        for folder in (self.path, self.checkpoints):
            remove_partial(folder)

    def keep(self) -> None:
        """Keep a new folder whatever comes: the run begins, and a run that fails has a log."""
        self.is_kept = True

    def replace_config(self, config: str) -> None:
        """Write another config (TOML) in place of the run's."""
        write_text_atomically(self.config, config)

    def record_resume(self, step: int) -> None:
        """Add to the environment what the run goes on with after `step` steps, as an entry of `[[resumed]]`."""
        before = _before(self.environment)
        entry = tomli_w.dumps({"resumed": [{"step": step, **describe_start()}]})
        write_text_atomically(self.environment, before + "\n" + entry)

    def read_config(self) -> str:
        """Return the config that the user asked for, in TOML.

        Raises:
            ValueError: The folder does not exist, or has no config.toml.

        """
        require(self.path.exists(), "run", self.path, "no such folder; give the folder that `pretrain --out` made")
        require(self.config.is_file(), "run", self.path, "not a run folder (it has no config.toml)")
        return self.config.read_text(encoding="utf-8")

    def record_resolved(self, values: Mapping[str, object]) -> None:
        """Write the numbers that were derived from the config, the data and the machine."""
        self.resolved.write_text(tomli_w.dumps(dict(values)), encoding="utf-8")

    def start_log(self) -> None:
        """Also write the package's log messages to `log.txt`, on the main rank."""
        if distributed.is_main():
            # backslashreplace: file names can be any bytes
            handler = logging.FileHandler(self.log, encoding="utf-8", errors="backslashreplace")
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            LOGGER.addHandler(handler)
            LOGGER.setLevel(logging.INFO)

    def stop_log(self) -> None:
        """Stop writing log messages to `log.txt`, and close it."""
        for handler in [handler for handler in LOGGER.handlers if isinstance(handler, logging.FileHandler)]:
            LOGGER.removeHandler(handler)
            handler.close()


def _is_of_start(path: Path) -> bool:
    """Return True for what a start leaves in the folder if it is killed before the config is written."""
    if path.name == "checkpoints" and path.is_dir():
        return not any(path.iterdir())
    return path.name in (*LOCK_FILES, "environment.toml", "config.toml" + PARTIAL, "environment.toml" + PARTIAL)


def _before(environment: Path) -> str:
    """Return the text of environment.toml; a damaged one, which no run needs, is moved to environment.toml.damaged."""
    try:
        text = environment.read_text(encoding="utf-8") if environment.exists() else ""
        tomllib.loads(text)
    except ValueError as error:
        aside = environment.with_name(f"{environment.name}.damaged")
        environment.replace(aside)
        LOGGER.warning("%s: damaged (%s); moved to %s", environment, error, aside.name)
        return ""
    return text


def describe_start() -> dict[str, object]:
    """Return what environment.toml tells of a start: hardware, versions, ranks and the command."""
    command = [argument.encode("utf-8", "backslashreplace").decode() for argument in sys.argv]
    return {**describe_machine(), "world_size": distributed.world_size(), "command": command}
