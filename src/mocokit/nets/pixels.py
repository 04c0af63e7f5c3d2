"""Normalise uint8 pixels into the float images that a network reads."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of each channel of ImageNet's pixels, scaled to 0..1."""


class PixelNormalize(nn.Module):
    """Layer from uint8 pixels (N, 3, H, W) in 0..255 to float32, (x / 255 - mean) / std; float input is unchanged.

    Views stay uint8 until here: a quarter of the bytes through worker queues, over the bus and between ranks.

    Args:
        mean: Mean of each channel, of pixels scaled to 0..1.
        std: Standard deviation of each channel, of pixels scaled to 0..1.
        channels_last: Return images in channels_last memory format, in which convolutions are faster.

    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], *, channels_last: bool = False) -> None:
        super().__init__()
        if min(std) <= 0:
            raise ValueError(f"data.std={tuple(std)}: must be positive; measure it with data.mean=() data.std=()")
        # Not in the state dict: a checkpoint holds the config, and the config holds both.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise `pixels`."""
        if pixels.dtype == torch.uint8:
            pixels = (pixels.to(self.mean.dtype) / 255 - self.mean) / self.std
        return pixels.contiguous(memory_format=self.memory_format)
