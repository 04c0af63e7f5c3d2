"""`mocokit pack` and `mocokit unpack`."""

import shutil
from pathlib import Path

import pytest

from mocokit.cli.pack import pack_command, unpack_command


def test_the_commands_pack_and_unpack(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "in"
    packed = str(tmp_path / "packed")
    out = tmp_path / "out"
    shutil.copytree(photos / "cat", images)
    (images / "x.jpg").write_bytes(b"no image")
    assert pack_command([str(images), packed, "--workers", "0", "--short-side", "64"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "images: 16 (0.0 MiB), shards: 1, skipped: 1",
        f"  '{images}/x.jpg': not an image in a known format",
        f"  all skipped images: {packed}/skipped.txt",
        f"next: --data {packed}, or the place you copy this folder to (s3://, gs://, https://)",
    ]
    assert unpack_command([packed, str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"next: --data {out}"
    for path in (photos / "cat").iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_unpack_fails_when_images_are_damaged(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = tmp_path / "packed"
    out = str(tmp_path / "out")
    assert pack_command([str(photos), str(packed), "--workers", "0"]) == 0
    raw = bytearray((packed / "shard-00000.tar").read_bytes())
    raw[600] ^= 1
    (packed / "shard-00000.tar").write_bytes(raw)
    capsys.readouterr()
    assert unpack_command([str(packed), out]) == 1
    assert "shards: 1, damaged: 1" in capsys.readouterr().out
