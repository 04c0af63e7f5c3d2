"""Every reader reads a damaged file or refuses it with a clear error. `experiments/fuzz.py` does so for longer."""

from pathlib import Path

import pytest
from fuzz import LISTED, build_readers, mutate, try_input
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

READERS = build_readers()
NUMBER = st.integers(0, 2**20)
EDITS = st.lists(st.tuples(st.integers(0, 5), NUMBER, NUMBER), max_size=8)


@pytest.mark.parametrize("kind", READERS)
def test_a_damaged_file_is_read_or_refused(kind: str, tmp_path: Path) -> None:
    reader = READERS[kind]
    for name in LISTED:
        (tmp_path / name).touch()

    @settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(choice=NUMBER, edits=EDITS)
    def check(choice: int, edits: list[tuple[int, int, int]]) -> None:
        assert try_input(reader, reader.mend(mutate(reader.seeds, choice, edits)), tmp_path) in {"read", "refused"}

    check()


@pytest.mark.parametrize("kind", [kind for kind in READERS if kind != "backbone"])
def test_an_honest_file_is_read(kind: str, tmp_path: Path) -> None:
    reader = READERS[kind]
    for name in LISTED:
        (tmp_path / name).touch()
    assert try_input(reader, reader.mend(reader.seeds[0]), tmp_path) == "read"


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=15, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@example(raw=b"")
@given(raw=st.binary(max_size=600))
def test_noise_is_refused_or_read(kind: str, tmp_path: Path, raw: bytes) -> None:
    assert try_input(READERS[kind], READERS[kind].mend(raw), tmp_path) in {"read", "refused"}
