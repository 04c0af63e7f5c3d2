"""An evaluation protocol from outside the package: handed over as an object, or found by the name of an entry point."""

from pathlib import Path

import pytest
import torch

from mocokit.evaluate.contract import EvalContext, EvalProtocol, Score
from mocokit.evaluate.evaluation import evaluate


class NearestClassMean(EvalProtocol):
    id = "nearest-class-mean"

    def run(self, context: EvalContext) -> list[Score]:
        train = context.train_features
        means = torch.stack([train.rows[train.labels == label].mean(dim=0) for label in range(context.num_classes)])
        nearest = torch.cdist(context.test_features.rows, means).argmin(dim=1)
        return [Score(protocol=self.id, accuracy=float((nearest == context.test_features.labels).float().mean()))]


INSTALLED = NearestClassMean()


def test_an_own_protocol_is_evaluated_beside_knn(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "someones_package-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: someones-package\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(f"[mocokit.protocols]\nclass-mean = {__name__}:INSTALLED\n")
    monkeypatch.syspath_prepend(package.parent)
    rows = evaluate(run, data=photos, protocols=["knn", NearestClassMean()], num_workers=0, device_name="cpu")
    own = {row.features: row for row in rows if row.protocol == "nearest-class-mean"}
    assert list(own) == ["raw pixels", "random init", "pre-trained"] and len(rows) == 9
    assert all(0.2 < row.accuracy <= 1 and row.train_images == 72 and row.minutes > 0 for row in own.values())
    (by_name,) = evaluate(run, data=photos, protocols=["class-mean"], baselines=False, device_name="cpu")
    assert by_name.accuracy == own["pre-trained"].accuracy, "the entry point leads to the same protocol"
    with pytest.raises(ValueError, match=r"protocols='class-man': unknown; did you mean class-mean\? .*'knn'"):
        evaluate(run, data=photos, protocols=["class-man"], device_name="cpu")
