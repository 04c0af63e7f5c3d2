"""`mocokit import`: another project's backbone, or an official run to resume."""

from mocokit.cli.arguments import parse, take_name, take_option

USAGE = (
    "import CHECKPOINT OUT.safetensors [--arch A]   (a backbone, of any project)\n"
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
    """Write the checkpoint's backbone as a file; print its layout and the parts that were left out."""
    from mocokit.config.schema import DataConfig

    def read(
        *,
        arch: str = "",
        image_size: int = 0,
        mean: tuple[float, float, float] = DataConfig.mean,  # type: ignore[assignment]
        std: tuple[float, float, float] = DataConfig.std,  # type: ignore[assignment]
    ) -> int:
        """Write the backbone of another project's checkpoint as a file that every mocokit command takes.

        Args:
            arch: Backbone; empty: inferred from names and shapes.
            image_size: Side of its training images (pixels); 0: 224, or 32 for the small stem.
            mean: Mean of each channel, in 0..1, that its images were normalised with.
            std: Standard deviation of each channel, in 0..1.

        """
        from mocokit.foreign.import_backbone import import_backbone

        found = import_backbone(checkpoint, out, arch=arch or None, image_size=image_size or None, mean=mean, std=std)
        print(f"{found.layout}: {found.card.arch}, stem {found.card.stem}, {found.card.image_size} px -> {out}")
        for part, count in found.left_out.items():
            print(f"left out: {part} ({count} tensors)")
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


def _import_run(checkpoint: str, out: str, arguments: list[str]) -> int:
    """Make a run folder from an official checkpoint; its settings are the defaults of the flags."""
    from mocokit.config.schema import Config
    from mocokit.run.import_run import import_run, read_official_run

    preset, rest = take_option(arguments, "--preset")  # first, because it sets the other flags' defaults
    run = read_official_run(checkpoint, preset=preset or "")
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
