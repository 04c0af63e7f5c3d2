from pathlib import Path

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from mocokit.data.open_source import open_source
from mocokit.data.views import ImageReader
from mocokit.evaluate import knn
from mocokit.evaluate.features import EvaluationView, Features, choose_images, embed_pixels, extract_features
from mocokit.evaluate.knn import KnnProtocol, knn_accuracy
from tests.oracles import knn_loop

CPU = torch.device("cpu")


def _clusters(count: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (count,), generator=generator)
    centres = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    return Features(rows=centres[labels] + 1.5 * torch.randn(count, 16, generator=generator), labels=labels)


@pytest.mark.parametrize(
    "protocol", [KnnProtocol(1, 0.07), KnnProtocol(20, 0.07), KnnProtocol(200, 0.1), KnnProtocol(999, 0.5)]
)
def test_knn_equals_a_slow_loop(protocol: KnnProtocol) -> None:
    bank, queries = _clusters(250, 1), _clusters(60, 2)
    want = knn_loop(bank.rows, bank.labels, queries.rows, queries.labels, *protocol)
    assert 0.3 < want < 1.0, "neither trivial nor hopeless"
    assert knn_accuracy(bank, queries, [protocol], device=CPU)[protocol] == want


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, queries = _clusters(250, 1), _clusters(60, 2)
    whole = knn_accuracy(bank, queries, device=CPU)
    monkeypatch.setattr(knn, "CHUNK_BYTES", 4 * 250 * 7)
    assert knn_accuracy(bank, queries, device=CPU) == whole


def test_one_neighbour_equals_scikit_learn() -> None:
    bank, queries = _clusters(250, 1), _clusters(60, 2)
    model = KNeighborsClassifier(n_neighbors=1, metric="cosine").fit(bank.rows.numpy(), bank.labels.numpy())
    protocol = KnnProtocol(1, 0.07)
    want = model.score(queries.rows.numpy(), queries.labels.numpy())
    assert knn_accuracy(bank, queries, [protocol], device=CPU)[protocol] == pytest.approx(want)


def test_features_follow_their_images_and_bad_ones_are_left_out(own_photos: Path) -> None:
    source = open_source(own_photos)
    Path(source.name(3)).write_bytes(b"no image")
    view = EvaluationView(size_px=16, crop_ratio=1.0, num_workers=0)
    images = choose_images(ImageReader(source, max_image_px=10**6, seed=0), view)
    features = extract_features(embed_pixels(torch.nn.Identity()), images, device=CPU, batch_size=7)
    assert features.rows.shape == (79, 3 * 16 * 16)
    assert features.labels.tolist() == [label for i, label in enumerate(images.labels) if i != 3]


def test_classes_are_matched_by_name(own_photos: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(own_photos / "grass", tmp_path / "t" / "grass")
    shutil.copytree(own_photos / "cat", tmp_path / "t" / "cat")
    bank, test = open_source(own_photos), open_source(tmp_path / "t")
    view = EvaluationView(size_px=16, crop_ratio=1.0, num_workers=0)
    images = choose_images(ImageReader(test, max_image_px=10**6, seed=0), view, class_names=bank.class_names)
    assert {bank.class_names[label] for label in images.labels} == {"cat", "grass"}
    with pytest.raises(ValueError, match=r"classes .'brick', 'coffee', 'rocket'. are not among those"):
        choose_images(ImageReader(bank, max_image_px=10**6, seed=0), view, class_names=test.class_names)
