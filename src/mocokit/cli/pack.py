"""`pack` and `unpack`."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    from mocokit.data.packing.pack import PackResult


def pack_command(arguments: list[str]) -> int:
    """Pack images into shards."""
    import tyro

    from mocokit.config.schema import DataConfig

    def pack(
        data: Annotated[str, tyro.conf.Positional],
        out: Annotated[str, tyro.conf.Positional],
        *,
        short_side: int | None = None,
        quality: int = 90,
        shard_mb: int = 256,
        workers: int = -1,
    ) -> int:
        """Pack images into tar shards with an index, which WebDataset reads too.

        Args:
            data: Images: whatever `mocokit pretrain --data` reads.
            out: Folder to make.
            short_side: Shrink images to this short side (pixels) and store them as JPEG; None: keep every byte.
            quality: JPEG quality of images that are shrunk, 1..100.
            shard_mb: Size of a shard at most (MiB).
            workers: Processes; 0: none beside this one; -1: the machine's cores.

        """
        from mocokit.data.packing.pack import SKIPPED_NAME
        from mocokit.data.packing.pack import pack as pack_images

        with _progress_bar("packing") as on_progress:
            result = pack_images(
                data,
                out,
                short_side_px=short_side,
                quality=quality,
                shard_bytes=shard_mb * 2**20,
                max_image_px=DataConfig.max_image_px,
                on_progress=on_progress,
                workers=workers if workers >= 0 else len(os.sched_getaffinity(0)),
            )
        _print_summary(result, "skipped")
        if result.bad:
            print(f"  all of them: {result.folder / SKIPPED_NAME}")
        print(f"next: --data {result.folder}, or where you copy that folder to (s3://, gs://, https://)")
        return 0

    return int(tyro.cli(pack, args=arguments, prog="mocokit pack"))


def unpack_command(arguments: list[str]) -> int:
    """Turn shards into files."""
    import tyro

    def unpack(shards: Annotated[str, tyro.conf.Positional], out: Annotated[str, tyro.conf.Positional]) -> int:
        """Write the images of shards as files, byte for byte as they were packed.

        Args:
            shards: Folder that was packed, or 'shards-{000..127}.tar' (quoted), here or behind a url.
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
        print(f"  {image.name!r}: {image.reason}")  # quoted: a name need not be printable


@contextmanager
def _progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A live bar on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
