"""Read shards in any order, from disk and over the network."""

import os
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mocokit.data.augment.recipes import AUG_PLUS
from mocokit.data.batch import ViewBatch
from mocokit.data.loading.loader import BatchOrder, build_loader
from mocokit.data.packing.pack import pack
from mocokit.data.sources import shards as shards_module
from mocokit.data.sources.open_source import absolute_location, open_source
from mocokit.data.sources.shards import ShardSource, expand_pattern, open_shards
from mocokit.data.sources.sources import ImageSource
from mocokit.data.views import ImageReader, TwoViews
from tests.data.reading import Reads


@pytest.fixture(scope="module")
def packed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos` in several shards."""
    folder = tmp_path_factory.mktemp("packed")
    pack(photos, folder, max_image_px=10**6, shard_bytes=40_000)
    return folder


@pytest.fixture
def own_packed(packed: Path, tmp_path: Path) -> Path:
    """A copy of `packed` that a test may damage."""
    for path in packed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def _pattern(place: object, shards: Path) -> str:
    return f"{place}/shard-{{00000..{len(list(shards.glob('*.tar'))) - 1:05d}}}.tar"


def _same(a: ImageSource, b: ImageSource) -> bool:
    return (a.labels, a.class_names) == (b.labels, b.class_names) and _images(a) == _images(b)


def _images(source: ImageSource) -> list[object]:
    return [source.read(index) for index in range(len(source))]


def _batches(source: ImageSource, *, num_workers: int) -> list[ViewBatch]:
    order = BatchOrder(
        num_images=len(source), global_batch_size=16, own_rows=range(16), start_step=0, total_steps=7, seed=3
    )
    views = TwoViews(ImageReader(source, max_image_px=10**6, seed=3), AUG_PLUS, size_px=32, seed=3, pipeline="fast")
    return list(build_loader(views, order, num_workers=num_workers))


def test_the_same_seed_gives_the_same_batches_as_the_folder(photos: Path, packed: Path) -> None:
    of_folder, of_shards = (_batches(open_source(place), num_workers=0) for place in (photos, packed))
    for a, b in zip(of_folder, of_shards, strict=True):
        assert torch.equal(a.image_ids, b.image_ids)
        assert torch.equal(a.query, b.query)
        assert torch.equal(a.key, b.key)


def test_a_pattern_and_its_folder_open_the_same_images(packed: Path) -> None:
    folder = open_source(packed)
    pattern = open_source(_pattern(packed, packed))
    assert _same(folder, pattern)
    assert folder.name(0) == pattern.name(0) == f"{packed}/shard-00000.tar:brick/000.jpg"


@pytest.mark.parametrize(
    ("pattern", "expanded"),
    [
        ("a{8..10}.tar", ["a8.tar", "a9.tar", "a10.tar"]),
        ("a{008..010}.tar", ["a008.tar", "a009.tar", "a010.tar"]),
        ("{0..1}/{2..3}", ["0/2", "0/3", "1/2", "1/3"]),
        ("a{b,c}.tar", ["a{b,c}.tar"]),
    ],
)
def test_ranges_in_braces_count_up(pattern: str, expanded: list[str]) -> None:
    assert expand_pattern(pattern) == expanded


def _count_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("num_files", [1, 2, 256])
def test_few_files_stay_open_and_reads_are_right(packed: Path, monkeypatch: pytest.MonkeyPatch, num_files: int) -> None:
    monkeypatch.setattr(shards_module, "MAX_OPEN_FILES", num_files)
    source = open_shards(str(packed))
    before = _count_open_files()
    order = np.random.default_rng(0).permutation(len(source))
    again = open_shards(str(packed))
    assert [source.read(int(i)) for i in order] == [again.read(int(i)) for i in order]
    assert _count_open_files() <= before + 2 * num_files
    del source, again
    assert _count_open_files() == before


def test_threads_close_no_file_that_another_reads(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "MAX_OPEN_FILES", 1)
    source = open_shards(str(packed))
    before = _count_open_files()
    order = np.random.default_rng(0).integers(len(source), size=4000).tolist()
    with ThreadPoolExecutor(8) as threads:
        got = list(threads.map(source.read, order))
    expected = _images(source)
    assert got == [expected[i] for i in order]
    del source
    assert _count_open_files() == before


def test_threads_that_come_and_go_leave_few_files_open(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "MAX_OPEN_FILES", 2)
    source = open_shards(str(packed))
    before = _count_open_files()
    for _ in range(5):  # one pool per epoch, like the kNN monitor
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(source.read, range(len(source))))
    assert _count_open_files() <= before + 2


def _read_in_workers(source: ImageSource, context: str, *, num_workers: int = 2) -> list[object]:
    return list(DataLoader(Reads(source), batch_size=None, num_workers=num_workers, multiprocessing_context=context))


def test_forked_workers_read_the_same_with_files_open_before(packed: Path) -> None:
    source = open_source(packed)
    expected = _images(source)
    assert _read_in_workers(source, "fork") == expected
    assert _images(source) == expected, "the workers closed no file of this process when they ended"


def test_a_spawned_worker_does_not_use_its_parents_files(packed: Path) -> None:
    source = open_source(packed)
    expected = _images(source)
    assert _read_in_workers(source, "spawn", num_workers=1) == expected


def test_a_shard_that_is_cut_after_opening_gives_bad_images(own_packed: Path) -> None:
    source = open_source(own_packed)
    assert isinstance(source, ShardSource)
    shard = own_packed / "shard-00001.tar"
    _, offset, size, _ = source.index.members[:, source.index.members[0] == 1][:, -1]
    os.truncate(shard, int(offset + size // 2))
    bad = [i for i in range(len(source)) if not _readable(source, i)]
    assert bad == [int(np.flatnonzero(source.index.members[0] == 1)[-1])]
    with pytest.raises(OSError, match=f"the shard ends within this image: {size // 2} of {size} bytes"):
        source.read(bad[0])


def _readable(source: ImageSource, index: int) -> bool:
    try:
        source.read(index)
    except OSError:
        return False
    return True


def test_a_flipped_bit_is_a_bad_image(own_packed: Path) -> None:
    raw = bytearray((own_packed / "shard-00000.tar").read_bytes())
    raw[700] ^= 4
    (own_packed / "shard-00000.tar").write_bytes(raw)
    with pytest.raises(OSError, match="damaged: the bytes are not those that were packed"):
        open_source(own_packed).read(0)


def test_shards_that_are_not_those_of_the_index_are_errors(own_packed: Path) -> None:
    with pytest.raises(
        ValueError, match=r"2 shards up to shard-00001.tar, but the shard-index.npz beside them describes [0-9]+ up to"
    ):
        open_source(f"{own_packed}/shard-{{00000..00001}}.tar")
    last = sorted(own_packed.glob("*.tar"))[-1]
    os.truncate(last, 1000)
    with pytest.raises(
        ValueError, match=rf"{last}: 1000 bytes, but shard-index.npz says [0-9]+; copy or pack it again"
    ):
        open_source(own_packed)
    last.unlink()
    with pytest.raises(ValueError, match=rf"{last}: not found"):
        open_source(own_packed)


def test_packed_shards_open_when_their_index_is_lost(own_packed: Path, photos: Path) -> None:
    pattern = _pattern(own_packed, own_packed)
    (own_packed / "shard-index.npz").unlink()
    source = open_source(pattern)
    assert _images(source) == _images(open_source(photos))
    assert source.labels == open_source(photos).labels


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("{folder}/no-{{0..3}}.tar", "no-0.tar: not found"),
        ("{folder}/a-{{3..0}}.tar", r"\{{3..0\}} counts down"),
        ("{folder}/empty-{{0..0}}.tar", "no images in 1 shards"),
        ("{folder}/broken-{{0..0}}.tar", "not a readable uncompressed tar file"),
        ("memory://nowhere", "has no shard-index.npz of `mocokit pack`; give a folder that has one"),
        ("memory://photos.zip", "has no shard-index.npz of `mocokit pack`; .* or one uncompressed .tar"),
        ("memory://no.tar", "not found"),
        ("nonsense://x.tar", "nonsense"),
    ],
)
def test_an_error_of_opening_names_its_cause(tmp_path: Path, location: str, message: str) -> None:
    tarfile.open(tmp_path / "empty-0.tar", "w").close()
    (tmp_path / "broken-0.tar").write_bytes(b"x" * 3000)
    with pytest.raises(ValueError, match=f"data=.*{message.format()}"):
        open_source(location.format(folder=tmp_path))


def test_a_package_that_a_scheme_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ValueError, match=r"data=s3://bucket/x.tar: Install s3fs"):
        open_source("s3://bucket/x.tar")


@pytest.fixture
def memory(packed: Path) -> Iterator[str]:
    files = fsspec.filesystem("memory")
    files.put(f"{packed}/", "/bucket/photos/", recursive=True)
    yield "memory://bucket/photos"
    files.rm("/bucket", recursive=True)


@pytest.mark.parametrize("form", ["folder", "folder/", "pattern", "one"])
def test_any_file_system_of_fsspec_is_read(memory: str, packed: Path, form: str) -> None:
    if form == "one":
        first = open_source(f"{packed}/shard-00000.tar")
        fsspec.filesystem("memory").rm("/bucket/photos/shard-index.npz")
        assert _images(open_source(f"{memory}/shard-00000.tar")) == _images(first)
    else:
        place = {"folder": memory, "folder/": f"{memory}/", "pattern": _pattern(memory, packed)}[form]
        assert _same(open_source(place), open_source(packed))


def test_a_copy_that_stopped_half_way_is_an_error(memory: str, packed: Path) -> None:
    fsspec.filesystem("memory").rm(f"/bucket/photos/{sorted(packed.glob('*.tar'))[-1].name}")
    with pytest.raises(ValueError, match=r"shard-[0-9]+.tar: not found"):
        open_source(memory)


def test_paths_become_absolute_and_urls_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_location("s3://bucket/a-{0..3}.tar") == "s3://bucket/a-{0..3}.tar"
    assert absolute_location("a-{0..3}.tar") == f"{tmp_path}/a-{{0..3}}.tar"
    assert absolute_location("~") == str(Path.home())
