import math

import pytest
import torch

from mocokit.nets.backbones import build_backbone, build_seeded, zero_init_residual
from mocokit.nets.vit_moco_v3 import freeze_patch_embed, init_as_moco_v3, sincos_positions


def test_positions_are_sines_and_cosines_of_row_and_column() -> None:
    """Compare with the formula, number by number; the class token has zeros."""
    positions = sincos_positions((3, 4), 8)[0]
    assert positions[0].abs().max() == 0
    for row in range(3):
        for column in range(4):
            want = []
            for place in (row, column):
                angles = [place / 10000 ** (i / 2) for i in range(2)]
                want += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            assert positions[1 + 4 * row + column].tolist() == pytest.approx(want, abs=1e-12)


def test_a_moco_v3_vit_is_initialised_and_frozen_as_in_the_paper() -> None:
    vit = build_backbone("timm/test_vit")
    init_as_moco_v3(vit)
    freeze_patch_embed(vit)
    fixed = {name for name, parameter in vit.named_parameters() if not parameter.requires_grad}
    assert fixed == {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    width = 64
    qkv = vit.get_parameter("blocks.0.attn.qkv.weight")
    bound = math.sqrt(6 / (2 * width))  # Xavier of each of three (64, 64) matrices, not of one (192, 64)
    assert 0.99 * bound < qkv.abs().max().item() <= bound
    assert qkv.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    fc1 = vit.get_parameter("blocks.0.mlp.fc1.weight")
    assert 0.98 * math.sqrt(6 / sum(fc1.shape)) < fc1.abs().max().item() <= math.sqrt(6 / sum(fc1.shape))
    patch = vit.get_parameter("patch_embed.proj.weight")
    assert patch.abs().max().item() <= math.sqrt(6 / (3 * 16 * 16 + width))
    assert all(p.abs().max() == 0 for name, p in vit.named_parameters() if name.endswith(("qkv.bias", "fc1.bias")))


def test_moco_v3_vits_have_12_heads() -> None:
    for arch, width in (("vit_small_patch16_224_h12", 384), ("vit_base_patch16_224", 768)):
        vit = build_backbone(arch)
        blocks = list(vit.get_submodule("blocks").children())
        assert len(blocks) == 12
        assert blocks[0].get_submodule("attn").num_heads == 12
        assert vit.embed_dim == width
        assert vit.get_submodule("norm").eps == 1e-6


def test_a_resnet_is_no_vit_and_a_vit_no_resnet() -> None:
    with pytest.raises(ValueError, match=r"model.vit_init='moco-v3': the backbone is no ViT"):
        init_as_moco_v3(build_backbone("resnet18"))
    with pytest.raises(ValueError, match=r"model.freeze_patch_embed=True: the backbone is no ViT"):
        freeze_patch_embed(build_backbone("resnet18"))
    with pytest.raises(ValueError, match=r"model.zero_init_residual=True: the backbone is no torchvision ResNet"):
        zero_init_residual(build_backbone("timm/test_vit"))


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_zero_init_residual_is_torchvisions(arch: str) -> None:
    from torchvision import models

    backbone = build_seeded(lambda: build_backbone(arch), 0)
    zero_init_residual(backbone)
    theirs = build_seeded(lambda: getattr(models, arch)(zero_init_residual=True), 0).state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in backbone.state_dict().items())
