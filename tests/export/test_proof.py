"""The proof finds each difference, and an export that differs is not kept."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mocokit.cli import main
from mocokit.engine.agreement import weights_digest
from mocokit.engine.backbone_file import LoadedBackbone, load_backbone
from mocokit.export.proof import BATCH_SIZES, ExportMismatchError, prove
from mocokit.export.targets import Exported
from mocokit.run.export import export_run

FinishedRun = Callable[[str], Path]


def _nearly(backbone: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda images: backbone(images).relu() + 2e-4 * (backbone(images) == 0)  # features are >= 0


def export_broken(loaded: LoadedBackbone, out: Path) -> Exported:
    """A target whose reader gives slightly other features."""
    out.write_text("weights")
    return Exported(files=(out,), readers={"broken 1.0": _nearly(loaded.backbone)}, usage="")


def test_the_largest_difference_of_any_feature_is_found(
    finished_run: FinishedRun, noise: Callable[..., Tensor]
) -> None:
    loaded = load_backbone(finished_run("resnet18"))
    pixels = noise(sum(BATCH_SIZES), size=32)

    def one_number_off(images: Tensor) -> Tensor:
        features: Tensor = loaded.backbone(images).clone()
        features[-1, features[-1].abs().argmin()] -= 5e-5  # a small one, where float32 is fine enough to show it
        return features

    found = prove(loaded, {"ours": loaded.backbone, "one off": one_number_off}, pixels).differences
    assert found["ours"] == 0
    assert found["one off"] == pytest.approx(5e-5, rel=0.05)


@pytest.mark.parametrize(
    "wrong", [lambda f: f + 1.1e-4 * (f.abs() < 0.1), lambda f: f * torch.nan, lambda f: f[:, :-1], lambda f: f[:1]]
)
def test_other_features_are_refused(
    finished_run: FinishedRun, noise: Callable[..., Tensor], wrong: Callable[[Tensor], Tensor]
) -> None:
    loaded = load_backbone(finished_run("resnet18"))
    with pytest.raises(ExportMismatchError, match="other gives other features: they differ by"):
        prove(loaded, {"other": lambda x: wrong(loaded.backbone(x))}, noise(6, size=32))


def test_a_file_that_fails_the_proof_is_not_kept(finished_run: FinishedRun, tmp_path: Path) -> None:
    with pytest.raises(ExportMismatchError, match=r"differ by 2.0e-04, 1.0e-04 is allowed"):
        export_run(finished_run("resnet18"), to=export_broken, out=tmp_path / "weights.bin")
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_the_difference_and_how_to_load(
    finished_run: FinishedRun, tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished_run("resnet18")
    out = tmp_path / "net.pth"
    assert main(["export", str(run), "--to", "torchvision", str(out), "--data", str(photos)]) == 0
    printed = capsys.readouterr().out
    assert f"wrote {out}, {out}.md, {out}.json" in printed
    assert "largest difference from mocokit's features: 0.0e+00 (torchvision" in printed
    assert f"6 images of {photos.name})" in printed
    assert "net = torchvision.models.resnet18()" in printed
    assert main(["export", str(run), "--to", "torchvision", str(out)]) == 1
    assert "exists; choose another name" in capsys.readouterr().err


def test_the_card_tells_run_data_protocol_and_difference(finished_run: FinishedRun, tmp_path: Path) -> None:
    import hashlib
    import tomllib

    run = tmp_path / "run"
    shutil.copytree(finished_run("resnet18"), run)
    weights = weights_digest(load_backbone(run).backbone)[:12]
    row = {"protocol": "knn k=20/T=0.07", "features": "pre-trained", "accuracy": 0.5125, "weights": weights}
    earlier = {**row, "accuracy": 0.25, "weights": "0123456789ab"}  # evaluated before the run was resumed
    (run / "evaluation.json").write_text(json.dumps([earlier, row]))
    export_run(run, to="timm", out=tmp_path / "net.safetensors")
    facts = json.loads((tmp_path / "net.safetensors.json").read_text())
    resolved = tomllib.loads((run / "resolved.toml").read_text())
    assert facts["run"]["config_sha256"] == hashlib.sha256((run / "config.toml").read_bytes()).hexdigest()
    assert facts["run"]["data_names_sha256"] == resolved["names_sha256"]
    assert facts["run"]["data_identity"] == resolved["data_identity"] == facts["backbone"]["data_identity"]
    assert facts["run"]["data"] == facts["backbone"]["data"] != ""
    assert facts["run"]["num_images"] == 16
    assert facts["backbone"]["step"] == 2
    assert facts["evaluation"] == [row]
    digest = hashlib.sha256((tmp_path / "net.safetensors").read_bytes()).hexdigest()
    assert facts["files"] == {"net.safetensors": digest}
    text = (tmp_path / "net.safetensors.md").read_text()
    for part in (facts["run"]["config_sha256"], digest, "knn k=20/T=0.07, pre-trained: 51.2 %", "2 steps", "timm 1."):
        assert part in text, part
    assert str(tmp_path) not in text + json.dumps(facts), "no path of this machine"


def test_a_lone_file_is_compared_on_the_embedded_sample(finished_run: FinishedRun, tmp_path: Path) -> None:
    export_run(finished_run("resnet18"), to="safetensors", out=tmp_path / "a.safetensors")
    result = export_run(tmp_path / "a.safetensors", to="torchvision", out=tmp_path / "b.pth")
    assert result.images == "6 images of mocokit's embedded sample"
    facts = json.loads((tmp_path / "b.pth.json").read_text())
    assert facts["run"] == {}
    assert f"- data: {facts['backbone']['data']}\n" in (tmp_path / "b.pth.md").read_text(), (
        "the weights name their data"
    )
    assert facts["backbone"]["data_identity"] in (tmp_path / "b.pth.md").read_text()


def test_the_card_names_the_images_of_each_accuracy_but_no_path(finished_run: FinishedRun, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run("resnet18"), tmp_path / "run"))
    row = {"protocol": "knn", "features": "pre-trained", "accuracy": 0.5, "test_images": 1234}
    places = {"data": f"{tmp_path}/birds", "test": f"{tmp_path}/birds_test"}
    rows = [row | places | {"data_id": "a" * 64, "test_id": "b" * 64}, row | places | {"test": ""}]
    (run / "evaluation.json").write_text(json.dumps(rows))
    export_run(run, to="safetensors", out=tmp_path / "net.safetensors")
    text = (tmp_path / "net.safetensors.md").read_text()
    known = "50.0 % on 1,234 images of birds_test (bbbbbbbbbbbb), labels from birds (aaaaaaaaaaaa)"
    assert known in text
    assert "50.0 % on 1,234 images of a held-out tenth, labels from birds (identity unknown)" in text
    assert str(tmp_path) not in text + (tmp_path / "net.safetensors.json").read_text()
