"""The run folder: its file names, the lock that keeps other processes out, and what is written at the start.

config.toml holds the settings that the user asked for, resolved.toml the numbers that were derived from them.
"""

import contextlib
import fcntl
import logging
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import tomli_w

from mocokit import distributed
from mocokit.engine.checkpoint import remove_partial
from mocokit.engine.machine import describe_machine
from mocokit.settings import require

LOGGER = logging.getLogger("mocokit")


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
        self.view_sheet = self.path / "views.png"
        self.lock_file = self.path / ".lock"

    def require_free(self) -> None:
        """Raise ValueError if the folder has files or another process runs in it; the message says what to do."""
        if self.lock_file.is_file():
            with self.locked():
                pass
        self._require_empty()

    def _require_empty(self) -> None:
        """Raise ValueError if the path is a file, or a folder with anything but the lock file."""
        if self.path.exists() and (not self.path.is_dir() or any(path.name != ".lock" for path in self.path.iterdir())):
            remedy = f"continue it with `mocokit resume {self.path}` or" if self.config.exists() else "please"
            raise ValueError(f"out={self.path}: exists and is not empty; {remedy} choose another folder")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Context manager that keeps other processes from running in this folder.

        The lock is a record lock (lockf): the system frees it when this process ends, even if it is killed. Loader
        workers would inherit a lock of `flock`, and hold it for a moment after this process was killed.

        Raises:
            ValueError: Another process runs in this folder; the message names it.

        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self.lock_file.open("a+", encoding="utf-8") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                file.seek(0)
                raise ValueError(
                    f"out={self.path}: in use by {file.read().strip() or 'another process'}; wait for it to end, "
                    "or choose another folder"
                ) from error
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
            yield

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
        environment = {**describe_machine(), "world_size": distributed.world_size(), "command": sys.argv}
        self.environment.write_text(tomli_w.dumps(environment), encoding="utf-8")

    def read_config(self) -> str:
        """Return the config that the user asked for, in TOML.

        Raises:
            ValueError: The folder has no config.toml.

        """
        require(self.config.is_file(), "run", self.path, "not a run folder (it has no config.toml)")
        return self.config.read_text(encoding="utf-8")

    def record_resolved(self, values: Mapping[str, object]) -> None:
        """Write the numbers that were derived from the config, the data and the machine."""
        self.resolved.write_text(tomli_w.dumps(dict(values)), encoding="utf-8")

    def start_log(self) -> None:
        """Also write the package's log messages to `log.txt`, on the main rank."""
        if distributed.is_main():
            handler = logging.FileHandler(self.log, encoding="utf-8")
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            LOGGER.addHandler(handler)
            LOGGER.setLevel(logging.INFO)

    def stop_log(self) -> None:
        """Stop writing log messages to `log.txt`, and close it."""
        for handler in [handler for handler in LOGGER.handlers if isinstance(handler, logging.FileHandler)]:
            LOGGER.removeHandler(handler)
            handler.close()
