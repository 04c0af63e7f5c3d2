"""Faults of disks and files: full disks and damaged, half-written, vanished or blocked files."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from fault_runs import NotPossibleError, Row, Runs, kill, logged_lines

from mocokit.engine.checkpoint import list_checkpoints


def _damaged(runs: Runs, name: str, damage: Callable[[Path], None], said: str) -> Row:
    """Kill a run halfway, damage its newest checkpoint, resume it, and return the row."""
    process, run = runs.begin(name)
    runs.wait_for_step(run, runs.steps // 2)
    kill(process)
    runs.finish(process)
    newest = list_checkpoints(run / "checkpoints")[-1]
    damage(newest)
    recovery_s, output = runs.end(run)
    assert said in output, output
    assert list(run.rglob("*.partial")) == []
    line = f"{newest.name}: {said} ...; using an older checkpoint" if said else "nothing; it is removed"
    return {"times": 1, "recovery_s": recovery_s, **runs.lost(run, runs.undisturbed()), "said": line}


def cut_checkpoint(runs: Runs, *, quick: bool) -> Row:
    """The newest checkpoint loses its second half."""
    return _damaged(runs, "cut", lambda path: os.truncate(path, path.stat().st_size // 2), "cut off or damaged")


def flipped_bit(runs: Runs, *, quick: bool) -> Row:
    """One bit of the newest checkpoint flips."""

    def flip(path: Path) -> None:
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 4
        path.write_bytes(raw)

    return _damaged(runs, "flipped", flip, "damaged: its SHA-256 is not the one it was written with")


def half_renamed(runs: Runs, *, quick: bool) -> Row:
    """The newest checkpoint still has its temporary name."""

    def rename_back(path: Path) -> None:
        path.replace(path.with_name(path.name + ".partial"))

    return _damaged(runs, "half_renamed", rename_back, "")


def full_disk(runs: Runs, *, quick: bool) -> Row:
    """The disk (tmpfs) fills up during the run; then there is room again."""
    disk = runs.work / "disk"
    disk.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        raise NotPossibleError("may not mount a tmpfs")
    try:
        process, run = runs.begin("disk/run")
        runs.wait_for_checkpoint(run)
        begun = time.monotonic()
        with (disk / "ballast").open("wb", buffering=0) as ballast:
            while True:
                try:
                    ballast.write(bytes(4096))
                except OSError:
                    break
        code, output = runs.finish(process)
        seconds = time.monotonic() - begun
        assert code == 1 and "make room, then resume" in output, output
        assert list(run.rglob("*.partial")) == []
        (disk / "ballast").unlink()
        recovery_s, _ = runs.end(run)
        return {
            "times": 1,
            "detection_s": seconds,
            "recovery_s": recovery_s,
            **runs.lost(run, runs.undisturbed()),
            "said": output.strip().splitlines()[-1].replace(str(disk), ""),
        }
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def images_vanish(runs: Runs, *, quick: bool) -> Row:
    """During the run one file is deleted, one cut, one overwritten by text."""
    data = runs.copy_photos("vanishing")
    gone, cut, text = sorted(data.rglob("*.jpg"))[::30]
    flags = ("--precision", "fp32", "--data.max-bad-share", "0.05")
    process, run = runs.begin("images_vanish", *flags, data=data)
    runs.wait_for_step(run, runs.steps // 3)
    gone.unlink()
    os.truncate(cut, 200)
    text.write_text("not an image", encoding="utf-8")
    runs.finish(process, code=0)
    log = (run / "log.txt").read_text(encoding="utf-8")
    assert [log.count(f"bad image {path}") for path in (gone, cut, text)] == [1, 1, 1], log
    return {
        "times": 3,
        "images_miscounted": runs.lost(run, runs.undisturbed())["images_miscounted"],
        "said": "log.txt: bad image ... replaced by another, once for each",
    }


def blocked_mount(runs: Runs, *, quick: bool) -> Row:
    """The second read of one image blocks for 30 s, in the call that reads files (real pipes are refused)."""
    name = sorted(runs.photos.rglob("*.jpg"))[7].name
    blocked_s = 3 if quick else 30
    patch = (
        "import pathlib, time; old, reads = pathlib.Path.read_bytes, []\n"
        "def read_bytes(path):\n"
        f"    if path.name == {name!r} and path.parent.name == 'brick':\n"
        f"        reads.append(1); time.sleep({blocked_s} if len(reads) == 2 else 0)\n"
        "    return old(path)\n"
        "pathlib.Path.read_bytes = read_bytes\n"
    )
    begun = time.monotonic()
    process, run = runs.begin_patched("blocked_mount", patch)
    runs.finish(process, code=0)
    assert "bad image" not in (run / "log.txt").read_text(encoding="utf-8")
    waited = [json.loads(line)["data_wait_share"] for line in logged_lines(run)]
    assert max(waited) > 0.5, "the run must wait for the image"
    assert time.monotonic() - begun > blocked_s
    return {
        "times": 1,
        "recovery_s": float(blocked_s),
        **runs.lost(run, runs.undisturbed()),
        "said": f"nothing; the run waits {blocked_s} s and goes on",
    }
