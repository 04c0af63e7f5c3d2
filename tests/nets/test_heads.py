import pytest
import torch
from torch import nn

from mocokit.nets.encoder import Encoder
from mocokit.nets.heads import build_fast_moco_mlps, build_simclr_head, build_v3_mlp


def _shape(head: nn.Module) -> list[tuple[str, int]]:
    return [
        (type(layer).__name__, int(getattr(layer, "out_features", getattr(layer, "num_features", 0))))
        for layer in head.children()
    ]


def test_simclr_heads_have_batchnorm_after_each_layer() -> None:
    """2048-2048-128 (v1) and 2048-2048-2048-128 (v2), without ReLU after the last layer."""
    hidden = [("Linear", 2048), ("BatchNorm1d", 2048), ("ReLU", 0)]
    last = [("Linear", 128), ("BatchNorm1d", 128)]
    assert _shape(build_simclr_head(2048, 128, num_layers=2)) == hidden + last
    assert _shape(build_simclr_head(2048, 128, num_layers=3)) == hidden + hidden + last


def test_the_last_batchnorm_of_simclr_has_a_frozen_shift_in_an_encoder_too() -> None:
    encoder = Encoder(nn.Flatten(), build_simclr_head(12, 4, num_layers=2))
    last = encoder.head.get_submodule("4")
    assert not last.bias.requires_grad
    assert last.weight.requires_grad
    assert not any(layer.bias is not None for layer in encoder.head.modules() if isinstance(layer, nn.Linear))


def test_moco_v3_projectors_and_predictors_have_the_papers_layers() -> None:
    """R50 2048-4096-256 and 256-4096-256; ViT 384-4096-4096-256.

    All end in a BatchNorm without scale and shift, except R50's predictor.
    """
    hidden = [("Linear", 4096), ("BatchNorm1d", 4096), ("ReLU", 0)]
    projector = build_v3_mlp(384, 256, width=4096, num_layers=3, ends_in_bn=True)
    assert _shape(projector) == [*hidden, *hidden, ("Linear", 256), ("BatchNorm1d", 256)]
    assert not list(projector.get_submodule("7").parameters()), "no scale and no shift"
    assert _shape(build_v3_mlp(256, 256, width=4096, num_layers=2, ends_in_bn=False)) == [*hidden, ("Linear", 256)]


def test_simclr_heads_start_from_the_official_normal_distribution() -> None:
    """google-research/simclr model_util.py: N(0, 0.01) for the weights of each linear layer."""
    torch.manual_seed(0)
    for layer in build_simclr_head(512, 128, num_layers=3).children():
        if isinstance(layer, nn.Linear):
            weight = layer.weight.detach()
            assert float(weight.std()) == pytest.approx(0.01, rel=0.02)
            assert abs(float(weight.mean())) < 2e-4


def test_fast_mocos_projector_and_predictor_have_the_official_layers() -> None:
    """orashi/Fast-MoCo fastmoco_builder.py: 2048-2048-2048-2048 that ends in a BatchNorm, and 2048-512-2048."""
    projector, predictor = build_fast_moco_mlps(2048, 2048, width=2048, predictor_width=512)
    hidden = [("Linear", 2048), ("BatchNorm1d", 2048), ("ReLU", 0)]
    assert _shape(projector) == [*hidden, *hidden, ("Linear", 2048), ("BatchNorm1d", 2048)]
    assert _shape(predictor) == [("Linear", 512), ("BatchNorm1d", 512), ("ReLU", 0), ("Linear", 2048)]
    for layer in (*projector, *predictor):
        if not isinstance(layer, nn.ReLU):
            assert layer.bias is not None and layer.bias.requires_grad


def test_heads_have_the_official_batchnorm() -> None:
    """Epsilon 1e-5 and a new batch's weight of 0.1 in all of them; TensorFlow calls the rest, 0.9, the decay."""
    heads = [
        build_simclr_head(16, 8, num_layers=3),
        build_v3_mlp(16, 8, width=12, num_layers=3, ends_in_bn=True),
        *build_fast_moco_mlps(16, 8, width=12, predictor_width=4),
    ]
    norms = [layer for head in heads for layer in head.modules() if isinstance(layer, nn.BatchNorm1d)]
    assert len(norms) == 3 + 3 + 3 + 1
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-5, 0.1)}


def test_a_predictor_comes_after_the_head_and_before_the_norm() -> None:
    head = nn.Linear(12, 4)
    predictor = nn.Linear(4, 4)
    images = torch.randn(3, 3, 2, 2)
    got = Encoder(nn.Flatten(), head, predictor)(images)
    want = nn.functional.normalize(predictor(head(images.flatten(1))), dim=1)
    assert torch.equal(got, want)
