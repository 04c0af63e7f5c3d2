"""Tell the user what a run is and which images it has, and record the derived numbers."""

import shlex
from dataclasses import asdict

from mocokit import distributed
from mocokit.config.schema import Config
from mocokit.data.sources.left_out import describe_source, names_left_out
from mocokit.data.sources.open_source import with_columns
from mocokit.engine.backbone_file import OWN
from mocokit.engine.numerics import NUMERICS
from mocokit.engine.progress import ProgressView
from mocokit.engine.run_folder import LOGGER, RunFolder
from mocokit.run.build import Parts
from mocokit.run.build_views import build_recipes


def describe(
    config: Config, folder: RunFolder, parts: Parts, progress: ProgressView, names_sha256: str, data_identity: str
) -> None:
    """Show the user a summary of the run and of its images, and record the derived numbers in `resolved.toml`."""
    num_images = len(parts.reader.source)
    total_steps = parts.total_steps
    _describe_images(parts, progress)
    progress.say(
        f"{config.method.name}: {config.model.arch} on {num_images:,} images at {config.data.image_size} px, "
        f"{total_steps:,} steps of {config.data.global_batch_size}, {config.method.bn_groups} BatchNorm groups on "
        f"{distributed.world_size()} x {parts.device.type}, {parts.precision.name} -> {folder.path}"
    )
    if not distributed.is_main():
        return
    recipe, key_recipe = build_recipes(config.augment)
    folder.record_resolved(
        {
            "numerics": NUMERICS,
            "num_images": num_images,
            "steps_per_epoch": parts.steps_per_epoch,
            "total_steps": total_steps,
            "mean": list(parts.card.mean),
            "std": list(parts.card.std),
            "value_ranges": {name: list(pair) for name, pair in parts.reader.ranges.items()},
            "recipe": asdict(recipe),
            "key_recipe": asdict(key_recipe),
            "device": str(parts.device),
            "precision": parts.precision.name,
            "workers_per_rank": parts.num_workers,
            "chance_loss": parts.method.chance_loss,
            "rows_per_group": parts.method.layout.rows_per_group(config.data.global_batch_size),
            "names_sha256": names_sha256,
            "data_identity": data_identity,
        }
    )


def _describe_images(parts: Parts, progress: ProgressView) -> None:
    """Show a line about the training and the test images, and log the names of the files that are left out."""
    for kind, source in (("data", parts.reader.source), ("test", parts.test_source)):
        if source is not None:
            line = f"{kind}: {describe_source(source)}"
            progress.say(line)
            LOGGER.info(line)
            for name in names_left_out(source):
                LOGGER.info(name)


def next_command(config: Config, folder: RunFolder, parts: Parts) -> str:
    """Return the command for a complete run: an evaluation on its labelled images, or an export if it has no labels."""
    run = shlex.quote(str(folder.path))
    if parts.reader.source.labels is None:
        return f"mocokit export {run} --to timm backbone.pth"
    data = config.data
    place = with_columns(data.source, label_column=data.label_column, path_column=data.path_column)
    shown = "LABELLED_IMAGES" if place.startswith(OWN) else shlex.quote(place)
    test = f" --test {shlex.quote(data.test)}" if data.test else ""
    return f"mocokit evaluate {run} --data {shown}{test}"
