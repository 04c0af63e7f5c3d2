"""Read Detectron2's weight files, and compute their features, without Detectron2 and without torchvision.

This is a second implementation of the format, written independently of `to_detectron2`. The proof of an export uses
it, so a wrong name in the exporter shows.
"""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

EPS = 1e-5
"""Epsilon of Detectron2's BatchNorm, frozen or not."""

Weights = Mapping[str, NDArray[Any]]

# Globals that a pickled array needs, written by mocokit, numpy 1 or numpy 2. None of them runs code from the file.
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("builtins", "bytearray"),
    ("_codecs", "encode"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
}


class _ArraysOnly(pickle.Unpickler):
    """Unpickler of plain values and arrays."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return a global that the pickle names; raise UnpicklingError if no array needs it."""
        if (module_name, global_name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, which no weight file needs")
        return super().find_class(module_name, global_name)


def read_detectron2(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a weight file by name; execute nothing from it.

    Raises:
        ValueError: The file is missing, damaged, of another format, or a pickle that would run code.

    """
    try:
        content = _ArraysOnly(io.BytesIO(path.read_bytes())).load()
    except (OSError, pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"weights={path}: not a Detectron2 weight file ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError(f"weights={path}: not a Detectron2 weight file (no model in it)")
    if not content.get("matching_heuristics"):
        raise ValueError(
            f"weights={path}: matching_heuristics is not set; Detectron2 would find no layer by these names"
        )
    return {str(name): np.asarray(array) for name, array in content["model"].items()}


def detectron2_features(weights: Weights, images: Tensor) -> Tensor:
    """Return the mean-pooled res5 features (N, D) that Detectron2's ResNet computes in eval mode from (N, 3, H, W).

    STRIDE_IN_1X1 is False, so the stride of a bottleneck is in its 3x3 convolution.
    """
    x = F.max_pool2d(F.relu(_conv(weights, "stem.conv1", images, stride=2)), kernel_size=3, stride=2, padding=1)
    # (N, 64, H/4, W/4)
    for stage in ("res2", "res3", "res4", "res5"):
        blocks = {int(name.split(".")[1]) for name in weights if name.startswith(stage + ".")}
        for number in range(len(blocks)):
            x = _block(weights, f"{stage}.{number}", x, stride=2 if number == 0 and stage != "res2" else 1)
    return x.mean(dim=(2, 3))  # (N, D, H/32, W/32) -> (N, D)


def _block(weights: Weights, name: str, x: Tensor, *, stride: int) -> Tensor:
    """Compute a residual block: a bottleneck if it has a conv3, else a basic block."""
    shortcut = _conv(weights, f"{name}.shortcut", x, stride=stride) if f"{name}.shortcut.weight" in weights else x
    if f"{name}.conv3.weight" in weights:
        out = F.relu(_conv(weights, f"{name}.conv1", x))
        out = F.relu(_conv(weights, f"{name}.conv2", out, stride=stride))
        return F.relu(_conv(weights, f"{name}.conv3", out) + shortcut)
    out = F.relu(_conv(weights, f"{name}.conv1", x, stride=stride))
    return F.relu(_conv(weights, f"{name}.conv2", out) + shortcut)


def _conv(weights: Weights, name: str, x: Tensor, *, stride: int = 1) -> Tensor:
    """Compute a convolution and its BatchNorm; the number of groups follows from the shapes."""
    weight = torch.from_numpy(weights[f"{name}.weight"])
    x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=x.shape[1] // weight.shape[1])
    mean, var, scale, shift = (
        torch.from_numpy(weights[f"{name}.norm.{part}"])[:, None, None]
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(var + EPS) * scale + shift
