"""The queue of past keys, which MoCo calls its dictionary (MoCo v1 sec. 3.2).

Shapes: K queue size, C embedding dimension, B keys enqueued at once.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mocokit.settings import require


class KeyQueue(nn.Module):
    """Ring buffer of the last K keys and the image index of each; the state dict holds all of it.

    K can be any number, and B any number up to K. Slots that were never written hold random unit rows, as in the
    official code.

    Args:
        queue_size: K.
        dim: C.
        seed: Seed of the random rows that fill the queue at the start.

    """

    keys: Tensor
    image_ids: Tensor

    def __init__(self, queue_size: int, dim: int, *, seed: int) -> None:
        super().__init__()
        require(queue_size >= 1, "method.queue_size", queue_size, "must be at least 1")
        noise = torch.randn(queue_size, dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("keys", F.normalize(noise, dim=1))  # (K, C); 65536*128*4 B = 33.6 MB
        self.register_buffer("image_ids", torch.full((queue_size,), -1))  # (K,); 65536*8 B = 0.5 MB; -1: noise
        self.num_enqueued = 0

    @property
    def negatives(self) -> Tensor:
        """Return the keys (K, C) without a copy; score against them before `enqueue` overwrites some."""
        return self.keys

    @property
    def pointer(self) -> int:
        """Return the slot of the next key."""
        return self.num_enqueued % len(self.keys)

    @property
    def fill(self) -> float:
        """Return the share of slots that hold real keys, 0..1."""
        return min(1.0, self.num_enqueued / len(self.keys))

    @torch.no_grad()
    def enqueue(self, keys: Tensor, image_ids: Tensor) -> None:
        """Replace the oldest keys by `keys` (B, C) of the images `image_ids` (B,)."""
        size = len(self.keys)
        problem = f"smaller than the {len(keys)} keys of one global batch; raise it or lower data.global_batch_size"
        require(len(keys) <= size, "method.queue_size", size, problem)
        until_end = min(len(keys), size - self.pointer)  # rows before the ring wraps
        for target, source in ((self.keys, keys), (self.image_ids, image_ids)):
            target[self.pointer : self.pointer + until_end] = source[:until_end]
            target[: len(keys) - until_end] = source[until_end:]
        self.num_enqueued += len(keys)

    def newest(self, count: int) -> Tensor:
        """Return the last `count` keys, oldest first: (count, C); random rows where there are not so many yet."""
        slots = (torch.arange(count, device=self.keys.device) + self.pointer - count) % len(self.keys)
        return self.keys[slots]

    def get_extra_state(self) -> dict[str, int]:
        """Return the number of keys ever enqueued, from which the pointer follows."""
        return {"num_enqueued": self.num_enqueued}

    def set_extra_state(self, state: Any) -> None:
        """Restore what `get_extra_state` returned."""
        self.num_enqueued = int(state["num_enqueued"])
