"""Workers under each start method: fork, forkserver (the default on Linux from Python 3.14), spawn (macOS, Windows)."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from source_kinds import write_sources
from torch import Tensor

from mocokit.data.augment.recipes import AUG_PLUS
from mocokit.data.batch import Each
from mocokit.data.loading.loader import build_loader
from mocokit.data.single_view import SingleViews
from mocokit.data.sources.open_source import open_source
from mocokit.data.sources.sources import ImageSource
from mocokit.data.views import ImageReader, LocalCrops, PlainViews, TwoViews
from mocokit.detection.batches import DetectionViews
from mocokit.detection.data_sets import open_voc

SLOW = pytest.mark.slow


@pytest.fixture
def start_method(request: pytest.FixtureRequest) -> Iterator[str]:
    """The start method of this process, which the loader takes."""
    earlier = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(earlier, force=True)


class ManyViews:
    """Batches of several makers, so that one pair of workers can be asked for all; a position names its maker."""

    def __init__(self, makers: dict[str, Any]) -> None:
        self.makers = makers

    def make_batch(self, positions: Sequence[Any], each: Each) -> Any:
        ((name, of_maker),) = positions
        return self.makers[name].make_batch(of_maker, each)


def _makers_of_source(name: str, source: ImageSource) -> Iterator[tuple[str, Any, list[Any]]]:
    """Yield the name, the maker and the positions of each kind of batch of a source's images."""
    reader = ImageReader(source, max_image_px=10**6, seed=0)
    local = LocalCrops(num_crops=2, size_px=16, recipe=AUG_PLUS)
    two = TwoViews(reader, AUG_PLUS, size_px=24, seed=0, pipeline="fast", local=local)
    crops = TwoViews(reader, AUG_PLUS, size_px=24, seed=0, pipeline="reference", crops_only=True)
    drawn = [(1, index) for index in range(len(source))]
    yield f"{name}: two views", two, drawn
    yield f"{name}: crops", crops, drawn
    yield f"{name}: one view", SingleViews(reader, size_px=24, seed=0), drawn
    yield f"{name}: plain", PlainViews(reader, size_px=24, crop_ratio=0.9), [index for _, index in drawn]


def _flatten(value: Any) -> Iterator[Any]:
    """Yield the tensors and other leaves of a batch."""
    if isinstance(value, Tensor | str | int | type(None)):
        yield value
    elif isinstance(value, dict):
        yield from (leaf for key in sorted(value) for leaf in _flatten(value[key]))
    elif isinstance(value, tuple | list):
        yield from (leaf for part in value for leaf in _flatten(part))
    else:
        yield from _flatten(vars(value))


def _is_equal(a: Any, b: Any) -> bool:
    pairs = list(zip(_flatten(a), _flatten(b), strict=True))
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in pairs) and len(pairs) >= 2


@pytest.mark.parametrize("start_method", ["fork", "spawn", pytest.param("forkserver", marks=SLOW)], indirect=True)
def test_workers_give_the_batches_of_threads_for_every_source_and_kind_of_view(
    start_method: str, pasted_voc: Path, tmp_path: Path
) -> None:
    sources = {name: open_source(data) for name, data in write_sources(tmp_path, per_class=2).items()}
    found = [part for name, source in sources.items() for part in _makers_of_source(name, source)]
    images = open_voc(pasted_voc, ["2007_trainval"]).images
    detection = DetectionViews(
        images=images, short_sides_px=(80, 96), max_long_side_px=170, mirror=True, masks=False, seed=0
    )
    found.append(("detection", detection, [(2, index) for index in range(len(images))]))
    views = ManyViews({name: maker for name, maker, _ in found})
    order = [[(name, positions)] for name, _, positions in found]
    expected = list(build_loader(views, order, num_workers=0, num_threads=2))  # the sources are read from here first
    got = list(build_loader(views, order, num_workers=2))
    different = [name for (name, _, _), a, b in zip(found, expected, got, strict=True) if not _is_equal(a, b)]
    assert different == []
    assert len(found) == 4 * 13 + 1


