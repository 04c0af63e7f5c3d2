"""Make the folder of a new run, also in place of an older run; remove it again if the run does not begin."""

import contextlib
from collections.abc import Iterator

import tomli_w

from mocokit.engine.checkpoint import PARTIAL, write_text_atomically
from mocokit.engine.run_folder import LOCK_FILES, RunFolder, describe_start

MADE_BY_EVALUATION = ("evaluation.json", "evaluation.md", "features/*.safetensors")

MADE_BY_RUN = (
    *("resolved.toml", "environment.toml", "log.txt", "images.npz", "views.png", "backbone.safetensors"),
    *("metrics.jsonl", "metrics.jsonl.damaged", "tensorboard/events.out.*", "checkpoints/step_*.pt"),
    *(f"*{PARTIAL}", f"checkpoints/*{PARTIAL}"),
    "config.toml",  # the last to go: it tells that this is a run folder
)
"""Patterns of the files that a run makes."""


@contextlib.contextmanager
def started(folder: RunFolder, config: str, *, overwrite: bool = False) -> Iterator[None]:
    """Context manager that makes the folder of a new run and keeps other processes out.

    It writes the config and the environment: hardware, versions, ranks, command. An error before `folder.keep()` is
    called removes all that was made.

    Args:
        folder: The folder to make.
        config: The config that the user asked for, in TOML.
        overwrite: Remove an older run first; files that no run made stay.

    Raises:
        ValueError: The folder is not empty, or another process runs in it.

    """
    try:
        with folder.locked():
            # Checked a second time: another process may have filled the folder after the first check, before the lock.
            if overwrite and folder.has_run:
                _remove_files(folder, *MADE_BY_EVALUATION, *MADE_BY_RUN)
            else:
                folder.require_empty()
            try:
                _create(folder, config)
                yield
            except BaseException:
                if not folder.is_kept:
                    _remove_files(folder, *MADE_BY_RUN)
                    _remove_files(folder, *LOCK_FILES)  # while locked, so that they are nobody else's
                raise
    except BaseException:
        if not folder.is_kept:
            for path in folder.made_folders:
                with contextlib.suppress(OSError):  # not empty: somebody put files into it
                    path.rmdir()
        raise


def _create(folder: RunFolder, config: str) -> None:
    folder.checkpoints.mkdir(exist_ok=True)
    write_text_atomically(folder.environment, tomli_w.dumps(describe_start()))
    write_text_atomically(folder.config, config)  # the last: a folder with a config is a run that can go on


def _remove_files(folder: RunFolder, *patterns: str) -> None:
    """Delete files of the folder, and the folders in it that are then empty."""
    for pattern in patterns:
        for path in folder.path.glob(pattern):
            with contextlib.suppress(PermissionError):  # Windows deletes no file that is open, such as the lock
                path.unlink(missing_ok=True)
    for inner in {folder.path / pattern.partition("/")[0] for pattern in patterns if "/" in pattern}:
        with contextlib.suppress(OSError):  # absent, or it holds other files
            inner.rmdir()
