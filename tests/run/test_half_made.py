"""A check that fails leaves no half-made run folder behind, nor the folders above it."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import mocokit
from mocokit.config.schema import Config
from mocokit.run.data_identity import RunImages
from tests.run_process import finish, flags_of, start, start_process

Tiny = Callable[..., Config]

FORBIDDEN = """
import os, sys
os.setgid(65534); os.setuid(65534)
from mocokit.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "settings",
    [
        {"data.source": "/nowhere"},
        {"data.source": "/dev/null"},
        {"data.global_batch_size": 96, "method.queue_size": 96},
        {"data.test": "/nowhere"},
        {"run.knn_max_images": 2, "run.knn_every": 1},
        {"run.device": "xpu"},
        {"model.arch": "resnet19"},
    ],
)
def test_a_wrong_setting_leaves_nothing(settings: dict[str, object], tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="="):
        mocokit.pretrain(tiny(**settings), out=tmp_path / "runs" / "new" / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_when_the_folder_is_made_leaves_nothing(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_text(*_arguments: object, **_settings: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(OSError, match="No space left"):
        mocokit.pretrain(tiny(), out=tmp_path / "runs" / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_between_the_folder_and_the_first_step_removes_the_folder_that_was_made_alone(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RunImages, "save", save)
    (tmp_path / "run").mkdir()
    for out in (tmp_path / "runs" / "run", tmp_path / "run"):
        with pytest.raises(OSError, match="No space left"):
            mocokit.pretrain(tiny(), out=out)
    assert list(tmp_path.iterdir()) == [tmp_path / "run"], "this folder was there before"
    assert list((tmp_path / "run").iterdir()) == []


def test_a_place_below_a_file_is_refused_before_anything_is_read(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"out=.*run: .*file is a file; choose another folder"):
        mocokit.pretrain(tiny(), out=tmp_path / "file" / "runs" / "run")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_folder_that_the_user_may_not_write_is_refused_in_one_line(tiny: Tiny, photos: Path) -> None:
    (photos.parent / "forbidden.py").write_text(FORBIDDEN)
    asked = ["pretrain", "moco-v2-small", *flags_of(tiny()), "--out", "/usr/run"]
    _, output = finish(start(asked, program=(str(photos.parent / "forbidden.py"),)))
    assert "out=/usr/run: /usr can't be written (no permission, or a read-only disk)" in output
    assert "Traceback" not in output
    assert not Path("/usr/run").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs a mount of its own")
def test_a_read_only_disk_is_refused_in_one_line(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    asked = " ".join(["pretrain", "moco-v2-small", *flags_of(tiny()), "--out", str(tmp_path / "disk" / "run")])
    mount = f"mount --bind -o ro {tmp_path}/disk {tmp_path}/disk && mount -o remount,bind,ro {tmp_path}/disk"
    script = f"unshare -m sh -c '{mount} && exec {os.sys.executable} -m mocokit {asked}'"  # type: ignore[attr-defined]
    code, output = finish(start_process([], program=["-c", f"import os; os.system({script!r})"]))
    if "mount:" in output or "unshare:" in output:
        pytest.skip("no mounts here")
    assert f"out={tmp_path}/disk/run: {tmp_path}/disk can't be written" in output, (code, output)
    assert list((tmp_path / "disk").iterdir()) == []


@pytest.mark.dist
def test_ranks_that_disagree_leave_nothing(tiny: Tiny, own_photos: Path, tmp_path: Path) -> None:
    script = tmp_path / "differs.py"
    script.write_text(
        "import os, sys\nfrom mocokit.cli import main\n"
        "sys.exit(main([*sys.argv[1:], '--seed', os.environ['RANK'], '--workers', '0']))\n"
    )
    asked = ["pretrain", "moco-v2-small", *flags_of(tiny()), "--out", str(tmp_path / "runs" / "run")]
    code, output = finish(start(asked, ranks=2, program=(str(script),)))
    assert code != 0 and "differs from the others in config" in output
    assert not (tmp_path / "runs").exists()
