"""A target from outside the package: weights as .npz, read back into torchvision's network."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from mocokit.engine.backbone_file import LoadedBackbone
from mocokit.export.proof import ExportMismatchError
from mocokit.export.targets import Exported, load_target
from mocokit.run.export import export_run

FinishedRun = Callable[[str], Path]


def export_npz(loaded: LoadedBackbone, out: Path) -> Exported:
    np.savez(out, **{name: value.numpy() for name, value in loaded.backbone.state_dict().items()})
    net: nn.Module = getattr(models, loaded.card.arch)()
    net.fc = nn.Identity()
    with np.load(out) as file:
        net.load_state_dict({name: torch.from_numpy(file[name]) for name in file.files})
    return Exported(files=(out,), readers={f"NumPy {np.__version__}": net.eval()}, usage=f'np.load("{out.name}")')


def export_wrong_weights(loaded: LoadedBackbone, out: Path) -> Exported:
    with torch.no_grad():
        loaded.backbone.get_parameter("bn1.bias").add_(0.1)
    return export_npz(loaded, out)


def export_unread(loaded: LoadedBackbone, out: Path) -> Exported:
    out.write_text("weights")
    return Exported(files=(out,), readers={}, usage="")


def test_an_own_target_is_proven_and_carded_like_ours(finished_run: FinishedRun, tmp_path: Path) -> None:
    result = export_run(finished_run("resnet18"), to=export_npz, out=tmp_path / "net.npz")
    assert result.proof.differences == {f"NumPy {np.__version__}": 0}
    facts = json.loads((tmp_path / "net.npz.json").read_text())
    assert (facts["target"], facts["usage"], list(facts["files"])) == ("export_npz", 'np.load("net.npz")', ["net.npz"])


def test_an_own_target_that_writes_wrong_weights_or_is_never_read_leaves_nothing(
    finished_run: FinishedRun, tmp_path: Path
) -> None:
    with pytest.raises(ExportMismatchError, match=r"NumPy \S+ gives other features: they differ by"):
        export_run(finished_run("resnet18"), to=export_wrong_weights, out=tmp_path / "net.npz")
    with pytest.raises(ValueError, match="returned no reader, so nothing can be compared"):
        export_run(finished_run("resnet18"), to=export_unread, out=tmp_path / "net.npz")
    assert list(tmp_path.iterdir()) == []


def test_an_installed_package_names_its_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "npz_export.py").write_text("def export_npz(loaded, out): ...")
    (tmp_path / "npz_export-1.0.dist-info").mkdir()
    lines = ["[mocokit.exports]", "npz = npz_export:export_npz", "torch8 = no_torch8:export", "timm = npz_export:timm"]
    (tmp_path / "npz_export-1.0.dist-info" / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    assert load_target("npz").__module__ == "npz_export"
    assert load_target("timm").__module__ == "mocokit.export.to_timm", "a built-in target can't be replaced"
    with pytest.raises(ValueError, match=r"to=torch8: needs no_torch8; install it \(no_torch8:export imports it\)"):
        load_target("torch8")
    with pytest.raises(ValueError, match=r"to='npy': unknown; did you mean npz\? choose one of \[.*'official'"):
        load_target("npy")
