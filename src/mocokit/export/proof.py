"""Prove an export: run the exported files and mocokit's backbone on the same real images, and compare the features.

Shapes: n images of S pixels, D feature dimension.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mocokit.engine.backbone_file import LoadedBackbone
from mocokit.export.targets import Reader
from mocokit.settings import require

LARGEST_DIFFERENCE = 1e-4
"""Allowed absolute difference of any feature, in float32."""

ROUNDINGS = 10
"""Allowed difference as a multiple of our own float32-to-float64 difference, where that is more than
LARGEST_DIFFERENCE. After a few training steps BatchNorm's running statistics are still far off, and features can
reach the thousands: float32 itself is then less exact than 1e-4."""

BATCH_SIZES = (1, 5)
"""Batch sizes of the comparison. Two sizes reveal a file that fixed the batch size."""


class ExportMismatchError(ArithmeticError):
    """The exported files give other features; the message says how far off they are."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Differences between the features of other libraries and mocokit's."""

    differences: dict[str, float]
    """Reader -> largest absolute difference of any feature."""
    rounding: float
    """Largest absolute difference between mocokit's own features in float32 and in float64."""

    @property
    def allowed(self) -> float:
        """Largest difference that passes."""
        return max(LARGEST_DIFFERENCE, ROUNDINGS * self.rounding)


@torch.no_grad()
def prove(loaded: LoadedBackbone, readers: Mapping[str, Reader], pixels: Tensor) -> Proof:
    """Compare each reader's features with mocokit's.

    Args:
        loaded: mocokit's backbone.
        readers: Name of a library -> its reading of the exported files.
        pixels: (sum of BATCH_SIZES, 3, S, S) uint8 images.

    Raises:
        ExportMismatchError: A difference is larger than allowed, or not a number.
        ValueError: There is no reader.

    """
    require(len(readers) > 0, "readers", readers, "the target returned no reader, so nothing can be compared; add one")
    batches = loaded.pixels(pixels).contiguous().split(BATCH_SIZES)
    ours = [loaded.backbone(images) for images in batches]  # (1, D), (5, D)
    exact = copy.deepcopy(loaded.backbone).double()
    proof = Proof(
        # A clone for each reader: one that changes its images in place would else change the next one's input too.
        differences={
            name: _largest(ours, [read(images.clone()) for images in batches]) for name, read in readers.items()
        },
        rounding=_largest(ours, [exact(images.double()) for images in batches]),
    )
    for name, difference in proof.differences.items():
        if not difference <= proof.allowed:  # also true for NaN
            raise ExportMismatchError(
                f"{name} gives other features: they differ by {difference:.1e}, {proof.allowed:.1e} is allowed; "
                "nothing was kept"
            )
    return proof


def _largest(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the largest absolute difference; infinity if shapes differ."""
    pairs = list(zip(ours, theirs, strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    return float(torch.cat([(a.double() - b.double()).flatten() for a, b in pairs]).abs().max())
