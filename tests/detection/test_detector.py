"""The detector has Detectron2's layout, torchvision's parts, and the backbone's own layers."""

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mocokit.detection.detector import AlignedRegions, PadAndNormalize, build_detector
from mocokit.nets.backbones import build_backbone

MEAN = (0.4, 0.5, 0.6)
STD = (0.2, 0.25, 0.3)
TARGETS = [
    {
        "boxes": torch.tensor([[4.0, 8.0, 40.0, 50.0]]),
        "labels": torch.tensor([2]),
        "masks": torch.ones(1, 64, 80, dtype=torch.uint8),
    },
    {
        "boxes": torch.tensor([[10.0, 10.0, 30.0, 60.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 64, 64, dtype=torch.uint8),
    },
]
IMAGES = [torch.rand(3, 64, 80, generator=torch.Generator().manual_seed(0)), torch.rand(3, 64, 64)]


def _detector(neck: Literal["c4", "fpn"], *, masks: bool = False, arch: str = "resnet10_w16") -> tuple[Any, nn.Module]:
    backbone = build_backbone(arch)
    detector = build_detector(
        backbone,
        num_classes=3,
        neck=neck,
        masks=masks,
        mean=MEAN,
        std=STD,
        anchor_sizes_px=(4, 8, 16, 32, 64),
        rpn_before_nms=(60, 60),
        rpn_after_nms=(20, 20),
        regions_per_image=16,
    )
    return detector, backbone


@pytest.mark.parametrize("neck", ["c4", "fpn"])
def test_every_weight_of_the_backbone_is_in_the_detector_and_is_trained(neck: Literal["c4", "fpn"]) -> None:
    backbone = build_backbone("resnet10_w16")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    detector = build_detector(backbone, num_classes=3, neck=neck, masks=False, mean=MEAN, std=STD)
    state = detector.state_dict()
    where = {"layer4": "roi_heads.box_head.layer4"} if neck == "c4" else {}
    prefix = "backbone." if neck == "c4" else "backbone.body."
    for name, value in before.items():
        stage, _, rest = name.partition(".")
        found = state[f"{where.get(stage, prefix + stage)}.{rest}"]
        assert torch.equal(found, value), name
    assert all(parameter.requires_grad for parameter in detector.parameters())


@pytest.mark.parametrize(("neck", "masks"), [("c4", False), ("c4", True), ("fpn", False), ("fpn", True)])
def test_gradients_reach_the_first_convolution(neck: Literal["c4", "fpn"], masks: bool) -> None:
    detector, backbone = _detector(neck, masks=masks)
    losses = detector.train()(IMAGES, TARGETS)
    names = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert set(losses) == (names | {"loss_mask"} if masks else names)
    for name, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss, backbone.get_parameter("conv1.weight"), retain_graph=True)
        assert gradient.abs().sum() > 0, name


def test_the_head_of_a_region_is_layer4_and_one_more_batchnorm() -> None:
    detector, backbone = _detector("c4")
    head = detector.roi_heads.box_head.train()
    assert head.layer4 is backbone.layer4
    rows = torch.randn(5, 64, 14, 14)
    out = head(rows)
    assert out.shape == (5, 128, 7, 7)
    features = backbone.get_submodule("layer4")(rows)
    mean = features.mean(dim=(0, 2, 3), keepdim=True)
    var = features.var(dim=(0, 2, 3), keepdim=True, correction=0)
    assert torch.allclose(out, (features - mean) / (var + 1e-5).sqrt(), atol=1e-4)
    extra = [layer for layer in detector.modules() if isinstance(layer, _BatchNorm)]
    own = [layer for layer in backbone.modules() if isinstance(layer, _BatchNorm)]
    assert len(extra) == len(own) + 1


def test_the_c4_detector_has_the_official_sizes() -> None:
    detector: Any = build_detector(
        build_backbone("resnet50"), num_classes=20, neck="c4", masks=False, mean=MEAN, std=STD
    )
    assert detector.backbone.stride == 16
    assert detector.rpn.head.cls_logits.out_channels == 15  # 5 sizes, 3 ratios
    assert detector.rpn.head.cls_logits.in_channels == 1024
    assert detector.roi_heads.box_predictor.cls_score.in_features == 2048
    assert detector.roi_heads.box_predictor.cls_score.out_features == 21
    assert detector.roi_heads.fg_bg_sampler.batch_size_per_image == 512
    assert detector.rpn._pre_nms_top_n == {"training": 12_000, "testing": 6000}
    assert detector.rpn._post_nms_top_n == {"training": 2000, "testing": 1000}
    predictor = detector.roi_heads.box_predictor
    assert float(predictor.cls_score.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert float(predictor.bbox_pred.weight.detach().std()) == pytest.approx(0.001, rel=0.05)
    assert not predictor.cls_score.bias.any() and not predictor.bbox_pred.bias.any()


@pytest.mark.parametrize(("stem", "stride"), [("imagenet", 16), ("small", 4)])
def test_the_stride_is_that_of_the_map(stem: str, stride: int) -> None:
    backbone = build_backbone("resnet10_w16", stem=stem)
    detector: Any = build_detector(backbone, num_classes=1, neck="c4", masks=False, mean=MEAN, std=STD)
    assert detector.backbone.stride == detector.roi_heads.box_roi_pool.stride == stride
    assert detector.backbone(torch.rand(1, 3, 64, 96)).shape == (1, 64, 64 // stride, 96 // stride)


def test_a_pyramid_has_batchnorm_in_trunk_and_pyramid_alone() -> None:
    detector, backbone = _detector("fpn", masks=True)
    in_pyramid = [layer for layer in detector.backbone.fpn.modules() if isinstance(layer, _BatchNorm)]
    assert len(in_pyramid) == 8  # a lateral and an output convolution of each of 4 levels
    outside = [layer for part in (detector.rpn, detector.roi_heads) for layer in part.modules()]
    assert not any(isinstance(layer, _BatchNorm) for layer in outside)
    assert list(detector.backbone(torch.rand(1, 3, 64, 64))) == ["0", "1", "2", "3", "pool"]
    with pytest.raises(ValueError, match="a pyramid has 5 levels; give 5 sizes"):
        build_detector(backbone, num_classes=1, neck="fpn", masks=False, mean=MEAN, std=STD, anchor_sizes_px=(8, 16))


def test_regions_are_aligned_to_the_pixel() -> None:
    """On a linear ramp, the mean of a region equals the ramp at the region's centre (closed form)."""
    stride = 16
    columns = 12
    centres = (torch.arange(columns) + 0.5) * stride  # image coordinates of the cells' centres
    ramp = centres.expand(1, 1, columns, columns).contiguous()
    box = torch.tensor([[40.0, 48.0, 100.0, 130.0]])
    regions = AlignedRegions(14, stride)({"0": ramp}, [box], None)
    assert regions.shape == (1, 1, 14, 14)
    assert float(regions.mean()) == pytest.approx(70.0, abs=1e-3)


def test_masks_are_learnt_from_the_features_of_the_boxes() -> None:
    """In training, layer4 runs once, so that BatchNorm sees all regions; in testing, again on the detected boxes."""
    detector, _ = _detector("c4", masks=True)
    calls = list[int]()
    detector.roi_heads.box_head.register_forward_hook(lambda _module, inputs, _output: calls.append(len(inputs[0])))
    detector.train()(IMAGES, TARGETS)
    assert calls == [32]  # 16 regions of each image
    detector.roi_heads.score_thresh = 0.0
    (first, _) = detector.eval()(IMAGES)
    assert len(calls) == 3
    assert first["masks"].shape == (len(first["boxes"]), 1, 28 // 2, 28 // 2)
    restored = detector.transform.restore([first], [(64, 80)], [(128, 160)])[0]
    assert restored["masks"].shape[-2:] == (128, 160)


def test_images_are_normalised_and_padded_and_boxes_stay() -> None:
    transform = PadAndNormalize(MEAN, STD)
    batch, targets = transform([image.clone() for image in IMAGES], [dict(target) for target in TARGETS])
    assert batch.tensors.shape == (2, 3, 64, 96)
    want = (IMAGES[0] - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    assert torch.allclose(batch.tensors[0, :, :, :80], want)
    assert not batch.tensors[1, :, :, 64:].any()
    assert torch.equal(targets[0]["boxes"], TARGETS[0]["boxes"])
    found = [{"boxes": torch.tensor([[8.0, 4.0, 40.0, 20.0]])}]
    restored: list[dict[str, Tensor]] = transform.eval().restore(found, [(64, 80)], [(32, 160)])
    assert restored[0]["boxes"].tolist() == [[16, 2, 80, 10]]


def test_a_backbone_that_is_no_resnet_is_refused() -> None:
    with pytest.raises(ValueError, match="detection needs a ResNet backbone, not Linear"):
        build_detector(nn.Linear(3, 3), num_classes=1, neck="c4", masks=False, mean=MEAN, std=STD)
