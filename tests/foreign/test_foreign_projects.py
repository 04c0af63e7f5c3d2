"""Each project's checkpoint, built as theirs, gives its features after import, or a refusal that says why."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_checkpoints import MLP, Row, different, lightning, named, resnet
from foreign_projects import TABLE, solo, solo_cifar_alone
from import_table import OUT, try_row
from torch import nn

import mocokit
from mocokit.foreign.evidence import Hints
from mocokit.foreign.find_backbone import find_backbone

OFTEN = {
    *("MSN, ViT", "MAE, ViT-Ti, --heads 3", "any, lightly's ResNetGenerator", "BYOL"),
    *("MoCo v2+, CIFAR-10, OmegaConf settings", "MAE, ViT-Ti", "ViT-S after main_lincls.py", "MoCo v3, ViT-S"),
    *("ViT-S with trained positions, without flag", "MoCo v2", "ViT-S/14, 4 registers", "ViT-g/14 (SwiGLU)"),
    *("ViT-S/14, blocks in chunks", "SupCon, CIFAR-10", "a whole module", "ViT-Ti"),
}
"""Rows that `make test` tries; the others are slow, and alike."""


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=() if row.method in OFTEN else pytest.mark.slow) for row in TABLE],
    ids=lambda row: f"{row.project}-{row.method}",
)
def test_a_checkpoint_gives_its_features_or_says_why_not(row: Row, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that build the networks
        result = try_row(row, tmp_path)
    if row.refused:
        assert row.refused in result
        assert not (tmp_path / "ours.safetensors").exists()
    else:
        assert result.startswith("imported as")
        share = 0.0 if result.endswith("equal") else float(result.rpartition(" ")[2])
        assert share < 1e-4


def test_the_table_in_docs_has_all_rows() -> None:
    lines = [line.split(" | ") for line in OUT.read_text().splitlines() if line.startswith("| ")][1:]
    written = [(project.removeprefix("| "), method, file, result.split()[0]) for project, method, file, result in lines]
    assert written == [(row.project, row.method, row.file, "refused:" if row.refused else "imported") for row in TABLE]


@pytest.mark.slow
def test_lightnings_own_trainer_writes_what_is_imported(tmp_path: Path) -> None:
    """Settings of argparse and OmegaConf, callbacks, loops and the optimizer are in the file too."""
    import argparse

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pytorch_lightning as pl

        class Module(pl.LightningModule):
            def __init__(self, options: argparse.Namespace) -> None:
                super().__init__()
                self.save_hyperparameters()
                self.model = resnet()

            def training_step(self, batch: list[torch.Tensor]) -> Any:
                return self.model(batch[0]).square().mean()

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

        module = Module(argparse.Namespace(image_size=48, mean=[0.4, 0.5, 0.6], std=[0.2, 0.2, 0.2]))
        trainer = pl.Trainer(
            max_steps=1,
            enable_model_summary=False,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            default_root_dir=tmp_path,
        )
        data = torch.utils.data.TensorDataset(torch.randn(2, 3, 32, 32))
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=2))
    trainer.save_checkpoint(tmp_path / "theirs.ckpt")
    card = mocokit.import_backbone(tmp_path / "theirs.ckpt", tmp_path / "ours.safetensors").card
    assert (card.image_size, card.mean, card.std, card.eval_crop_ratio) == (48, (0.4, 0.5, 0.6), (0.2,) * 3, 1.0)
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        want = module.model.eval()(images)
        assert torch.equal(mocokit.load_backbone(tmp_path / "ours.safetensors").backbone(images), want)


@pytest.mark.parametrize(
    ("settings", "padding"),
    [
        ({"data": {"dataset": "cifar100"}, "method": "byol"}, 2),
        ({"dataset": "cifar10", "method": "barlow_twins"}, 2),
        ({"cifar": True, "encoder": "resnet18"}, 2),
        ({"conv1_padding": 1, "dataset": "cifar10"}, 1),
        ({"data": {"dataset": "stl10"}}, None),
        ({}, None),
    ],
)
def test_the_padding_comes_from_solo_learns_settings(settings: dict[str, Any], padding: int | None) -> None:
    content = solo(resnet(stem="small", padding=padding or 1), settings=settings, parts={"projector": MLP})
    if padding is None:
        with pytest.raises(ValueError, match="--padding 2 for solo-learn"):
            find_backbone(content)
        assert find_backbone(content, Hints(padding=2)).stem == "small_pad2"
    else:
        assert find_backbone(content).stem == {1: "small", 2: "small_pad2"}[padding]


@pytest.mark.parametrize("wrapper", ["module.{}", "_orig_mod.{}", "module._orig_mod.{}", "_orig_mod.module.{}"])
def test_wrappers_are_taken_out_at_any_place(wrapper: str) -> None:
    net = resnet()
    inside = {f"backbone.{wrapper.format(name)}": value for name, value in net.state_dict().items()}
    outside = {wrapper.format(f"net.{name}"): value for name, value in net.state_dict().items()}
    for state in (inside, outside):
        found = find_backbone(state)
        assert set(found.wrappers) == set(wrapper.split(".")[:-1])
        assert all(torch.equal(value, found.weights[name]) for name, value in net.state_dict().items())


def test_the_padding_comes_from_solo_learns_args_json_beside_the_file(tmp_path: Path) -> None:
    checkpoint = solo_cifar_alone()
    path = checkpoint.save(tmp_path)
    (tmp_path / "args.json").write_text(json.dumps({"data": {"dataset": "cifar10"}, "method": "mocov2plus"}))
    found = mocokit.import_backbone(path, tmp_path / "ours.safetensors")
    assert (found.card.stem, found.card.mean) == ("small_pad2", (0.4914, 0.4822, 0.4465))
    assert "padding: 2 (solo-learn's for CIFAR, by the checkpoint's settings)" in map(str, found.facts)


def test_a_small_stem_with_a_max_pool_is_refused(tmp_path: Path) -> None:
    net = resnet(stem="small")
    torch.save(lightning(named(encoder=net), first_conv=False, maxpool1=True), tmp_path / "theirs.ckpt")
    with pytest.raises(ValueError, match=r"its 3x3 stem is followed by a max-pool"):
        mocokit.import_backbone(tmp_path / "theirs.ckpt", tmp_path / "ours.safetensors")


def test_a_module_among_the_settings_is_not_the_trained_one(tmp_path: Path) -> None:
    """Lightning's save_hyperparameters() keeps the backbone that the module was given."""
    net = resnet()
    torch.save(lightning(named(backbone=net, projection_head=MLP), backbone=different(net)), tmp_path / "theirs.ckpt")
    found = find_backbone(tmp_path / "theirs.ckpt")
    assert found.path == "state_dict.backbone."
    assert torch.equal(found.weights["conv1.weight"], net.state_dict()["conv1.weight"])


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / "theirs.pt"))
    with pytest.raises(ValueError, match="a TorchScript program, which is never run; save the state dict"):
        find_backbone(tmp_path / "theirs.pt")


def test_every_dictionary_of_weights_is_told() -> None:
    net = resnet()
    content = {"model": dict(net.state_dict()), "model_ema": dict(different(net).state_dict()), "head": named(fc=MLP)}
    found = find_backbone(content)
    assert (found.path, found.others) == ("model.", ("model_ema.",))
    assert found.left_out == {"model_ema": 120, "head": 4}
