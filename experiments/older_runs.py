"""Make runs with an older checkout; resume, evaluate and export them with this one.

python experiments/older_runs.py BEFORE           (a folder with a checkout of the older version)

Each run is trained to its end by the older version. A copy of it loses its newest checkpoint, as if it had been killed
in its last epoch, and is resumed by this version. All that the final checkpoint holds must be equal, bit by bit.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from same_curves import CASES, HERE, SMALL

from mocokit.cli import main as mocokit
from mocokit.engine.checkpoint import list_checkpoints, load_checkpoint

RUNS = (
    "moco-v1",
    "moco-v2-small",
    "moco-v2-cifar",
    "end-to-end",
    "memory-bank",
    "simclr",
    "moco-v3-vit-s",
    "fast-moco",
)


def same(a: Any, b: Any) -> bool:
    """Return True if two nested states are equal, bit by bit; TOML texts are not compared."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a if key not in ("config", "versions"))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def newest(run: Path) -> dict[str, Any]:
    """Return the newest checkpoint of a run."""
    return load_checkpoint(list_checkpoints(run / "checkpoints")[-1])


def main() -> None:
    """Print a row a run; the exit code is 1 if one of them could not be continued bit-equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    before = parser.parse_args().before.resolve()
    good = True
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with zipfile.ZipFile(HERE / "src/mocokit/sample/photo_tiles_val.zip") as archive:
            archive.extractall(folder / "images", [name for name in archive.namelist() if name.endswith(".jpg")][:192])
        for name in RUNS:
            whole = folder / f"{name} whole"
            resumed = folder / name
            flags = [*CASES[name].split(), *SMALL.split(), "--data", str(folder / "images"), "--out", str(whole)]
            subprocess.run(
                [sys.executable, "-m", "mocokit", "pretrain", *flags],
                env={**os.environ, "PYTHONPATH": str(before / "src")},
                check=True,
                capture_output=True,
            )
            shutil.copytree(whole, resumed)
            list_checkpoints(resumed / "checkpoints")[-1].unlink()
            start = newest(resumed)["step"]
            codes = [mocokit(["resume", str(resumed), "--accept-changes"])]
            equal = same(newest(resumed), newest(whole))
            codes.append(mocokit(["knn", str(whole), "--data", str(folder / "images"), "--baselines"]))
            codes.append(mocokit(["export", str(whole), "--to", "safetensors", str(folder / f"{name}.safetensors")]))
            good = good and equal and not any(codes)
            print(
                f"{name:16} resumed at step {start}: bit-equal {equal}; resume, knn, export end with {codes}",
                flush=True,
            )
    sys.exit(not good)


if __name__ == "__main__":
    main()
