import errno
import hashlib
import os
import pickle
import stat
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mocokit.engine.checkpoint import (
    CheckpointError,
    checkpoint_path,
    copied_to_cpu,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    remove_partial,
    save_checkpoint,
    write_atomically,
)
from tests.run_process import same

STATE = {"weights": torch.arange(1000.0), "optimizer": {"lr": 0.1}, "config": "x = 1"}
STATE_TENSORS = {"weights": torch.arange(10.0)}


def _save(folder: Path, step: int, keep_last: int = 2) -> Path:
    return save_checkpoint(folder, {**STATE, "step": step}, step=step, keep_last=keep_last)


def test_a_state_comes_back_equal(tmp_path: Path) -> None:
    state = load_checkpoint(_save(tmp_path, 5))
    assert torch.equal(state["weights"], STATE["weights"])  # type: ignore[arg-type]
    assert (state["step"], state["optimizer"], state["config"]) == (5, {"lr": 0.1}, "x = 1")


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 30, 4):
        _save(tmp_path, step, keep_last=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_000000004.pt", "step_000000030.pt"]
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize("keep_bytes", [0, 1, 100, 0.5, 0.99])
def test_a_cut_file_is_named_and_the_one_before_is_used(tmp_path: Path, keep_bytes: float) -> None:
    _save(tmp_path, 1)
    newest = _save(tmp_path, 2)
    raw = newest.read_bytes()
    newest.write_bytes(raw[: keep_bytes if isinstance(keep_bytes, int) else int(len(raw) * keep_bytes)])
    with pytest.raises(CheckpointError, match=r"step_000000002.pt: not a readable checkpoint"):
        load_checkpoint(newest)
    state, problems = load_newest(tmp_path)
    assert state["step"] == 1
    assert len(problems) == 1
    assert "step_000000002.pt" in problems[0]


def test_every_flipped_bit_is_noticed_and_the_one_before_is_used(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    newest = _save(tmp_path, 2)
    raw = newest.read_bytes()
    for place in sorted(
        {*range(0, len(raw), 97), *range(len(raw) - 95, len(raw))}
    ):  # and every byte of the archive's end
        flipped = bytearray(raw)
        flipped[place] ^= 1 << place % 8
        newest.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"step_000000002.pt: not a readable checkpoint .*damaged"):
            load_checkpoint(newest)
    state, problems = load_newest(tmp_path)
    assert state["step"] == 1
    assert "step_000000002.pt" in problems[0]


def test_a_checkpoint_is_a_zip_archive_whose_comment_is_the_digest_of_all_before(tmp_path: Path) -> None:
    path = _save(tmp_path, 1)
    raw = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.comment == b"sha256:" + hashlib.sha256(raw[:-64]).hexdigest().encode()
        assert archive.testzip() is None
    assert torch.load(path, weights_only=True)["step"] == 1


def test_a_file_from_before_checksums_existed_still_loads(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path, 4)
    torch.save({**STATE, "step": 4}, path)
    assert load_checkpoint(path)["step"] == 4


def test_a_partial_file_of_a_killed_writer_is_no_checkpoint_and_can_be_removed(tmp_path: Path) -> None:
    path = _save(tmp_path, 1)
    path.with_name("step_000000002.pt.partial").write_bytes(path.read_bytes()[:500])
    assert list_checkpoints(tmp_path) == [path]
    remove_partial(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_copied_state_is_equal_and_does_not_follow_the_original() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3)).to(memory_format=torch.channels_last)
    state = {"net": net.state_dict(), "list": [torch.ones(2), (torch.zeros(1), 3)], "text": "x"}
    copied = copied_to_cpu(state)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        for value in net.state_dict().values():
            value.add_(1)
    assert same(copied["net"], before)
    assert copied["net"]._metadata == net.state_dict()._metadata  # type: ignore[attr-defined]
    assert same(copied["list"], state["list"])
    assert copied["text"] == "x"


def test_nothing_to_resume_from_says_what_was_tried(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint to resume from .the folder holds none"):
        load_newest(tmp_path)
    checkpoint_path(tmp_path, 3).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint to resume from .*step_000000003.pt"):
        load_newest(tmp_path)


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch /tmp/mocokit_was_here",)


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path, 1)
    torch.save({"step": 1, "x": _Evil()}, path)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps({"step": 1, "x": _Evil()}))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not Path("/tmp/mocokit_was_here").exists()


def test_a_full_disk_keeps_the_older_checkpoint_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "small_disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        _save(folder, 1)
        big = {"weights": torch.zeros(200_000), "step": 2}  # 800 kB
        with pytest.raises(
            OSError, match=r"checkpoint not saved .*step_000000001.pt is intact; make room, then resume"
        ):
            save_checkpoint(folder, big, step=2, keep_last=2)
        assert [path.name for path in folder.iterdir()] == ["step_000000001.pt"], "no partial file is left"
        assert load_newest(folder)[0]["step"] == 1
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_mode_that_the_umask_allows_whoever_wrote_them(tmp_path: Path, umask: int) -> None:
    def private(path: Path) -> None:
        path.unlink()
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))

    before = os.umask(umask)
    try:
        for write in (private, lambda path: path.write_text("x"), lambda path: save_file(STATE_TENSORS, path)):
            write_atomically(tmp_path / "file", write)
            assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask
    finally:
        os.umask(before)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_folder_that_can_not_be_flushed_does_not_stop_a_save(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    assert load_checkpoint(_save(tmp_path, 5))["step"] == 5
