"""Train every preset for 24 steps from two checkouts and compare the losses and the weights, bit by bit.

python experiments/same_curves.py BEFORE [AFTER]        (folders with one checkout each; AFTER is this one by default)

Each preset is made small: 32 px, batches of 32, a narrow backbone, the reference pipeline, fp32 on the CPU. Options
that no preset uses have cases of their own. The script uses only the command line of both checkouts, so their code may
differ in any other way. The exit code is 1 if a loss differs by more than --tolerance (0: bit-equal).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parents[1]
STEPS = 24
IMAGES = 192  # 6 steps an epoch
SMALL = (
    "--image-size 32 --global-batch-size 32 --workers 0 --data.pipeline reference --augment-on cpu --device cpu "
    "--precision fp32 --epochs 4 --model.dim 16 --run.log-every 1 --run.knn-every 0"
)
QUEUE = "--method.queue-size 80"  # no multiple of the batch: the ring wraps
NARROW = "--arch resnet10_w32 --model.stem imagenet"
V3 = f"{NARROW} --model.head-width 24 --optim.warmup-epochs 1 --bn-groups 2"
PRESETS = {
    "moco-v1": f"{NARROW} {QUEUE} --bn-groups 4 --optim.milestones 2 3",
    "moco-v2": f"{NARROW} {QUEUE} --bn-groups 4",
    "moco-v2-800ep": f"{NARROW} {QUEUE} --bn-groups 4",
    "moco-v2-small": f"{NARROW} {QUEUE}",
    "moco-v2-cifar": f"{NARROW} {QUEUE}",
    "end-to-end": f"{NARROW} --bn-groups 4 --optim.milestones 2 3",
    "memory-bank": f"{NARROW} --bn-groups 4 --method.num-negatives 64 --optim.milestones 2 3",
    "simclr": f"{NARROW} --optim.warmup-epochs 1",
    "simclr-v2-head": f"{NARROW} --optim.warmup-epochs 1",
    "simclr-cifar": f"{NARROW} --optim.warmup-epochs 1",
    "moco-v3-r50-100ep": V3,
    "moco-v3-r50-300ep": V3,
    "moco-v3-r50-1000ep": V3,
    "moco-v3-vit-s": "--arch timm/test_vit --model.vit-init timm --model.head-width 24 --optim.warmup-epochs 1",
    "moco-v3-vit-b": "--arch timm/test_vit --model.vit-init timm --model.head-width 24 --optim.warmup-epochs 1",
    "fast-moco": V3,
}
CROPS = "--augment.local-crops 2 --augment.local-size 16"
OPTIONS = {
    "moco, micro-batches": f"moco-v2-small {PRESETS['moco-v2-small']} --method.micro-groups 3",
    "moco, crops": f"moco-v2-cifar {PRESETS['moco-v2-cifar']} {CROPS}",
    "moco, patches": f"moco-v2-small {PRESETS['moco-v2-small']} --method.patch-grid 2",
    "moco, hard negatives": f"moco-v2-small {PRESETS['moco-v2-small']} --method.hardness 0.5",
    "moco, decoupled, no shuffle": f"moco-v2-small {PRESETS['moco-v2-small']} --method.decoupled --method.no-shuffle",
    "moco, views that grow": f"moco-v2-small {PRESETS['moco-v2-small']} --data.first-image-size 16",
    "end-to-end, cached, crops": f"end-to-end {PRESETS['end-to-end']} --method.micro-groups 1 {CROPS}",
    "memory-bank, crops": f"memory-bank {PRESETS['memory-bank']} --method.micro-groups 2 {CROPS}",
    "simclr, cached, crops": f"simclr {PRESETS['simclr']} --bn-groups 4 --method.micro-groups 1 {CROPS}",
    "moco-v3, micro-batches, crops": f"moco-v3-r50-100ep {V3} --method.micro-groups 1 {CROPS}",
}
CASES = {**{name: f"{name} {flags}" for name, flags in PRESETS.items()}, **OPTIONS}

WORKER = """
import json, sys
from mocokit.cli import main
for arguments in json.load(sys.stdin):
    print(arguments[1], flush=True)
    assert main(arguments) == 0
"""


def train_all(checkout: Path, data: Path, out: Path) -> None:
    """Train each case with the code of `checkout` into run folders below `out`."""
    commands = [
        ["pretrain", *flags.split(), *SMALL.split(), "--data", str(data), "--out", str(out / name)]
        for name, flags in CASES.items()
    ]
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WORKER],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{checkout}: {done.stdout[-500:]}\n{done.stderr[-3000:]}")


def losses(run: Path) -> list[float]:
    """Return the loss of each step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def weights_differ_by(before: Path, after: Path) -> float:
    """Return the largest difference between the two backbones; 0 means bit-equal."""
    ours, theirs = (load_file(run / "backbone.safetensors") for run in (after, before))
    assert ours.keys() == theirs.keys()
    differences = [(ours[name].double() - theirs[name].double()).abs().max() for name in ours]
    return float(torch.stack(differences).max())


def main() -> None:
    """Train with both checkouts and print one row a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path, nargs="?", default=HERE)
    parser.add_argument("--tolerance", type=float, default=0.0)
    parser.add_argument("--keep", type=Path, help="folder for the runs; runs of BEFORE found there are reused")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.keep or Path(temporary)
        data = folder / "images"
        with zipfile.ZipFile(HERE / "src/mocokit/sample/photo_tiles_val.zip") as archive:
            members = [name for name in archive.namelist() if name.endswith(".jpg")][:IMAGES]
            archive.extractall(data, members)
        if not (folder / "before" / list(CASES)[-1] / "backbone.safetensors").exists():
            train_all(asked.before.resolve(), data, folder / "before")
        shutil.rmtree(folder / "after", ignore_errors=True)
        train_all(asked.after.resolve(), data, folder / "after")
        worst = 0.0
        for name in CASES:
            before, after = (losses(folder / side / name) for side in ("before", "after"))
            assert len(before) == len(after) == STEPS, (name, len(before), len(after))
            difference = max(abs(a - b) for a, b in zip(before, after, strict=True))
            weights = weights_differ_by(folder / "before" / name, folder / "after" / name)
            worst = max(worst, difference)
            ends = f"{before[-1]:8.5f} -> {after[-1]:8.5f}"
            print(f"{name:32} last loss {ends}, losses differ by {difference:.1e}, weights by {weights:.1e}")
    print(f"{len(CASES)} cases of {STEPS} steps, largest difference of a loss {worst:.1e}")
    sys.exit(worst > asked.tolerance)


if __name__ == "__main__":
    main()
