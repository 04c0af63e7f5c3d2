import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from mocokit.data.sources.open_source import open_source
from mocokit.data.views import ImageReader
from mocokit.evaluate import knn
from mocokit.evaluate.features import EvaluationView, Features, choose_images, embed_pixels, extract_features
from mocokit.evaluate.knn import KnnProtocol, knn_accuracy, nearest_classes
from tests.oracles import knn_loop
from tests.run_process import finish, start

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
    bank = _clusters(250, 1)
    queries = _clusters(60, 2)
    want = knn_loop(bank.rows, bank.labels, queries.rows, queries.labels, *protocol)
    assert 0.3 < want < 1.0, "neither trivial nor hopeless"
    assert knn_accuracy(bank, queries, [protocol], device=CPU)[protocol] == want


@pytest.mark.parametrize(("chunk_bytes", "query_chunk"), [(8 * 40 * 23, 7), (8 * 17 * 400, 1), (8 * 20, 20), (1, 5)])
def test_chunks_of_bank_and_queries_change_nothing(
    monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, query_chunk: int
) -> None:
    bank = _clusters(90, 1)
    queries = _clusters(20, 2)
    similarity, classes = nearest_classes(bank, queries.rows, 30, device=CPU)
    accuracy = knn_accuracy(bank, queries, device=CPU)
    monkeypatch.setattr(knn, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(knn, "QUERY_CHUNK", query_chunk)
    in_chunks = nearest_classes(bank, queries.rows, 30, device=CPU)
    torch.testing.assert_close(in_chunks[0], similarity)
    assert torch.equal(in_chunks[1], classes)
    assert knn_accuracy(bank, queries, device=CPU) == accuracy


def test_nearest_rows_come_first_with_their_classes() -> None:
    bank = _clusters(250, 1)
    queries = _clusters(60, 2)
    cosine = torch.nn.functional.cosine_similarity(queries.rows[:, None], bank.rows[None], dim=2)  # (60, 250)
    want, order = cosine.sort(dim=1, descending=True)
    similarity, classes = nearest_classes(bank, queries.rows, 30, device=CPU)
    torch.testing.assert_close(similarity, want[:, :30])
    assert torch.equal(classes.long(), bank.labels[order[:, :30]])


def test_one_neighbour_equals_scikit_learn() -> None:
    bank = _clusters(250, 1)
    queries = _clusters(60, 2)
    model = KNeighborsClassifier(n_neighbors=1, metric="cosine").fit(bank.rows.numpy(), bank.labels.numpy())
    protocol = KnnProtocol(1, 0.07)
    want = model.score(queries.rows.numpy(), queries.labels.numpy())
    assert knn_accuracy(bank, queries, [protocol], device=CPU)[protocol] == pytest.approx(want)


@pytest.mark.parametrize(("k", "temperature"), [(20, 0.07), (200, 0.1)])
def test_weighted_votes_equal_those_of_scikit_learn(k: int, temperature: float) -> None:
    bank = _clusters(250, 1)
    queries = _clusters(60, 2)
    model = KNeighborsClassifier(
        n_neighbors=k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(bank.rows.double().numpy(), bank.labels.numpy())
    protocol = KnnProtocol(k, temperature)
    want = model.score(queries.rows.double().numpy(), queries.labels.numpy())
    assert knn_accuracy(bank, queries, [protocol], device=CPU)[protocol] == pytest.approx(want)


ON_RANKS = """
import json, sys, torch
from mocokit import distributed
from mocokit.evaluate.features import Features
from mocokit.evaluate.knn import KnnProtocol, knn_accuracy, nearest_classes
bank, labels, queries, truth = torch.load(sys.argv[1])
with distributed.session("cpu"):
    first, every = distributed.rank() == 0, []
    for cut in (125, 240):  # halves; then a second rank with fewer rows than k
        own = slice(0, cut) if first else slice(cut, None)
        accuracy = knn_accuracy(
            Features(rows=bank[own], labels=labels[own]), Features(rows=queries, labels=truth),
            [KnnProtocol(20, 0.07), KnnProtocol(200, 0.1)], device=torch.device("cpu"), bank_is_shard=True,
        )
        every += distributed.all_gather_objects(list(accuracy.values()))
if first:
    print(json.dumps(every))
"""


@pytest.mark.dist
def test_two_ranks_with_a_part_of_the_bank_each_equal_one_process(tmp_path: Path) -> None:
    bank = _clusters(250, 1)
    queries = _clusters(60, 2)
    torch.save((bank.rows, bank.labels, queries.rows, queries.labels), tmp_path / "features.pt")
    (tmp_path / "on_ranks.py").write_text(ON_RANKS)
    program = (str(tmp_path / "on_ranks.py"),)
    code, output = finish(start([str(tmp_path / "features.pt")], ranks=2, program=program))
    assert code == 0, output[-2000:]
    want = list(knn_accuracy(bank, queries, device=CPU).values())
    assert json.loads(output) == [want] * 4, "on every rank, however the bank is cut"


def test_features_follow_their_images_and_bad_ones_are_left_out(own_photos: Path) -> None:
    source = open_source(own_photos)
    Path(source.name(3)).write_bytes(b"no image")
    view = EvaluationView(size_px=16, crop_ratio=1.0, num_workers=0)
    images = choose_images(ImageReader(source, max_image_px=10**6, seed=0), view, max_bad_share=0.02)
    features = extract_features(embed_pixels(torch.nn.Identity()), images, device=CPU, batch_size=7)
    assert [bad.index for bad in features.bad] == [3] and images.num_readable == 79
    assert features.rows.shape == (79, 3 * 16 * 16)
    assert features.labels.tolist() == [label for i, label in enumerate(images.labels) if i != 3]


def test_classes_are_matched_by_name(own_photos: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(own_photos / "grass", tmp_path / "t" / "grass")
    shutil.copytree(own_photos / "cat", tmp_path / "t" / "cat")
    bank = open_source(own_photos)
    test = open_source(tmp_path / "t")
    view = EvaluationView(size_px=16, crop_ratio=1.0, num_workers=0)
    images = choose_images(ImageReader(test, max_image_px=10**6, seed=0), view, class_names=bank.class_names)
    assert {bank.class_names[label] for label in images.labels} == {"cat", "grass"}
    with pytest.raises(ValueError, match=r"classes .'brick', 'coffee', 'rocket'. are not among those"):
        choose_images(ImageReader(bank, max_image_px=10**6, seed=0), view, class_names=test.class_names)