class Numbers:
    """Batches that are their own positions."""

    def make_batch(self, positions: Sequence[int], each: Each) -> Tensor:
        return torch.tensor(list(each(int, positions)))


@SLOW
@pytest.mark.parametrize("start_method", ["spawn", "forkserver"], indirect=True)
def test_killed_workers_are_replaced_where_workers_are_not_forked(start_method: str) -> None:
    order = [[number] for number in range(60)]
    before = set(multiprocessing.active_children())
    deaths = list[str]()
    batches = iter(build_loader(Numbers(), order, num_workers=2, on_worker_death=deaths.append))
    came = [next(batches).tolist()]
    for worker in set(multiprocessing.active_children()) - before:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
    came += [batch.tolist() for batch in batches]
    assert came == order
    assert len(deaths) == 1
    assert "was killed, most likely for lack of memory" in deaths[0]


class KeepsFileOpen:
    """A source whose copy can't be sent once it was read from."""

    labels = None
    class_names = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: Any = None

    def __len__(self) -> int:
        return 4

    def name(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> NDArray[np.uint8]:
        self.file = self.file or self.path.open("rb")
        return np.full((32, 32, 3), index, np.uint8)


@pytest.mark.parametrize("start_method", ["spawn"], indirect=True)
def test_an_object_that_keeps_a_file_open_is_refused_in_one_line(start_method: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    source = open_source(KeepsFileOpen(tmp_path / "a"))
    views = PlainViews(ImageReader(source, max_image_px=10**6, seed=0), size_px=24, crop_ratio=0.9)
    with pytest.raises(ValueError, match=r"data: can't be sent to worker processes \(cannot pickle .*__getstate__"):
        next(iter(build_loader(views, [[0]], num_workers=1)))
    source.file.close()  # type: ignore[attr-defined]


TRAINER = """
import json, multiprocessing, signal, sys, time

import torch

from mocokit.data.loading.loader import build_loader

class Numbers:
    def make_batch(self, positions, each):
        return torch.tensor(list(each(int, positions)))

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    signals = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: signals.append(number))
    deaths = []
    batches = iter(build_loader(Numbers(), [[n] for n in range(400)], num_workers=2, on_worker_death=deaths.append))
    assert [next(batches).tolist() for _ in range(4)] == [[0], [1], [2], [3]]  # both workers have started
    print(json.dumps([worker.pid for worker in multiprocessing.active_children()]), flush=True)
    sys.stdin.readline()  # the signals have been sent
    assert [next(batches).tolist() for _ in range(4, 300)] == [[n] for n in range(4, 300)]
    print(json.dumps([deaths, sorted(set(signals))]), flush=True)
    time.sleep(600)
"""


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc").exists(), reason="asks /proc which processes live")
@pytest.mark.parametrize("method", [pytest.param(name, marks=SLOW) for name in ("fork", "spawn", "forkserver")])
def test_workers_survive_signals_to_their_group_and_end_with_a_killed_trainer(method: str, tmp_path: Path) -> None:
    (tmp_path / "trainer.py").write_text(TRAINER)
    trainer = subprocess.Popen(
        [sys.executable, str(tmp_path / "trainer.py"), method],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert trainer.stdin is not None
    assert trainer.stdout is not None
    with trainer:
        workers = json.loads(trainer.stdout.readline())
        assert len(workers) == 2
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.killpg(trainer.pid, number)
            time.sleep(0.3)
        time.sleep(6.5)  # ours looks each second for signals and for the trainer, torch each 5 s for its parent
        assert all(map(_is_alive, workers))
        print(file=trainer.stdin, flush=True)
        deaths, signals = json.loads(trainer.stdout.readline())
        assert (deaths, signals) == ([], [signal.SIGINT, signal.SIGTERM])
        os.kill(trainer.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while any(map(_is_alive, workers)):
        assert time.monotonic() < deadline, "a worker outlives the trainer"
        time.sleep(0.05)
