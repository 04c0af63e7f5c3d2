"""CIFAR-10 and CIFAR-100 as they are distributed, in the Python and the binary version."""

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mocokit.data.sources.left_out import describe_source
from mocokit.data.sources.open_source import open_source, with_columns

NAMES = ("airplane", "automobile", "bird")


def _rows(count: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def _write_python(folder: Path, protocol: int = 2, keys: type = str) -> None:
    """Write CIFAR-10's Python version with 4 images a batch: image i of each batch has class i % 3."""
    folder.mkdir(parents=True)

    def key(text: str) -> Any:
        return text if keys is str else text.encode()

    for number, name in enumerate(["data_batch_1", "data_batch_2", "test_batch"]):
        batch = {key("data"): _rows(4, number), key("labels"): [0, 1, 2, 0], key("filenames"): [key("a.png")] * 4}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    meta = {key("label_names"): [key(name) for name in NAMES], key("num_vis"): 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=protocol))


def _image(rows: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
    """Return an image by the description on the data set's page: 1024 red, 1024 green, 1024 blue values, row by row."""
    planes = [rows[index, start : start + 1024].reshape(32, 32) for start in (0, 1024, 2048)]
    return np.stack(planes, axis=2)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("keys", [str, bytes])
def test_the_python_version_is_read_with_its_class_names(tmp_path: Path, protocol: int, keys: type) -> None:
    _write_python(tmp_path / "cifar-10-batches-py", protocol, keys)
    source = open_source(tmp_path / "cifar-10-batches-py")
    assert (len(source), source.labels, source.class_names) == (8, (0, 1, 2, 0) * 2, NAMES)
    for index in range(8):
        assert np.array_equal(source.read(index), _image(_rows(4, index // 4), index % 4))
    assert source.name(5) == f"{tmp_path}/cifar-10-batches-py/data_batch_2#1"
    assert describe_source(source) == (
        "8 images in 3 classes (airplane 4, automobile 2, bird 2) (its test_batch is left out here, and evaluations "
        "test on it; give the file itself to use its images)"
    )


def test_the_test_batch_is_the_test_part(tmp_path: Path) -> None:
    _write_python(tmp_path / "cifar-10-batches-py")
    source = open_source(tmp_path / "cifar-10-batches-py")
    assert source.test_part == str(tmp_path / "cifar-10-batches-py/test_batch")  # type: ignore[attr-defined]
    test = open_source(source.test_part)  # type: ignore[attr-defined]
    assert (len(test), test.class_names) == (4, NAMES)
    assert np.array_equal(test.read(3), _image(_rows(4, 2), 3))


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_the_archive_is_read_as_it_was_downloaded(tmp_path: Path, mode: str) -> None:
    _write_python(tmp_path / "cifar-10-batches-py")
    path = tmp_path / ("c.tar.gz" if mode == "w:gz" else "c.tar")
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        archive.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    packed = open_source(path)
    folder = open_source(tmp_path / "cifar-10-batches-py")
    assert (packed.labels, packed.class_names) == (folder.labels, folder.class_names)
    assert all(np.array_equal(packed.read(index), folder.read(index)) for index in range(8))
    assert packed.sha256 == folder.sha256  # type: ignore[attr-defined]
    test = open_source(packed.test_part)  # type: ignore[attr-defined]
    assert np.array_equal(test.read(0), _image(_rows(4, 2), 0))


def test_cifar_100_has_fine_and_coarse_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for number, name in enumerate(("train", "test")):
        batch = {"data": _rows(3, number), "fine_labels": [2, 0, 1], "coarse_labels": [1, 0, 1]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {"fine_label_names": ["apple", "bee", "cup"], "coarse_label_names": ["food", "insects"]}
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    fine = open_source(folder)
    assert (fine.labels, fine.class_names) == ((2, 0, 1), ("apple", "bee", "cup"))
    assert "(fine labels; its test is left out here, and evaluations test on it" in describe_source(fine)
    coarse = open_source(with_columns(str(folder), label_column="coarse"))
    assert (coarse.labels, coarse.class_names) == ((1, 0, 1), ("food", "insects"))
    with pytest.raises(ValueError, match=r"^label_column=middle: .* has the labels fine, coarse"):
        open_source(with_columns(str(folder), label_column="middle"))


def test_the_binary_versions_are_read(tmp_path: Path) -> None:
    ten = tmp_path / "cifar-10-batches-bin"
    hundred = tmp_path / "cifar-100-binary"
    for folder in (ten, hundred):
        folder.mkdir()
    rows = _rows(3, 0)
    labels = np.array([[2], [0], [1]], np.uint8)
    (ten / "data_batch_1.bin").write_bytes(np.hstack([labels, rows]).tobytes())
    (ten / "test_batch.bin").write_bytes(np.hstack([labels, rows]).tobytes())
    (ten / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    (hundred / "train.bin").write_bytes(np.hstack([labels // 2, labels, rows]).tobytes())
    (hundred / "fine_label_names.txt").write_text("apple\nbee\ncup\n")
    (hundred / "coarse_label_names.txt").write_text("food\ninsects\n")
    for folder, names in ((ten, NAMES), (hundred, ("apple", "bee", "cup"))):
        source = open_source(folder)
        assert (source.labels, source.class_names) == ((2, 0, 1), names)
        assert np.array_equal(source.read(1), _image(rows, 1))
    assert open_source(f"{hundred}#label=coarse").class_names == ("food", "insects")
    assert open_source(ten / "test_batch.bin").labels == (2, 0, 1)


def test_without_the_file_of_names_classes_are_numbers(tmp_path: Path) -> None:
    _write_python(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py/batches.meta").unlink()
    assert open_source(tmp_path / "cifar-10-batches-py").class_names == ("000", "001", "002")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"data": np.zeros((2, 3072), np.uint8)}, "its labels are not a list of 2"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "its labels are not a list of 2"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, -1]}, "not numbers from 0 to 255"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, "x"]}, "not numbers from 0 to 255"),
        ({"data": np.zeros((2, 3071), np.uint8), "labels": [1, 1]}, r"no array \(n, 3072\)"),
        ({"data": np.zeros((2, 3072), np.int16), "labels": [1, 1]}, "not of uint8"),
        ({"labels": [1]}, r"no array \(n, 3072\)"),
        ([1, 2], "it holds no dict"),
    ],
)
def test_a_batch_of_another_shape_is_an_error_that_names_the_file(tmp_path: Path, batch: Any, message: str) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(ValueError, match=rf"data=.*data_batch_1: .*{message}"):
        open_source(folder)


def test_a_folder_without_training_batches_and_a_cut_archive_are_errors(tmp_path: Path) -> None:
    _write_python(tmp_path / "cifar-10-batches-py")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        archive.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    (tmp_path / "c.tar.gz").write_bytes(file.getvalue()[: len(file.getvalue()) // 2])
    with pytest.raises(ValueError, match=r"can't be read as CIFAR"):
        open_source(tmp_path / "c.tar.gz")
    for path in (tmp_path / "cifar-10-batches-py").glob("data_batch_*"):
        path.unlink()
    with pytest.raises(ValueError, match="lacks CIFAR's training batches"):
        open_source(tmp_path / "cifar-10-batches-py")


def test_an_archive_that_unpacks_to_more_than_cifar_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_python(tmp_path / "cifar-10-batches-py")
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr("mocokit.data.sources.cifar.MAX_BYTES", 20_000)
    with pytest.raises(ValueError, match="unpacks to more bytes than CIFAR has"):
        open_source(tmp_path / "c.tar.gz")
