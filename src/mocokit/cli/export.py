"""`mocokit export`: a run's backbone for another library."""

from typing import Annotated

from mocokit.cli.arguments import take_name, tell

USAGE = "export RUN --to torchvision|timm|detectron2|huggingface|onnx|safetensors|official OUT [--data D]"


def export_command(arguments: list[str]) -> int:
    """Export a run's backbone; print its files, its differences from mocokit's features, and how to load it."""
    import tyro

    run, rest = take_name(arguments, "RUN", USAGE)

    def export(out: Annotated[str, tyro.conf.Positional], *, to: str, data: str = "") -> int:
        """Write a run's backbone for another library, load it there, and compare the features on real images.

        Args:
            out: File to make; a folder for huggingface and detectron2.
            to: torchvision, timm, detectron2, huggingface, onnx, safetensors, official, or a target that an installed
                package offers.
            data: Images to compare on; empty: the run's own, or the embedded sample.

        """
        from mocokit.run.export import export_run

        result = export_run(run, to=to, out=out, data=data or None, on_data=tell)
        print(f"wrote {', '.join(map(str, (*result.exported.files, *result.card_files)))}")
        for reader, difference in result.proof.differences.items():
            print(f"largest difference from mocokit's features: {difference:.1e} ({reader}, {result.images})")
        for note in result.exported.notes:
            print(f"note: {note}")
        print(f"to load it:\n{result.exported.usage}")
        return 0

    return int(tyro.cli(export, args=rest, prog=f"mocokit export {run}"))
