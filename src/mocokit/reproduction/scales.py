"""A cell at the scale of one small machine: the paper's differences stay, sizes and lengths shrink alike for all."""

from mocokit.config.presets import get_preset
from mocokit.config.schema import Config
from mocokit.config.toml import replace_settings
from mocokit.reproduction.table import Cell, Table
from mocokit.run.demo import SETTINGS

PAPER_EPOCHS = 200
"""The length that a table's `small_epochs` stands for; other lengths keep their ratio to it."""

SIZES = ("data.image_size", "data.global_batch_size", "model.arch", "model.stem", "method.bn_groups")
"""What the demo's settings say for every method."""


def shrink(table: Table, cell: Cell, *, epochs: int | None = None) -> Config:
    """The cell's run with the demo's network, batch and rate, and its schedule `epochs` long for the paper's 200.

    Temperature, head, augmentation, kind of schedule and mechanism are the paper's; the queue holds the demo's 1,024
    keys unless the table is about it.
    """
    paper = cell.config
    ratio = (epochs or table.small_epochs) / PAPER_EPOCHS
    settings: dict[str, object] = {name: SETTINGS[name] for name in SIZES} | _of_small_images(paper)
    settings |= {
        "optim.epochs": max(1, round(paper.optim.epochs * ratio)),
        "optim.milestones": tuple(max(1, round(milestone * ratio)) for milestone in paper.optim.milestones),
        "optim.warmup_epochs": min(paper.optim.warmup_epochs * ratio, 1.0),
        "run.precision": "auto",
        "run.knn_every": 0,
        "augment.crop_scale": SETTINGS["augment.crop_scale"],
    }
    settings |= _of_method(paper)
    return replace_settings(paper, settings | _ungrouped(paper) | dict(cell.small))


def _of_small_images(paper: Config) -> dict[str, object]:
    """No blur, whole images when judging, pixels standardised by the data, but for SimCLR's which stay in 0..1."""
    small = get_preset("moco-v2-small")
    settings: dict[str, object] = {
        "augment.blur_p": small.augment.blur_p,
        "data.eval_crop_ratio": small.data.eval_crop_ratio,
    }
    if paper.method.name != "simclr":
        settings |= {"data.mean": small.data.mean, "data.std": small.data.std}
    return settings


def _of_method(paper: Config) -> dict[str, object]:
    match paper.method.name:
        case "moco":
            return {
                "method.queue_size": SETTINGS["method.queue_size"],
                "method.key_momentum": 0.99,  # of moco-v2-small
                "method.mask_same_image": True,
                "optim.lr": SETTINGS["optim.lr"],
            }
        case "memory-bank":
            return {"optim.lr": SETTINGS["optim.lr"]}
    return {}


def _ungrouped(paper: Config) -> dict[str, object]:
    """BatchNorm over the whole batch stays that."""
    return {"method.bn_groups": 1} if paper.method.bn_groups == 1 else {}
