"""Small real images and runs that many tests share."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tests run in one process per core, and start ranks

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mocokit.config.presets import get_preset
from mocokit.config.schema import Config
from mocokit.config.toml import replace_settings
from mocokit.run.demo import sample_path

TINY: dict[str, object] = {
    "data.image_size": 32,
    "data.global_batch_size": 16,
    "data.workers": 0,
    "model.arch": "resnet10_w32",
    "model.stem": "imagenet",
    "model.dim": 16,
    "method.queue_size": 40,  # no multiple of the batch: the ring wraps in mid-batch
    "method.bn_groups": 4,
    "method.temperature": 0.2,
    "optim.epochs": 2,
    "optim.lr": 0.05,
    "run.device": "cpu",
    "run.precision": "fp32",
    "run.log_every": 1,
    "run.knn_every": 0,
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 5 class folders of 16 real JPEG tiles each."""
    import zipfile

    folder = tmp_path_factory.mktemp("photos")
    with zipfile.ZipFile(sample_path("val")) as archive:
        names = archive.namelist()
        for name in ("brick", "cat", "coffee", "grass", "rocket"):
            for member in [member for member in names if member.startswith(name)][:16]:
                archive.extract(member, folder)
    return folder


@pytest.fixture(scope="session")
def pasted_voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VOC folders: 6 images of 96 px, ellipses cut out of tiles of a cat and of a retina on grass and bricks."""
    import io
    import zipfile

    from tests.pasted_objects import cut_ellipse, write_pasted_voc

    folder = tmp_path_factory.mktemp("voc")
    with zipfile.ZipFile(sample_path("val")) as archive:
        tiles = {
            name: [Image.open(io.BytesIO(archive.read(member))) for member in archive.namelist() if name in member][:6]
            for name in ("cat", "retina", "grass", "brick")
        }
    objects = {name: [cut_ellipse(tile) for tile in tiles[name]] for name in ("cat", "retina")}
    write_pasted_voc(
        folder,
        "2007_trainval",
        objects=objects,
        photographs=tiles["grass"] + tiles["brick"],
        num_images=6,
        size_px=96,
        seed=0,
    )
    return folder


@pytest.fixture
def own_photos(photos: Path, tmp_path: Path) -> Path:
    """A copy of `photos` that a test may damage."""
    return Path(shutil.copytree(photos, tmp_path / "own_photos"))


@pytest.fixture
def photograph() -> Image.Image:
    """One photograph of 48x48 pixels, enlarged to 150x100 so that crops have room."""
    import io
    import zipfile

    with zipfile.ZipFile(sample_path("val")) as archive:
        tile = Image.open(io.BytesIO(archive.read("coffee/010.jpg")))
        return tile.resize((150, 100), Image.Resampling.BICUBIC)


@pytest.fixture
def tiny(photos: Path) -> Callable[..., Config]:
    """A config that trains in seconds: tiny(**{"optim.epochs": 3})."""

    def build(**settings: Any) -> Config:
        return replace_settings(get_preset("moco-v2-small"), {**TINY, "data.source": str(photos), **settings})

    return build


@pytest.fixture
def noise() -> Callable[..., torch.Tensor]:
    """Random uint8 pixels (n, 3, s, s), the same for the same seed."""

    def build(n: int, size: int = 16, seed: int = 0) -> torch.Tensor:
        return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 3, size, size), dtype=np.uint8))

    return build


@pytest.fixture(scope="session")
def finished_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """finished_run("resnet18"): the folder of a run of 2 steps at 32 px; made once, do not change it."""
    import mocokit
    from mocokit.nets.backbones import build_backbone

    folder = tmp_path_factory.mktemp("runs")
    (folder / "photos.txt").write_text("\n".join(map(str, sorted(photos.rglob("*.jpg"))[::5])))  # 16 images

    def make(arch: str) -> Path:
        if not (folder / arch).exists():
            settings = {**TINY, "data.source": str(folder / "photos.txt"), "model.arch": arch, "optim.lr": 1e-3}
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("mocokit.run.build.build_backbone", calm)
                mocokit.pretrain("moco-v2-small", out=folder / arch, settings=settings)
        return folder / arch

    def calm(arch: str, *, stem: str) -> torch.nn.Module:
        """Small residual branches: BatchNorm statistics of 2 steps would else let features grow into the hundreds."""
        backbone = build_backbone(arch, stem=stem)
        for name, layer in backbone.named_modules():
            if name.endswith("bn3" if arch == "resnet50" else "bn2"):
                torch.nn.init.constant_(layer.weight, 0.2)
        return backbone

    return make
