"""The commands `mocokit pack` and `mocokit unpack`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

from mocokit.cli.arguments import tell, with_label_column

if TYPE_CHECKING:
    from mocokit.data.packing.pack import PackResult


def pack_command(arguments: list[str]) -> int:
    """Pack images into tar shards."""
    import tyro

    def pack(
        data: Annotated[str, tyro.conf.Positional],
        out: Annotated[str, tyro.conf.Positional],
        *,
        short_side: int | None = None,
        quality: int = 90,
        shard_mb: int = 256,
        workers: int = -1,
        label_column: str = "",
        path_column: str = "",
    ) -> int:
        """Pack images into tar shards with an index, which WebDataset reads too.

        Args:
            data: Images, in any form that `mocokit pretrain --data` takes.
            out: Folder to make.
            short_side: Shrink images with a longer short side to this one (pixels) and store them as JPEG; None: store
                all images byte for byte.
            quality: JPEG quality of shrunk images, 1..100.
            shard_mb: Maximal size of a shard (MiB).
            workers: Processes that decode and encode; 0: this process; -1: one per core.
            label_column: Column of the labels of a .csv or .tsv list, by its header or number; CIFAR-100: coarse.
            path_column: Column of its paths.

        """
        from mocokit.data.loading.loader import count_cores
        from mocokit.data.packing.pack import SKIPPED_NAME
        from mocokit.data.packing.pack import pack as pack_images
        from mocokit.data.sources.limits import MAX_IMAGE_PX

        with _progress_bar("packing") as on_progress:
            result = pack_images(
                with_label_column(data, "", label_column, path_column)[0],
                out,
                short_side_px=short_side,
                quality=quality,
                shard_bytes=shard_mb * 2**20,
                max_image_px=MAX_IMAGE_PX,
                on_progress=on_progress,
                on_data=tell,
                workers=workers if workers >= 0 else count_cores(),
            )
        _print_summary(result, "skipped")
        if result.bad:
            print(f"  all skipped images: {result.folder / SKIPPED_NAME}")
        print(f"next: --data {result.folder}, or the place you copy this folder to (s3://, gs://, https://)")
        return 0

    return int(tyro.cli(pack, args=arguments, prog="mocokit pack"))


def unpack_command(arguments: list[str]) -> int:
    """Write the images of shards as files."""
    import tyro

    def unpack(shards: Annotated[str, tyro.conf.Positional], out: Annotated[str, tyro.conf.Positional]) -> int:
        """Write the images of shards as files, byte for byte as they were packed.

        Args:
            shards: Folder that `mocokit pack` wrote, or a pattern such as 'shards-{000..127}.tar' (in quotes); a path
                or a url.
            out: Folder to make.

        """
        from mocokit.data.packing.pack import LABELS_NAME
        from mocokit.data.packing.pack import unpack as unpack_images

        with _progress_bar("unpacking") as on_progress:
            result = unpack_images(shards, out, on_progress=on_progress)
        _print_summary(result, "damaged")
        labels = result.folder / LABELS_NAME
        print(f"next: --data {labels if labels.exists() else result.folder}")
        return 1 if result.bad else 0

    return int(tyro.cli(unpack, args=arguments, prog="mocokit unpack"))


def _print_summary(result: "PackResult", left_out: str) -> None:
    print(
        f"images: {result.num_images:,} ({result.num_bytes / 2**20:,.1f} MiB), shards: {result.num_shards:,}, "
        f"{left_out}: {len(result.bad):,}"
    )
    for image in result.bad[:3]:
        print(f"  {image.name!r}: {image.reason}")  # repr, since a name can hold unprintable characters


@contextmanager
def _progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """Context manager that shows a progress bar on a terminal; it yields a function of (images done, all images)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
