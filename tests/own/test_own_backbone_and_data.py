"""A backbone and a data set from outside the package: they train, resume and export, or are asked for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import mocokit
from mocokit.cli import main
from mocokit.evaluate.report_knn import compare_with_baselines
from tests.conftest import TINY
from tests.run_process import final_state, same


class SmallNet(nn.Module):
    """Two convolutions with BatchNorm and the mean over the image: (N, 3, H, W) -> (N, 24)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 12, 3, 2),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 24, 3, 2),
            nn.BatchNorm2d(24),
            nn.ReLU(),
        )
        mocokit.declare_feature_dim(self, 24)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.body(images)
        return features.mean(dim=(2, 3))


def test_an_own_backbone_trains_resumes_bit_equal_and_exports(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = SmallNet()
    first = [parameter.clone() for parameter in net.parameters()]
    run = tmp_path / "run"
    mocokit.pretrain("moco-v2-small", data=photos, out=run, settings=TINY, backbone=net)
    assert all(torch.equal(a, b) for a, b in zip(first, net.parameters(), strict=True)), "it is copied"
    whole = final_state(run)
    sorted((run / "checkpoints").glob("*.pt"))[-1].unlink()
    assert main(["resume", str(run)]) == 1
    assert "model.arch=own/SmallNet: the run's backbone was given as a module" in capsys.readouterr().err
    mocokit.resume(run, backbone=SmallNet())
    assert same(final_state(run)["method"], whole["method"])
    rows = compare_with_baselines(run, bank=photos, backbone=SmallNet(), device_name="cpu")
    assert [row.features for row in rows] == ["raw pixels", "random init", "pre-trained"]
    mocokit.export_run(run, to="safetensors", out=tmp_path / "net.safetensors", backbone=SmallNet(), data=photos)
    with pytest.raises(ValueError, match=r"own/SmallNet is not part of mocokit; give the module"):
        mocokit.load_backbone(run)


def test_an_own_backbone_starts_from_the_weights_that_it_has(photos: Path, tmp_path: Path) -> None:
    net = SmallNet()
    settings = {**TINY, "optim.lr": 1e-12, "optim.epochs": 1}
    mocokit.pretrain("moco-v2-small", data=photos, out=tmp_path / "run", settings=settings, backbone=net)
    trained = mocokit.load_backbone(tmp_path / "run", backbone=SmallNet()).backbone
    for ours, theirs in zip(trained.parameters(), net.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-7)


class Negatives(mocokit.ImageSource):
    """Photographs in negative, read by index."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.rglob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> NDArray[np.uint8]:
        return 255 - np.asarray(Image.open(self.paths[index]))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_own_data_set_trains_resumes_bit_equal_and_exports(
    photos: Path, tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    settings = {**TINY, "data.workers": workers}
    mocokit.pretrain("moco-v2-small", data=Negatives(photos), out=run, settings=settings)
    whole = final_state(run)
    sorted((run / "checkpoints").glob("*.pt"))[-1].unlink()
    assert main(["resume", str(run)]) == 1
    assert "data.source=own/Negatives: the run's images were given as an object" in capsys.readouterr().err
    mocokit.resume(run, data=Negatives(photos))
    assert same(final_state(run)["method"], whole["method"])
    mocokit.export_run(run, to="safetensors", out=tmp_path / "net.safetensors")


def test_a_list_of_images_trains_like_the_folder_that_holds_them(photos: Path, tmp_path: Path) -> None:
    images = [Image.open(path) for path in sorted(photos.rglob("*.jpg"))]
    for out, data in (("list", images), ("folder", photos)):
        settings = {**TINY, "data.pipeline": "reference"}
        mocokit.pretrain("moco-v2-small", data=data, out=tmp_path / out, settings=settings)
    ours, theirs = (final_state(tmp_path / name)["method"] for name in ("list", "folder"))
    assert same(ours, theirs)
