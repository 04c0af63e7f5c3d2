import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mocokit.config.schema import Config
from mocokit.config.toml import to_toml
from mocokit.engine.run_folder import RunFolder

HOLD = """
import sys, time
from mocokit.engine.run_folder import RunFolder
with RunFolder(sys.argv[1]).locked():
    print("locked", flush=True)
    time.sleep(60)
"""


def _holder(run: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_second_process_is_refused_by_name_and_a_killed_one_leaves_no_lock(
    tiny: Callable[..., Config], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    with _holder(folder.path) as process:
        for attempt in (folder.require_free, folder.locked().__enter__):
            with pytest.raises(ValueError, match=rf"run: in use by process {process.pid} on .*; wait for it to end"):
                attempt()
        process.kill()
    folder.require_free()
    with folder.locked():
        folder.create(to_toml(tiny()))
    with pytest.raises(ValueError, match=r"exists and is not empty; continue it with `mocokit resume"):
        folder.require_free()
