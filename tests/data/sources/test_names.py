"""Names as one block of bytes: the same strings as a tuple."""

import pickle
from pathlib import PurePosixPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mocokit.data.sources.layout import folders_of
from mocokit.data.sources.names import Names, join_names

ODD = (
    "",
    "a/b.jpg",
    "caf\xe9.png",
    "cafe\u0301.png",
    "\udce9\udcff.jpg",
    "日本/語.jpg",
    "new\nline.jpg",
    "a\0b.jpg",
    "",
)


def test_names_are_the_strings_they_were_made_of() -> None:
    names = Names(ODD)
    assert tuple(names) == ODD
    assert [names[index] for index in range(-len(ODD), len(ODD))] == [*ODD, *ODD]
    assert [names[1:3], names[-4:], names[::-2], names[5:2]] == [ODD[1:3], ODD[-4:], ODD[::-2], ()]
    assert names.index("日本/語.jpg") == 5
    assert "caf\xe9.png" in names
    assert "cafe.png" not in names
    for outside in (len(ODD), -len(ODD) - 1):
        with pytest.raises(IndexError, match="of 9"):
            names[outside]


@pytest.mark.parametrize("names", [(), ("",), ODD, tuple(f"{i}.jpg" for i in range(10_000))])
def test_names_equal_a_tuple_in_both_directions_and_after_pickling(names: tuple[str, ...]) -> None:
    made = Names(names)
    assert made == names
    assert names == made
    assert hash(made) == hash(names)
    assert pickle.loads(pickle.dumps(made)) == made
    assert made != (*names, "more")
    assert Names((*names, "more")) != made
    assert len(made) == len(names)
    assert list(made[1:9000]) == list(names[1:9000])


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_joined_names_are_those_of_strings_and_can_be_split_again(names: list[str]) -> None:
    joined = "\0".join(names).encode()
    assert join_names(names) == join_names(Names(names)) == joined
    assert list(Names.split(np.frombuffer(joined, np.uint8))) == names


def test_no_names_are_joined_to_no_bytes() -> None:
    assert join_names(()) == join_names(Names()) == b""
    assert len(Names.split(np.empty(0, np.uint8))) == 0


_PARTS = st.lists(st.sampled_from(["", ".", "..", "a", "b.c", " ", "\udcff", "caf\xe9"]), max_size=5)


@given(st.lists(_PARTS.map(lambda parts: "/".join([*parts, "x.jpg"])), max_size=8))
def test_folders_of_a_path_are_those_of_pathlib(names: list[str]) -> None:
    assert folders_of(names) == [PurePosixPath(name).parts[:-1] for name in names]
