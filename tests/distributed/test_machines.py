"""Work that the first rank of each machine does for the others."""

from pathlib import Path

import pytest

from mocokit import distributed
from tests.run_process import finish, start

SHARE = """
import os
import sys
from pathlib import Path
from mocokit import distributed
from mocokit.config.presets import get_preset
from mocokit.config.toml import replace_settings
from mocokit.run.build_images import find_source, find_test_source

rank = int(os.environ["RANK"])
os.environ["GROUP_RANK"] = str(rank // 2)  # two machines of two ranks
os.environ["LOCAL_RANK"] = str(rank % 2)
work = Path(sys.argv[0]).parent
machine = "ab"[rank // 2]

def made():
    (work / f"made_by_{rank}").touch()
    return {"machine": machine, "block": bytes(10_000_000)}

def fails():
    if machine == "b":
        raise FileNotFoundError("no such folder on machine b")
    return machine

with distributed.session("cpu"):
    got = distributed.from_first_of_machine(made)
    assert got["machine"] == machine and len(got["block"]) == 10_000_000
    try:
        distributed.from_first_of_machine(fails)
    except (ValueError, OSError) as error:
        assert str(error) == "no such folder on machine b"
        assert isinstance(error, OSError) == (rank == 2), (rank, error)
    else:
        raise AssertionError(f"rank {rank} went on")
    listed = 0
    scandir = os.scandir

    def counted(place):
        global listed
        listed += 1
        return scandir(place)

    os.scandir = counted
    settings = {"data.source": str(work / "photos"), "data.test": str(work / "tests")}
    config = replace_settings(get_preset("moco-v2"), settings)
    source = find_source(config, None)
    assert list(source.names) == ["a/0.jpg", "b/0.jpg"] and source.read(1) == b"b/0.jpg"
    assert list(find_test_source(config, source).names) == ["a/0.jpg", "b/0.jpg"]
    assert listed == (6 if rank in (0, 2) else 0), (rank, listed)
"""


@pytest.mark.dist
def test_the_first_rank_of_each_machine_works_for_the_others(tmp_path: Path) -> None:
    for name in ("photos/a/0.jpg", "photos/b/0.jpg", "tests/a/0.jpg", "tests/b/0.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name.partition("/")[2])
    script = tmp_path / "ranks.py"
    script.write_text(SHARE, encoding="utf-8")
    code, output = finish(start([], ranks=4, program=(str(script),)))
    assert code == 0, output
    assert sorted(path.name for path in tmp_path.glob("made_by_*")) == ["made_by_0", "made_by_2"]


def test_a_process_alone_works_for_itself() -> None:
    assert distributed.from_first_of_machine(lambda: "mine") == "mine"
    with pytest.raises(FileNotFoundError, match="gone"):
        distributed.from_first_of_machine(_fail)


def _fail() -> None:
    raise FileNotFoundError("gone")
