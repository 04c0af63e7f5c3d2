import torch
from torch import nn

from mocokit.nets.encoder import Encoder
from mocokit.nets.heads import build_simclr_head, build_v3_mlp


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


def test_a_predictor_comes_after_the_head_and_before_the_norm() -> None:
    head = nn.Linear(12, 4)
    predictor = nn.Linear(4, 4)
    images = torch.randn(3, 3, 2, 2)
    got = Encoder(nn.Flatten(), head, predictor)(images)
    want = nn.functional.normalize(predictor(head(images.flatten(1))), dim=1)
    assert torch.equal(got, want)
