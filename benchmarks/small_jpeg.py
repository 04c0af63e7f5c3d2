"""A whole JPEG at 1/4 and 1/8 of its size on one core: libjpeg-turbo, and mocokit's reader of what small views need.

    python benchmarks/small_jpeg.py

Interleaved, medians. From where on jpeg_small.py is used (`LEAST_BYTES` in data/decode/jpeg.py) is read off this table.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import measuring
import photographs
import simplejpeg

from mocokit.data.jpeg_layout import read_layout
from mocokit.data.jpeg_small import decode_small
from mocokit.data.pipelines import warm_up
from mocokit.report.text_tables import markdown_columns

CASES = (  # width, height, noise of the sensor
    (200, 150, photographs.NOISE),
    (320, 240, photographs.NOISE),
    (500, 375, photographs.NOISE),
    (1200, 900, photographs.NOISE),
    (4000, 3000, photographs.LITTLE_NOISE),
    (4000, 3000, photographs.NOISE),
)


def libjpeg(raw: bytes, *, width: int, height: int, fraction: int) -> None:
    """libjpeg-turbo's own decoding at a fraction."""
    simplejpeg.decode_jpeg(raw, min_height=-(-height // fraction), min_width=-(-width // fraction), min_factor=1)


def mocokit(raw: bytes, *, width: int, height: int, fraction: int) -> None:
    """Ours, its reading of the header included."""
    layout = read_layout(raw)
    assert layout is not None
    decode_small(raw, layout, fraction=fraction, part=(0, 0, height, width))


def read_all(reader: Callable[..., None], files: Sequence[bytes], **options: int) -> None:
    """Each of `files` in turn."""
    for raw in files:
        reader(raw, **options)


def measure(*, width: int, height: int, noise: float, rounds: int) -> dict[str, Any]:
    """Milliseconds a file of each reader at each fraction."""
    count = max(3, min(40, 8_000_000 // (width * height)))
    files = photographs.jpegs(count, width=width, height=height, noise=noise)
    sides = {
        f"{name} 1/{fraction}": partial(read_all, reader, files, width=width, height=height, fraction=fraction)
        for fraction in (4, 8)
        for name, reader in (("libjpeg-turbo", libjpeg), ("mocokit", mocokit))
    }
    seconds = measuring.time_interleaved(sides, rounds=rounds, warm_up=1)
    milliseconds = {name: 1000 * statistics.median(values) / count for name, values in seconds.items()}
    return {"kilobytes": statistics.mean(map(len, files)) / 1000, "milliseconds": milliseconds}


def main() -> None:
    """Measure each case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "small_jpeg.json")
    args = parser.parse_args()
    measuring.use_cores(1)
    cv2.setNumThreads(1)
    warm_up()
    result: dict[str, Any] = {"rounds": args.rounds}
    rows = []
    for width, height, noise in CASES:
        case = measure(width=width, height=height, noise=noise, rounds=args.rounds)
        name = f"{width}x{height}, {case['kilobytes']:,.0f} kB"
        result[name] = case
        rows.append((name, *(f"{value:.3g}" for value in case["milliseconds"].values())))
    print(markdown_columns(("ms a file, one core", *case["milliseconds"]), rows))
    measuring.save_result(args.results, result)


if __name__ == "__main__":
    main()
