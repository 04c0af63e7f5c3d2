import errno
import os
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from mocokit.config.schema import Config
from mocokit.config.toml import to_toml
from mocokit.engine.new_folder import started
from mocokit.engine.run_folder import LOGGER, RunFolder
from tests.forked_ranks import RunningRanks
from tests.run_process import finish, start

HOLD = """
import sys, time
from mocokit.engine.run_folder import RunFolder
folder = RunFolder(sys.argv[1])
with folder.locked():
    (folder.path / "locked").touch()
    time.sleep(60)
"""


def _holder(run: Path, work: Path) -> RunningRanks:
    (work / "hold.py").write_text(HOLD)
    process = start([str(run)], program=(str(work / "hold.py"),))
    deadline = time.monotonic() + 60
    while not (run / "locked").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (run / "locked").unlink()
    return process


def test_a_second_process_is_refused_by_name_and_a_killed_one_leaves_no_lock(
    tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")
    process = _holder(folder.path, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("mocokit.engine.run_folder.LOCK_WAIT_S", 0.1)
        for attempt in (folder.require_free, folder.locked().__enter__):
            with pytest.raises(ValueError, match=rf"run: in use by process {process.pid} on .*; wait for it to end"):
                attempt()
    process.kill()
    folder.require_free()
    finish(process)
    with started(folder, to_toml(tiny())):
        pass
    with pytest.raises(ValueError, match=r"exists and is not empty; continue it with `mocokit resume"):
        folder.require_free()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_warning(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def acquire(*_arguments: object, **_settings: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with RunFolder(tmp_path / "run").locked():
        assert "this file system has no locks" in caplog.text


def test_names_that_are_not_utf8_reach_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOGGER, "propagate", False)  # pytest-xdist can't send such a captured line
    folder = RunFolder(tmp_path)
    folder.start_log()
    LOGGER.warning("bad image %s", os.fsdecode(b"caf\xe9.jpg"))
    folder.stop_log()
    assert r"bad image caf\udce9.jpg" in folder.log.read_text(encoding="utf-8")


def test_the_environment_tells_of_each_start(tiny: Callable[..., Config], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with started(folder, to_toml(tiny())):
        pass
    first = tomllib.loads(folder.environment.read_text())
    folder.record_resume(7)
    folder.record_resume(12)
    told = tomllib.loads(folder.environment.read_text())
    assert [entry["step"] for entry in told["resumed"]] == [7, 12]
    assert told["resumed"][1] == {"step": 12, **first}
    assert {name: value for name, value in told.items() if name != "resumed"} == first
