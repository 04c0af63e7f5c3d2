"""A cell's run at the scale of one small machine: the paper's differences stay, sizes and lengths shrink alike."""

from mocokit.config.presets import get_preset
from mocokit.config.schema import Config
from mocokit.config.toml import replace_settings, to_dict
from mocokit.reproduction.table import Cell, Table
from mocokit.run.demo import SETTINGS

PAPER_EPOCHS = 200
"""Length that a table's `small_epochs` stands for. Other lengths keep their ratio to it."""

SIZES = ("data.image_size", "data.global_batch_size", "model.arch", "model.stem", "method.bn_groups")
"""Settings of the demo that every method takes over."""


def shrink(table: Table, cell: Cell, *, epochs: int | None = None) -> Config:
    """Return the cell's config with the demo's network, batch and learning rate, and a shorter schedule.

    Temperature, head, augmentation, kind of schedule and mechanism stay the paper's. The queue holds the demo's 1,024
    keys unless the cell's `small` settings say otherwise.

    Args:
        table: Table of the cell.
        cell: Cell to shrink.
        epochs: Epochs for the paper's 200; None: the table's `small_epochs`.

    """
    paper = cell.config
    ratio = (epochs or table.small_epochs) / PAPER_EPOCHS
    settings: dict[str, object] = {name: SETTINGS[name] for name in SIZES}
    settings |= {
        "optim.epochs": max(1, round(paper.optim.epochs * ratio)),
        "optim.milestones": tuple(max(1, round(milestone * ratio)) for milestone in paper.optim.milestones),
        "optim.warmup_epochs": min(paper.optim.warmup_epochs * ratio, 1.0),
        "run.precision": "auto",
        "run.knn_every": 0,
        "augment.crop_scale": SETTINGS["augment.crop_scale"],
    }
    settings |= _small_image_settings(paper) | _method_settings(paper)
    if paper.method.bn_groups == 1:  # BatchNorm over the whole batch stays so
        settings["method.bn_groups"] = 1
    return replace_settings(paper, settings | dict(cell.small))


def _small_image_settings(paper: Config) -> dict[str, object]:
    """Return settings for small images: no blur, evaluation on whole images, pixels standardised by the data.

    SimCLR's pixels stay in 0..1.
    """
    small = get_preset("moco-v2-small")
    settings: dict[str, object] = {
        "augment.blur_p": small.augment.blur_p,
        "data.eval_crop_ratio": small.data.eval_crop_ratio,
    }
    if paper.method.name != "simclr":
        settings |= {"data.mean": small.data.mean, "data.std": small.data.std}
    return settings


def _method_settings(paper: Config) -> dict[str, object]:
    """Return rate, queue and key momentum at small scale. End-to-end and SimCLR have theirs in `cell.small`."""
    match paper.method.name:
        case "moco":
            return {
                "method.queue_size": SETTINGS["method.queue_size"],
                "method.key_momentum": to_dict(get_preset("moco-v2-small"))["method"]["key_momentum"],
                "method.mask_same_image": True,
                "optim.lr": SETTINGS["optim.lr"],
            }
        case "memory-bank":
            return {"optim.lr": SETTINGS["optim.lr"]}
    return {}
