"""JPEG files of every arrangement and coding that plain files have."""

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

Options = dict[str, Any]

ARRANGEMENTS: tuple[Options, ...] = ({"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"gray": True})
CODINGS: tuple[Options, ...] = (
    {},
    {"optimize": True},
    {"restart_marker_blocks": 3},
    {"restart_marker_rows": 1},
    {"quality": 100},
)


def jpeg_file(
    height: int = 123, width: int = 211, *, gray: bool = False, detail: float = 12, **options: object
) -> bytes:
    """Soft colors with noise, which never reach black or white."""
    rng = np.random.default_rng(0)
    soft = Image.fromarray(rng.integers(70, 190, (5, 8, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(soft) + rng.normal(0, detail, (height, width, 3))
    image = Image.fromarray(pixels.clip(45, 210).astype(np.uint8))
    file = BytesIO()
    (image.convert("L") if gray else image).save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()
