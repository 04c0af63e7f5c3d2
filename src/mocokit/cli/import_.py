"""`mocokit import`: another project's backbone, or an official run to resume."""

from typing import TYPE_CHECKING, Literal

from mocokit.cli.arguments import parse, take_name, take_option
from mocokit.settings import require

if TYPE_CHECKING:
    from mocokit.foreign.import_backbone import ImportResult

USAGE = (
    "import CHECKPOINT OUT.safetensors [--prefix P] [--padding N] [--heads N] ...   (a backbone, of any project)\n"
    "       mocokit import CHECKPOINT RUN --data D [--preset P] [--epochs N ...]   (an official run, to resume)"
)


def import_command(arguments: list[str]) -> int:
    """Import a checkpoint: its backbone if OUT ends in .safetensors, else the whole run."""
    checkpoint, rest = take_name(arguments, "CHECKPOINT", USAGE)
    out, rest = take_name(rest, "OUT.safetensors", USAGE)
    return (
        _import_backbone(checkpoint, out, rest) if out.endswith(".safetensors") else _import_run(checkpoint, out, rest)
    )


def _import_backbone(checkpoint: str, out: str, arguments: list[str]) -> int:
    """Write the checkpoint's backbone as a file; print what was found out, assumed and left out."""

    def read(
        *,
        arch: str | None = None,
        prefix: str | None = None,
        ignore: tuple[str, ...] = (),
        padding: Literal[1, 2] | None = None,
        heads: int | None = None,
        image_size: int | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
    ) -> int:
        """Write the backbone of another project's checkpoint as a file that every mocokit command takes.

        Args:
            arch: Backbone; None: inferred from names and shapes.
            prefix: Start of the backbone's names, if the file holds several networks; None: found.
            ignore: Patterns of names to leave out, such as 'extra.*'.
            padding: Padding of a 3x3 first convolution; None: from the checkpoint's settings.
            heads: Heads of a ViT; None: from the checkpoint's settings, or its fixed positions.
            image_size: Side of its training images (pixels); None: from positions or settings, else 224 or 32.
            mean: Mean of each channel, in 0..1, that its images were normalised with; None: from the checkpoint, else
                ImageNet's.
            std: Standard deviation of each channel, in 0..1; None: likewise.

        """
        from mocokit.foreign.import_backbone import import_backbone

        found = import_backbone(
            checkpoint,
            out,
            arch=arch,
            prefix=prefix,
            ignore=ignore,
            padding=padding,
            heads=heads,
            image_size=image_size,
            mean=mean,
            std=std,
        )
        _print_findings(found, out)
        return 0

    return parse(
        read,
        arguments,
        prog=f"mocokit import {checkpoint} {out}",
        description="Write the backbone of another project's checkpoint as a file that every mocokit command takes.\n\n"
        "Without .safetensors, OUT is a run folder for an official MoCo run, which `mocokit resume` continues: then\n"
        "--data D is needed, and --preset P and any flag of `mocokit pretrain` can follow.",
        example="mocokit import moco_v2_800ep_pretrain.pth.tar moco.safetensors",
    )


def _print_findings(found: "ImportResult", out: str) -> None:
    """Print the backbone, where its weights were found, what was assumed, and what was left out."""
    taken = f"weights: {found.path.rstrip('.') or 'the whole file'}"
    if found.wrappers:
        taken += f", without {', '.join(found.wrappers)} in their names"
    head = f"{found.layout}: {found.card.arch}, stem {found.card.stem}, {found.card.image_size} px -> {out}"
    print("; ".join([head, taken, *map(str, found.facts)]))
    for other in found.others:
        print(f"not taken: {other} (--prefix {other})")
    for part, count in found.left_out.items():
        print(f"left out: {part} ({count} tensors)")


def _import_run(checkpoint: str, out: str, arguments: list[str]) -> int:
    """Make a run folder from an official checkpoint; its settings are the defaults of the flags."""
    from mocokit.config.schema import Config
    from mocokit.run.import_run import import_run, read_official_run

    preset, rest = take_option(arguments, "--preset")  # first, because it sets the other flags' defaults
    padding, rest = take_option(rest, "--padding")
    require(padding in (None, "1", "2"), "padding", padding, "1 or 2")
    run = read_official_run(checkpoint, preset=preset or "", padding=int(padding) if padding else None)
    config = parse(
        Config,
        rest,
        default=run.config,
        prog=f"mocokit import {checkpoint} {out}",
        description="Continue an official run here. The defaults below come from the file, then from the preset that\n"
        "--preset P names.",
        example="mocokit import checkpoint_0099.pth.tar runs/a --data imagenet/train",
    )
    step = import_run(run, out, config=config)
    print(
        f"{config.model.arch} after {step:,} steps, queue and optimizer included; continue with: mocokit resume {out}"
    )
    return 0
