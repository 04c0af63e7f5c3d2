"""`export` and `import`: weights to and from other libraries."""

from typing import Annotated

from mocokit.cli.arguments import take_name

EXPORT_USAGE = "export RUN --to torchvision|timm|detectron2|huggingface|onnx|safetensors|official OUT [--data D]"


def export_command(arguments: list[str]) -> int:
    """Write a run's backbone for another library, and prove it."""
    import tyro

    run, rest = take_name(arguments, "RUN", EXPORT_USAGE)

    def export(out: Annotated[str, tyro.conf.Positional], *, to: str, data: str = "") -> int:
        """Write a run's backbone for another library, read it there, and compare the features on real images.

        Args:
            out: File to make; a folder for huggingface and detectron2.
            to: torchvision, timm, detectron2, huggingface, onnx, safetensors or official.
            data: Images to compare on; empty: the run's own, or the embedded sample.

        """
        from mocokit.run.export import export_run

        result = export_run(run, to=to, out=out, data=data or None)
        print(f"wrote {', '.join(map(str, (*result.exported.files, *result.card_files)))}")
        for reader, difference in result.proof.differences.items():
            print(f"largest difference from mocokit's features: {difference:.1e} ({reader}, {result.images})")
        for note in result.exported.notes:
            print(f"note: {note}")
        print(f"to load it:\n{result.exported.usage}")
        return 0

    return int(tyro.cli(export, args=rest, prog=f"mocokit export {run}"))


IMPORT_USAGE = (
    "import CHECKPOINT OUT.safetensors [--arch A]   (a backbone, of any project)\n"
    "       mocokit import CHECKPOINT RUN --data D [--preset P] [--epochs N ...]   (an official run, to resume)"
)


def import_command(arguments: list[str]) -> int:
    """Read another project's checkpoint."""
    checkpoint, rest = take_name(arguments, "CHECKPOINT", IMPORT_USAGE)
    out, rest = take_name(rest, "OUT", IMPORT_USAGE)
    return (
        _import_backbone(checkpoint, out, rest) if out.endswith(".safetensors") else _import_run(checkpoint, out, rest)
    )


def _import_backbone(checkpoint: str, out: str, arguments: list[str]) -> int:
    import tyro

    from mocokit.config.schema import DataConfig

    mean_default = DataConfig.mean
    std_default = DataConfig.std

    def read(
        *,
        arch: str = "",
        image_size: int = 0,
        mean: tuple[float, float, float] = mean_default,  # type: ignore[assignment]
        std: tuple[float, float, float] = std_default,  # type: ignore[assignment]
    ) -> int:
        """Write the backbone of another project's checkpoint as a file that every mocokit command takes.

        Args:
            arch: Backbone; empty: told by names and shapes.
            image_size: Side of the images that it reads (pixels); 0: 224, with a small stem 32.
            mean: Mean of each channel, 0..1, that its images were normalised with.
            std: Standard deviation of each channel, 0..1.

        """
        from mocokit.foreign.import_backbone import import_backbone

        found = import_backbone(checkpoint, out, arch=arch or None, image_size=image_size or None, mean=mean, std=std)
        print(f"{found.layout}: {found.card.arch}, stem {found.card.stem}, {found.card.image_size} px -> {out}")
        for what, count in found.left_out.items():
            print(f"left out: {what} ({count} tensors)")
        return 0

    return int(tyro.cli(read, args=arguments, prog=f"mocokit import {checkpoint} {out}"))


def _import_run(checkpoint: str, out: str, arguments: list[str]) -> int:
    import tyro

    from mocokit.config.schema import Config
    from mocokit.run.import_run import import_run, read_official_run

    preset, rest = _take_preset(arguments)
    run = read_official_run(checkpoint, preset=preset)
    config = tyro.cli(
        Config,
        args=rest,
        default=run.config,
        prog=f"mocokit import {checkpoint} {out}",
        description="Continue an official run here. Defaults below are the file's, then the preset's.",
    )
    step = import_run(run, out, config=config)
    print(
        f"{config.model.arch} after {step:,} steps, queue and optimizer included; continue with: mocokit resume {out}"
    )
    return 0


def _take_preset(arguments: list[str]) -> tuple[str, list[str]]:
    """`--preset P`, which decides the other flags' defaults, and the rest."""
    if "--preset" not in arguments[:-1]:
        return "", arguments
    at = arguments.index("--preset")
    return arguments[at + 1], arguments[:at] + arguments[at + 2 :]
