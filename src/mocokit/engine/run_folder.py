"""The run folder: its file names, the lock that keeps other processes out, and what is written at the start.

config.toml holds the settings that the user asked for, resolved.toml the numbers that were derived from them.
"""

import contextlib
import errno
import logging
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import tomli_w
from filelock import FileLock, Timeout

from mocokit import distributed
from mocokit.engine.checkpoint import remove_partial, write_text_atomically
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

    def require_free(self) -> None:
        """Raise ValueError if the folder has files or another process runs in it; the message says what to do."""
        if self.lock_file.is_file():
            with self.locked():
                pass
        self._require_empty()

    def _require_empty(self) -> None:
        """Raise ValueError if the path is a file, or a folder with anything but the lock files."""
        if not self.path.exists():
            return
        if not self.path.is_dir() or any(path.name not in LOCK_FILES for path in self.path.iterdir()):
            remedy = f"continue it with `mocokit resume {self.path}` or" if self.config.exists() else "please"
            raise ValueError(f"out={self.path}: exists and is not empty; {remedy} choose another folder")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Context manager that keeps other processes from running in this folder.

        The system frees the lock when this process ends, even if it is killed. On a file system without locks, a
        warning says that nothing keeps others out.

        Raises:
            ValueError: Another process runs in this folder; the message names it.

        """
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
            self.lock_holder.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
            yield
        finally:
            lock.release()

    def remove_partial(self) -> None:
        """Delete files that a killed process left half-written; call only while `locked`."""
        for folder in (self.path, self.checkpoints):
            remove_partial(folder)

    def create(self, config: str) -> None:
        """Make the folder; write into it the config (TOML) and the environment: hardware, versions, ranks, command."""
        # Checked a second time: another process may have filled the folder after require_free, before the lock.
        self._require_empty()
        self.checkpoints.mkdir(parents=True)
        self.config.write_text(config, encoding="utf-8")
        self.environment.write_text(tomli_w.dumps(_describe_start()), encoding="utf-8")

    def record_resume(self, step: int) -> None:
        """Add to the environment what the run goes on with after `step` steps, as an entry of `[[resumed]]`."""
        before = self.environment.read_text(encoding="utf-8") if self.environment.exists() else ""
        entry = tomli_w.dumps({"resumed": [{"step": step, **_describe_start()}]})
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


def _describe_start() -> dict[str, object]:
    command = [argument.encode("utf-8", "backslashreplace").decode() for argument in sys.argv]
    return {**describe_machine(), "world_size": distributed.world_size(), "command": command}
