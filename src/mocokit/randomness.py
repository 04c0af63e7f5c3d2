"""Counter-based randomness: a draw depends on what it is for, never on which process makes it or when.

Each generator is a Philox stream. Its key is (seed, purpose); its counter starts at the coordinates of the draw, for
example (epoch, image index, view). So the number of workers or ranks, or a restart in the middle of an epoch, changes
no draw.
"""

import enum

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray


class Purpose(enum.IntEnum):
    """Purpose of a random stream. Its value is part of the key, so a changed value changes every run."""

    EPOCH_ORDER = 1
    VIEW = 2
    KEY_SHUFFLE = 3
    REPLACEMENT = 4
    MODEL_INIT = 5
    QUEUE_INIT = 6
    SUBSET = 7
    STEP = 8
    BANK_SAMPLE = 9
    VALUE_RANGE = 10
    DETECTION_VIEW = 30
    DETECTION_TRIAL = 31


class _Key(ISeedSequence):
    """Seed sequence that gives Philox the key as it is.

    `Philox(key=...)` would also read the system's entropy, which makes building a generator four times as slow.
    """

    def __init__(self, seed: int, purpose: Purpose) -> None:
        self.words = np.array([seed, purpose], np.uint64)

    def generate_state(self, n_words: int, dtype: object = np.uint64) -> NDArray[np.uint64]:
        """Return the key: two words of 64 bits."""
        return self.words


def generator(seed: int, purpose: Purpose, a: int = 0, b: int = 0, c: int = 0) -> np.random.Generator:
    """Return the random generator of one purpose at the coordinates (a, b, c), each in 0 .. 2**64-1."""
    counter = np.array([0, c, b, a], np.uint64)  # word 0 counts the blocks drawn
    philox = np.random.Philox(_Key(seed, purpose), counter=counter)  # type: ignore[arg-type]  # not in its stubs
    return np.random.Generator(philox)


def permutation(seed: int, purpose: Purpose, size: int, a: int = 0) -> NDArray[np.int64]:
    """Return a random permutation of 0 .. size-1, the same for every caller with the same arguments."""
    return generator(seed, purpose, a).permutation(size)


def torch_seed(seed: int, purpose: Purpose, a: int = 0) -> int:
    """Return a 63-bit seed for a torch generator."""
    return int(generator(seed, purpose, a).integers(2**63 - 1))
