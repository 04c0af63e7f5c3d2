"""Counter-based randomness: a draw depends on what it is for, never on who asks or when.

Each generator is a Philox stream keyed by (seed, purpose) and started at a counter made of the coordinates of the
draw, for example (epoch, image index, view). So worker count, rank count and a restart in the middle of an epoch
change nothing.
"""

import enum

import numpy as np
from numpy.random.bit_generator import ISeedSequence
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


class _Key(ISeedSequence):
    """Hands Philox its key, for which it would otherwise read the system's entropy too, four times as slow."""

    def __init__(self, seed: int, purpose: Purpose) -> None:
        self.words = np.array([seed, purpose], np.uint64)

    def generate_state(self, n_words: int, dtype: object = np.uint64) -> NDArray[np.uint64]:
        """The two words of 64 bits that Philox asks for."""
        return self.words


def generator(seed: int, purpose: Purpose, a: int = 0, b: int = 0, c: int = 0) -> np.random.Generator:
    """Random generator of one purpose at the coordinates (a, b, c), each in 0 .. 2**64-1."""
    counter = np.array([0, c, b, a], np.uint64)  # word 0 counts the draws
    philox = np.random.Philox(_Key(seed, purpose), counter=counter)  # type: ignore[arg-type]  # not in its stubs
    return np.random.Generator(philox)


def permutation(seed: int, purpose: Purpose, size: int, a: int = 0) -> NDArray[np.int64]:
    """Random permutation of 0 .. size-1, the same for every caller with the same arguments."""
    return generator(seed, purpose, a).permutation(size)


def torch_seed(seed: int, purpose: Purpose, a: int = 0) -> int:
    """A 63-bit seed for a torch generator."""
    return int(generator(seed, purpose, a).integers(2**63 - 1))
