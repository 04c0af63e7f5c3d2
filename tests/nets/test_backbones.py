import pytest
import timm
import torch
from torchvision import models

from mocokit.nets.backbones import (
    BACKBONES,
    build_backbone,
    build_seeded,
    declare_feature_dim,
    feature_dim,
    require_image_size,
)
from mocokit.nets.pixels import PixelNormalize
from mocokit.nets.timm_models import VITS, at_image_size, find_timm


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_weights_load_into_torchvision_with_only_fc_missing(arch: str) -> None:
    backbone = build_backbone(arch)
    missing, unexpected = getattr(models, arch)().load_state_dict(backbone.state_dict(), strict=False)
    assert sorted(missing) == ["fc.bias", "fc.weight"]
    assert unexpected == []


@pytest.mark.parametrize("arch", sorted(BACKBONES))
@pytest.mark.parametrize("stem", ["imagenet", "small", "small_pad2"])
def test_features_are_as_wide_as_declared(arch: str, stem: str) -> None:
    backbone = build_backbone(arch, stem=stem).eval()
    with torch.no_grad():
        assert backbone(torch.zeros(1, 3, 32, 32)).shape == (1, feature_dim(backbone))


@pytest.mark.parametrize(("stem", "side"), [("small", 32), ("small_pad2", 34)])
def test_the_small_stems_keep_the_resolution(stem: str, side: int) -> None:
    backbone = build_backbone("resnet18", stem=stem).eval()
    assert backbone.get_submodule("conv1")(torch.zeros(1, 3, 32, 32)).shape[-1] == side
    assert isinstance(backbone.maxpool, torch.nn.Identity)


def test_a_vit_takes_options_behind_its_name() -> None:
    arch = (
        "timm/vit_small_patch14_reg4_dinov2:depth=1,embed_dim=64,num_heads=4,img_size=28,mlp_ratio=2.0,qkv_bias=False"
    )
    backbone = build_backbone(arch)
    theirs = timm.create_model(
        "vit_small_patch14_reg4_dinov2",
        num_classes=0,
        depth=1,
        embed_dim=64,
        num_heads=4,
        img_size=28,
        mlp_ratio=2,
        qkv_bias=False,
    ).eval()
    theirs.load_state_dict(backbone.state_dict())
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(backbone.eval()(images), theirs(images))
    assert build_backbone("vit_small_patch16_224_h12:depth=1").get_submodule("blocks.0.attn").num_heads == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("heads=3", r"'heads' is no option; there are embed_dim, depth, num_heads"),
        ("depth=two", r"'depth=two' is no int"),
        ("depth=1000000000", r"'depth=1000000000' is not in 1..128"),
        ("num_heads=0", r"'num_heads=0' is not in 1..128"),
        ("qkv_bias=maybe", r"'qkv_bias=maybe' is no bool"),
        ("mlp_ratio=nan", r"'mlp_ratio=nan' is not in 0..16"),
        ("num_heads=7", r"can't be built with \{'num_heads': 7\}"),
        ("", r"'' is no option"),
    ],
)
def test_options_that_make_no_vit_are_refused(options: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"model.arch='.*{message}"):
        build_backbone(f"vit_tiny_patch16_224:{options}")
    with pytest.raises(ValueError, match=r"model.arch='timm/resnet18': does not take \{'depth': 3\}"):
        build_backbone("timm/resnet18:depth=3")


@pytest.mark.parametrize("arch", [*VITS, "timm/mobilenetv3_small_100"])
def test_timm_models_give_the_features_that_timm_gives_at_any_size(arch: str) -> None:
    backbone = build_backbone(arch).eval()
    model = find_timm(arch)
    assert model is not None
    theirs = timm.create_model(model.name, num_classes=0, **model.arguments).eval()
    theirs.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        images = torch.randn(1, 3, 224, 224)
        assert torch.equal(backbone(images), theirs(images))
        assert backbone(torch.randn(2, 3, 48, 48)).shape == (2, feature_dim(backbone))


def test_a_vit_fixed_to_one_image_size_computes_the_same_there() -> None:
    backbone = build_backbone("vit_tiny_patch16_224").eval()
    torch.nn.init.normal_(backbone.get_parameter("pos_embed"))
    fixed = at_image_size(backbone, 48).eval()
    images = torch.randn(2, 3, 48, 48)
    assert fixed.get_parameter("pos_embed").shape == (1, 1 + 3 * 3, 192)
    assert backbone.get_parameter("pos_embed").shape == (1, 197, 192), "the original is unchanged"
    with torch.no_grad():
        assert torch.allclose(fixed(images), backbone(images), atol=1e-5)


def test_settings_that_a_backbone_does_not_support_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model.stem='small': vit_tiny_patch16_224 has a stem of its own"):
        build_backbone("vit_tiny_patch16_224", stem="small")
    with pytest.raises(ValueError, match=r"model.arch='timm/resnet-18': timm .* has no such model; near: \['resnet18'"):
        build_backbone("timm/resnet-18")
    with pytest.raises(ValueError, match=r"data.image_size=40: not a multiple of the backbone's patches of 16 px"):
        require_image_size(build_backbone("vit_tiny_patch16_224"), 40)
    with pytest.raises(ValueError, match=r"data.image_size=64: this backbone reads 224 px only"):
        require_image_size(build_backbone("timm/mixer_s32_224"), 64)
    with pytest.raises(ValueError, match=r"augment.local_size=24: not a multiple of the backbone's patches of 16 px"):
        require_image_size(build_backbone("vit_tiny_patch16_224"), 24, setting="augment.local_size")
    require_image_size(build_backbone("resnet18"), 37)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"model.arch='resnet51': unknown; did you mean .*timm/NAME"):
        build_backbone("resnet51")
    with pytest.raises(ValueError, match=r"model.stem='tiny'"):
        build_backbone("resnet18", stem="tiny")


def test_a_feature_width_must_be_declared() -> None:
    with pytest.raises(ValueError, match="feature_dim is not declared"):
        feature_dim(torch.nn.Linear(3, 4))
    assert feature_dim(declare_feature_dim(torch.nn.Linear(3, 4), 4)) == 4


def test_seeded_building_is_repeatable_and_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    first = build_seeded(lambda: build_backbone("resnet18"), 7)
    assert torch.equal(torch.random.get_rng_state(), before)
    second = build_seeded(lambda: build_backbone("resnet18"), 7)
    assert torch.equal(first.get_parameter("conv1.weight"), second.get_parameter("conv1.weight"))


def test_pixels_are_normalised_like_torchvisions() -> None:
    from torchvision.transforms import functional

    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    want = torch.stack([functional.normalize(image.float() / 255, mean, std) for image in pixels])
    assert torch.allclose(PixelNormalize(mean, std)(pixels), want, atol=1e-6)
    floats = torch.randn(2, 3, 8, 8)
    assert torch.equal(PixelNormalize(mean, std)(floats), floats)
