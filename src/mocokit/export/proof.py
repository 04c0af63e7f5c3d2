"""Does the exported file compute what we compute? Both are run on real images.

Shapes: n images of S pixels, D feature dimension.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mocokit.engine.backbone_file import LoadedBackbone
from mocokit.export.targets import Reader

LARGEST_DIFFERENCE = 1e-4
"""Of any feature, in float32."""

ROUNDINGS = 10
"""Difference that is allowed where float32 itself is worse than that, in units of what float64 changes in our own
features: a network of a few steps, whose BatchNorm statistics mean nothing yet, may have features in the thousands."""

BATCH_SIZES = (1, 5)
"""Images go through in batches of these sizes, so that a batch size fixed by mistake shows."""


class ExportMismatchError(ArithmeticError):
    """The exported file computes something else; the message says how far off it is."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How far other libraries' features are from ours."""

    differences: dict[str, float]
    """Reader -> largest absolute difference of any feature."""
    rounding: float
    """The same between our features in float32 and in float64."""

    @property
    def allowed(self) -> float:
        """Largest difference that passes."""
        return max(LARGEST_DIFFERENCE, ROUNDINGS * self.rounding)


@torch.no_grad()
def prove(loaded: LoadedBackbone, readers: Mapping[str, Reader], pixels: Tensor) -> Proof:
    """Compare our features with each reader's.

    Args:
        loaded: Our backbone.
        readers: Name -> what another library computes.
        pixels: (sum of BATCH_SIZES, 3, S, S) uint8 images.

    Raises:
        ExportMismatchError: A difference is above what is allowed, or not a number.

    """
    batches = loaded.pixels(pixels).contiguous().split(BATCH_SIZES)
    ours = [loaded.backbone(images) for images in batches]
    exact = copy.deepcopy(loaded.backbone).double()
    proof = Proof(
        differences={name: _largest(ours, [read(images) for images in batches]) for name, read in readers.items()},
        rounding=_largest(ours, [exact(images.double()) for images in batches]),
    )
    for name, difference in proof.differences.items():
        if not difference <= proof.allowed:  # true for NaN too
            raise ExportMismatchError(
                f"{name} computes something else: features differ by {difference:.1e}, {proof.allowed:.1e} is allowed; "
                "nothing was kept"
            )
    return proof


def _largest(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Largest absolute difference; infinite when shapes differ."""
    pairs = list(zip(ours, theirs, strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    return float(torch.cat([(a.double() - b.double()).flatten() for a, b in pairs]).abs().max())
