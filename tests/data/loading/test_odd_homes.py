"""Folders as containers, batch systems and workflow managers have them: read-only, missing, or with a long path."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mocokit.config.schema import Config
from mocokit.data.loading.socket_folder import MAX_SOCKET_PATH, choose_socket_folder
from tests.run_process import finish, flags_of, start_process

LOOP = """
import os, sys
from mocokit.data.augment.machine_code import compiled

@compiled
def double(x):
    return 2 * x

print(double(21), os.environ.get("NUMBA_CACHE_DIR"))
"""


def test_compiled_code_goes_to_a_temporary_folder_if_nothing_else_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "loop.py").write_text(LOOP)
    (tmp_path / "code" / "__pycache__").write_text("a file: not even root can write into this folder")
    (tmp_path / "temporary").mkdir()
    process = start_process(
        [],
        program=(str(tmp_path / "code" / "loop.py"),),
        TMPDIR=str(tmp_path / "temporary"),
        HOME="/dev/null",
        XDG_CACHE_HOME="/dev/null",
        IPYTHONDIR="/dev/null",
    )
    code, output = finish(process)
    assert code == 0, output
    assert f"42 {tmp_path / 'temporary' / 'mocokit-numba-'}" in output
    assert "set NUMBA_CACHE_DIR to a folder of your own" in output
    assert list((tmp_path / "temporary").iterdir()) == [], "removed at the end"


def test_workers_run_although_tmpdir_is_too_long_for_sockets(tiny: Callable[..., Config], tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 60) / ("b" * 60)
    folder.mkdir(parents=True)
    config = tiny(**{"data.workers": 2, "optim.epochs": 1})
    command = ["pretrain", "moco-v2-small", *flags_of(config), "--out", str(tmp_path / "run")]
    code, output = finish(start_process(command, TMPDIR=str(folder)), within_s=120)
    assert code == 0, output


def test_without_any_short_folder_the_length_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("c" * MAX_SOCKET_PATH)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match=rf"^TMPDIR={folder}: \d+ bytes, more than the \d+ that .*use --workers 0$"):
        choose_socket_folder()
