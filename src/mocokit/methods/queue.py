"""The queue of past keys: MoCo's dictionary (MoCo v1 sec. 3.2).

Shapes: K queue size, C embedding dimension, B keys enqueued at once.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyQueue(nn.Module):
    """FIFO of the last K keys, with the index of the image that each came from; all of it is in the state dict.

    Any K and any B <= K: the ring wraps. Slots never written hold random unit rows, as officially.

    Args:
        queue_size: K.
        dim: C.
        seed: Seed of the random rows that fill the queue at the start.

    """

    keys: Tensor
    image_ids: Tensor

    def __init__(self, queue_size: int, dim: int, *, seed: int) -> None:
        super().__init__()
        if queue_size < 1:
            raise ValueError(f"method.queue_size={queue_size}: must be at least 1")
        noise = torch.randn(queue_size, dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("keys", F.normalize(noise, dim=1))  # (K, C); 65536*128*4 B = 33.6 MB
        self.register_buffer("image_ids", torch.full((queue_size,), -1))  # (K,); 65536*8 B = 0.5 MB; -1: noise
        self.num_enqueued = 0

    @property
    def negatives(self) -> Tensor:
        """(K, C) the keys, as a view: score against them before `enqueue`."""
        return self.keys

    @property
    def pointer(self) -> int:
        """Slot that the next key goes to."""
        return self.num_enqueued % len(self.keys)

    @property
    def fill(self) -> float:
        """Share of slots that hold real keys, 0..1."""
        return min(1.0, self.num_enqueued / len(self.keys))

    @torch.no_grad()
    def enqueue(self, keys: Tensor, image_ids: Tensor) -> None:
        """Overwrite the oldest keys by `keys` (B, C) of the images `image_ids` (B,)."""
        if len(keys) > len(self.keys):
            raise ValueError(
                f"method.queue_size={len(self.keys)}: smaller than the {len(keys)} keys of one global batch; "
                "raise the queue size or lower data.global_batch_size"
            )
        until_end = min(len(keys), len(self.keys) - self.pointer)  # rows before the ring wraps
        for target, source in ((self.keys, keys), (self.image_ids, image_ids)):
            target[self.pointer : self.pointer + until_end] = source[:until_end]
            target[: len(keys) - until_end] = source[until_end:]
        self.num_enqueued += len(keys)

    def newest(self, count: int) -> Tensor:
        """(count, C) the keys enqueued last; random rows where there are not so many yet."""
        slots = (torch.arange(count, device=self.keys.device) + self.pointer - count) % len(self.keys)
        return self.keys[slots]

    def get_extra_state(self) -> dict[str, int]:
        """The pointer, as the count of keys ever enqueued."""
        return {"num_enqueued": self.num_enqueued}

    def set_extra_state(self, state: Any) -> None:
        """Take the pointer back from `get_extra_state`."""
        self.num_enqueued = int(state["num_enqueued"])
