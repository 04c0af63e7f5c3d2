"""One rank of short runs of every method, all in one process group: python -m tests.rank_worker DATA OUT."""

import sys
from pathlib import Path

import mocokit
from mocokit import distributed
from mocokit.config.toml import replace_settings
from tests.small_presets import add_narrow_backbone, small

CROPS: dict[str, object] = {"augment.local_crops": 2, "augment.local_size": 16}

ADAMW: dict[str, object] = {"optim.name": "adamw", "optim.lr": 1e-3}

RUNS: dict[str, tuple[str, dict[str, object]]] = {
    "moco-symmetric": ("moco-v2-cifar", {}),
    "moco-one-group": ("moco-v2", {"method.bn_groups": 1}),
    "moco-crops": ("moco-v2-cifar", {**CROPS, "method.bn_groups": 2}),
    "end-to-end": ("end-to-end", {}),
    "end-to-end-cached": ("end-to-end", {"method.micro_groups": 1}),
    "memory-bank": ("memory-bank", {}),
    "memory-bank-crops": ("memory-bank", CROPS),
    "simclr": ("simclr", {}),
    "simclr-crops": ("simclr", CROPS),
    "simclr-two-groups": ("simclr", {"method.bn_groups": 2}),
    "moco-v3-resnet": ("moco-v3-r50-100ep", {}),
    "fast-moco": ("fast-moco", {}),
    "fast-moco-two-groups": ("fast-moco", {"method.bn_groups": 2}),
    "moco-v3-vit": ("moco-v3-vit-s", {}),
    "moco-v3-vit-split": ("moco-v3-vit-s", {"run.shard": True}),
    "moco-split": ("moco-v2-cifar", {**ADAMW, "run.shard": True, "method.bn_groups": 4, "method.micro_groups": 1}),
}


def main() -> None:
    """Run each of RUNS for an epoch."""
    one_epoch = {"optim.epochs": 1, "optim.milestones": (1,), "optim.warmup_epochs": 0.0}
    data = Path(sys.argv[1])
    out = Path(sys.argv[2])
    add_narrow_backbone()
    with distributed.session("cpu"):
        for name, (preset, settings) in RUNS.items():
            config = replace_settings(small(preset, data), {**one_epoch, **settings})
            mocokit.pretrain(config, out=out / name)


if __name__ == "__main__":
    main()
