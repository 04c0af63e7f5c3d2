"""The files of a run: config as asked, what was worked out from it, environment, log, checkpoints, backbone."""

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

LOGGER = logging.getLogger("mocokit")


class RunFolder:
    """Paths within a run folder.

    Args:
        path: The folder.

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
        """Raise ValueError when something is there already; the message names `mocokit resume`, or who is at it."""
        if self.lock_file.is_file():
            with self.locked():
                pass
        self._require_empty()

    def _require_empty(self) -> None:
        if self.path.exists() and (not self.path.is_dir() or any(path.name != ".lock" for path in self.path.iterdir())):
            remedy = f"continue it with `mocokit resume {self.path}` or" if self.config.exists() else "please"
            raise ValueError(f"out={self.path}: exists and is not empty; {remedy} choose another folder")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from running in this folder; also ends, whatever happens, with this process.

        A record lock, which belongs to this process alone: loader workers would inherit one of `flock`, and hold it
        on for a moment after this process was killed.

        Raises:
            ValueError: Another process runs here; the message says which.

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
        """Delete files that a killed process left half-written; call while `locked`."""
        for folder in (self.path, self.checkpoints):
            remove_partial(folder)

    def create(self, config: str) -> None:
        """Make the folder and write the config, which is TOML, and the environment into it."""
        self._require_empty()  # again: somebody may have filled it before it was locked
        self.checkpoints.mkdir(parents=True)
        self.config.write_text(config, encoding="utf-8")
        self.environment.write_text(tomli_w.dumps(describe_environment()), encoding="utf-8")

    def read_config(self) -> str:
        """Return the config as it was asked for, in TOML.

        Raises:
            ValueError: Not a run folder.

        """
        if not self.config.is_file():
            raise ValueError(f"run={self.path}: not a run folder (it has no config.toml)")
        return self.config.read_text(encoding="utf-8")

    def record_resolved(self, values: Mapping[str, object]) -> None:
        """Write down numbers that were derived from the config, the data and the machine."""
        self.resolved.write_text(tomli_w.dumps(dict(values)), encoding="utf-8")

    def start_log(self) -> None:
        """Let the package's log messages go to `log.txt` too, on the main rank."""
        if distributed.is_main():
            handler = logging.FileHandler(self.log, encoding="utf-8")
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            LOGGER.addHandler(handler)
            LOGGER.setLevel(logging.INFO)

    def stop_log(self) -> None:
        """Close `log.txt`."""
        for handler in [handler for handler in LOGGER.handlers if isinstance(handler, logging.FileHandler)]:
            LOGGER.removeHandler(handler)
            handler.close()


def describe_environment() -> dict[str, object]:
    """Hardware, versions and the command, for the record."""
    return {**describe_machine(), "world_size": distributed.world_size(), "command": sys.argv}
