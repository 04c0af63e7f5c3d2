"""Time two aug+ views of an image on one core: official style, lightly and mocokit's pipelines, interleaved, medians.

    python benchmarks/two_views.py                       # 224 px from small, large and packed JPEGs; curve over sizes
    python benchmarks/two_views.py --images 16 --rounds 3

Files are in memory, so the disk plays no role. mocokit's fast views equal the reference's in every pixel if the image
is decoded at full size (`mocokit verify --augment`); files of 12 megapixels are decoded at a quarter of their size.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import photographs
import torch
from lightly.transforms.moco_transform import MoCoV2Transform
from peers.plain_pytorch import TwoCrops
from PIL import Image

from mocokit.data.augment.recipes import AUG_PLUS
from mocokit.data.packing.pack import pack
from mocokit.data.pipelines import PIPELINES, warm_up
from mocokit.data.sources.shards import open_shards
from mocokit.data.views import draw_views
from mocokit.report.text_tables import markdown_columns

Files = Sequence[bytes]
SIZES_PX = (64, 96, 128, 160, 224, 320, 448)


def packed(files: Files, *, short_side_px: int) -> list[bytes]:
    """Return the files after `mocokit pack --short-side`."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "files"
        source.mkdir()
        for number, raw in enumerate(files):
            (source / f"{number:05d}.jpg").write_bytes(raw)
        out = Path(name) / "shards"
        pack(str(source), out, max_image_px=10**8, short_side_px=short_side_px)
        shards = open_shards(str(out))
        return [bytes(shards.read(index)) for index in range(len(shards))]


def pillow_style(transform: Callable[[Image.Image], Any], files: Files) -> Callable[[], None]:
    """Return a function that decodes with Pillow and applies a transform that returns both views as float tensors."""

    def run() -> None:
        for raw in files:
            transform(Image.open(BytesIO(raw)).convert("RGB"))

    return run


def mocokit(pipeline: str, files: Files, *, size_px: int, crops_only: bool = False) -> Callable[[], None]:
    """Return a function that makes both uint8 views of each file, with new draws at every call."""
    target = np.empty((2, size_px, size_px, 3), np.uint8)
    epoch = 0

    def run() -> None:
        nonlocal epoch
        epoch += 1
        for index, raw in enumerate(files):
            draw = draw_views((AUG_PLUS, AUG_PLUS), 0, epoch, index)
            PIPELINES[pipeline](raw, draw, target, max_image_px=10**8, crops_only=crops_only)

    return run


def sides_of(files: Files, *, size_px: int) -> dict[str, Callable[[], None]]:
    """Return all compared functions that make two views of each file."""
    return {
        "official style (torchvision, Pillow)": pillow_style(TwoCrops(size_px), files),
        "lightly MoCoV2Transform": pillow_style(MoCoV2Transform(input_size=size_px), files),
        "mocokit reference": mocokit("reference", files, size_px=size_px),
        "mocokit fast": mocokit("fast", files, size_px=size_px),
        "mocokit fast, crops only": mocokit("fast", files, size_px=size_px, crops_only=True),
    }


def measure(sides: dict[str, Callable[[], None]], *, num_images: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Return the milliseconds per image of each side, and the ratio to the first side."""
    seconds = measuring.time_interleaved(sides, rounds=rounds, warm_up=1)
    first = next(iter(seconds.values()))
    return {
        name: {
            "milliseconds": 1000 * statistics.median(values) / num_images,
            "against_official": measuring.median_ratio(first, values),
        }
        for name, values in seconds.items()
    }


def show(title: str, rows: dict[str, dict[str, Any]]) -> None:
    """Print a table of the results."""
    cells = [
        (
            name,
            f"{row['milliseconds']:.2f}",
            f"{1000 / row['milliseconds']:.0f}",
            measuring.show_ratio(row["against_official"]),
        )
        for name, row in rows.items()
    ]
    header = ("one core", "ms an image", "images/s", "x official style")
    print(f"\n{title}\n\n{markdown_columns(header, cells)}", flush=True)


def main() -> None:
    """Measure small and large files at 224 px, then small ones over view sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "two_views.json")
    args = parser.parse_args()
    measuring.use_cores(1)
    torch.manual_seed(0)
    warm_up()
    result: dict[str, Any] = {"rounds": args.rounds}

    small, clean = (
        photographs.jpegs(args.images, width=500, height=375, noise=noise) for noise in (photographs.NOISE, 0.0)
    )
    for name, files in (("500x375", small), ("500x375 without noise", clean)):
        result[name] = measure(sides_of(files, size_px=224), num_images=len(files), rounds=args.rounds)
        kilobytes = statistics.mean(len(raw) for raw in files) / 1000
        show(f"{name}, {kilobytes:.0f} kB, to 224 px", result[name])

    for noise in (photographs.LITTLE_NOISE, photographs.NOISE):
        large = photographs.jpegs(max(4, args.images // 6), width=4000, height=3000, noise=noise)
        megabytes = statistics.mean(len(raw) for raw in large) / 1e6
        sides = sides_of(large, size_px=224)
        sides["mocokit fast, packed at 512"] = mocokit("fast", packed(large, short_side_px=512), size_px=224)
        name = f"4000x3000, {megabytes:.1f} MB"
        result[name] = measure(sides, num_images=len(large), rounds=args.rounds)
        show(f"4000x3000 JPEG, {megabytes:.1f} MB, to 224 px", result[name])

    result["by_size"] = {}
    for size_px in SIZES_PX:
        sides = {name: side for name, side in sides_of(small, size_px=size_px).items() if "lightly" not in name}
        result["by_size"][size_px] = measure(sides, num_images=len(small), rounds=3)
    rows = [
        (str(size), *(f"{side['milliseconds']:.2f}" for side in sides.values()))
        for size, sides in result["by_size"].items()
    ]
    header = ("ms an image at", *result["by_size"][SIZES_PX[0]])
    print("\n" + markdown_columns(header, rows))
    measuring.save_result(args.results, result)


if __name__ == "__main__":
    main()
