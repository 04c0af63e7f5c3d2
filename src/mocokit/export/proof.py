"""Does the exported file compute what we compute? Both are run on real images.

Shapes: n images of S pixels, D feature dimension.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mocokit.export.backbone import LoadedBackbone
from mocokit.export.targets import Reader

LARGEST_DIFFERENCE = 1e-4
"""Of any number of the features, in float32."""

BATCH_SIZES = (1, 5)
"""Images go through in batches of these sizes, so that a batch size fixed by mistake shows."""


class ExportMismatchError(ArithmeticError):
    """The exported file computes something else; the message says how far off it is."""


@torch.no_grad()
def largest_differences(loaded: LoadedBackbone, readers: Mapping[str, Reader], pixels: Tensor) -> dict[str, float]:
    """Largest absolute difference between our features and each reader's.

    Args:
        loaded: Our backbone.
        readers: Name -> what another library computes.
        pixels: (sum of BATCH_SIZES, 3, S, S) uint8 images.

    Raises:
        ExportMismatchError: One is above LARGEST_DIFFERENCE, or not a number.

    """
    batches = loaded.pixels(pixels).contiguous().split(BATCH_SIZES)
    ours = [loaded.backbone(images) for images in batches]
    found = {}
    for name, read in readers.items():
        theirs = [read(images) for images in batches]
        found[name] = max(_difference(a, b) for a, b in zip(ours, theirs, strict=True))
        if not found[name] <= LARGEST_DIFFERENCE:
            raise ExportMismatchError(
                f"{name} computes something else: features differ by {found[name]:.1e}, {LARGEST_DIFFERENCE:.0e} is "
                "allowed; nothing was kept. Please report it with the run's config.toml"
            )
    return found


def _difference(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours.double() - theirs.double()).abs().max())
