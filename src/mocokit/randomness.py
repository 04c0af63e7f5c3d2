"""Counter-based randomness: a draw depends on what it is for, never on who asks or when.

Each generator is a Philox stream keyed by (seed, purpose) and started at a counter made of the coordinates of the
draw, for example (epoch, image index, view). So worker count, rank count and a restart in the middle of an epoch
change nothing.
"""

import enum

import numpy as np
from numpy.typing import NDArray


class Purpose(enum.IntEnum):
    """What a random stream is for; values are part of a run's reproducibility and never change."""

    EPOCH_ORDER = 1
    VIEW = 2
    KEY_SHUFFLE = 3
    REPLACEMENT = 4
    MODEL_INIT = 5
    QUEUE_INIT = 6
    SUBSET = 7
    STEP = 8
    BANK_SAMPLE = 9
    DETECTION_VIEW = 30
    DETECTION_TRIAL = 31


def generator(seed: int, purpose: Purpose, a: int = 0, b: int = 0, c: int = 0) -> np.random.Generator:
    """Random generator of one purpose at the coordinates (a, b, c), each in 0 .. 2**64-1."""
    key = np.array([seed, purpose], dtype=np.uint64)
    counter = np.array([0, c, b, a], dtype=np.uint64)  # word 0 counts the draws
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def permutation(seed: int, purpose: Purpose, size: int, a: int = 0) -> NDArray[np.int64]:
    """Random permutation of 0 .. size-1, the same for every caller with the same arguments."""
    return generator(seed, purpose, a).permutation(size)


def torch_seed(seed: int, purpose: Purpose, a: int = 0) -> int:
    """A 63-bit seed for a torch generator."""
    return int(generator(seed, purpose, a).integers(2**63 - 1))
