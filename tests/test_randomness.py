import numpy as np
import pytest

from mocokit.randomness import Purpose, generator


@pytest.mark.parametrize(("seed", "a", "b", "c"), [(0, 1, 2, 3), (2**63, 2**64 - 1, 0, 7)])
def test_a_generator_is_numpys_philox_of_key_and_counter(seed: int, a: int, b: int, c: int) -> None:
    key = np.array([seed, Purpose.VIEW], np.uint64)
    counter = np.array([0, c, b, a], np.uint64)
    numpys = np.random.Generator(np.random.Philox(key=key, counter=counter))
    ours = generator(seed, Purpose.VIEW, a, b, c)
    np.testing.assert_array_equal(ours.random(100), numpys.random(100))
    np.testing.assert_array_equal(ours.permutation(100), numpys.permutation(100))
