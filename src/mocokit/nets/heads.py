"""Projection heads: feature (N, D) -> embedding (N, C)."""

from torch import nn


def build_head(feature_dim: int, dim: int, *, mlp: bool) -> nn.Module:
    """Return the linear head of MoCo v1 or the two-layer MLP head of MoCo v2 (sec. 2), with biases, without BatchNorm.

    Args:
        feature_dim: Width D of the backbone's output, also the MLP's hidden width.
        dim: Width C of the embedding (128 in the papers).
        mlp: True for the MLP head (the column "MLP" of MoCo v2's tables).

    """
    if not mlp:
        return nn.Linear(feature_dim, dim)
    return nn.Sequential(nn.Linear(feature_dim, feature_dim), nn.ReLU(inplace=True), nn.Linear(feature_dim, dim))


def build_simclr_head(feature_dim: int, dim: int, *, num_layers: int) -> nn.Module:
    """Return SimCLR's head: D-D-C (v1) or D-D-D-C (v2 sec. 2.1), BatchNorm after each layer, ReLU between them.

    The linear layers have no bias and start from N(0, 0.01). The last BatchNorm has a scale but no shift: its bias is
    frozen at 0.
    """
    head = _bn_mlp([*[feature_dim] * num_layers, dim])
    for layer in head:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)  # google-research/simclr model_util.py
    last = nn.BatchNorm1d(dim)
    last.bias.requires_grad_(False)
    return head.append(last)


def build_v3_mlp(in_dim: int, dim: int, *, width: int, num_layers: int, ends_in_bn: bool) -> nn.Module:
    """Return MoCo v3's projector or predictor: linear layers without bias, BatchNorm and ReLU between them.

    MoCo v3 sec. 3, "Encoder".

    Args:
        in_dim: Width of the input: D for a projector, C for a predictor.
        dim: Width C of the embedding (256 in the paper).
        width: Hidden width (4096 in the paper).
        num_layers: Projector: 2 for ResNets, 3 for ViTs. Predictor: 2.
        ends_in_bn: True to end in a BatchNorm without scale and shift, as all do except a ResNet's predictor.

    """
    mlp = _bn_mlp([in_dim, *[width] * (num_layers - 1), dim])
    return mlp.append(nn.BatchNorm1d(dim, affine=False)) if ends_in_bn else mlp


def build_fast_moco_mlps(
    feature_dim: int, dim: int, *, width: int, predictor_width: int
) -> tuple[nn.Sequential, nn.Sequential]:
    """Return Fast-MoCo's projector, D-W-W-C with a BatchNorm at its end, and predictor, C-P-C.

    All linear layers have biases, and every BatchNorm scale and shift (orashi/Fast-MoCo, core/utils/
    fastmoco_builder.py: W = C = 2048, P = 512).
    """
    projector = _bn_mlp([feature_dim, width, width, dim], bias=True)
    return projector.append(nn.BatchNorm1d(dim)), _bn_mlp([dim, predictor_width, dim], bias=True)


def _bn_mlp(widths: list[int], *, bias: bool = False) -> nn.Sequential:
    """Return linear layers, with BatchNorm and ReLU after each but the last."""
    layers = list[nn.Module]()
    for number in range(1, len(widths)):
        layers.append(nn.Linear(widths[number - 1], widths[number], bias=bias))
        if number < len(widths) - 1:
            layers += [nn.BatchNorm1d(widths[number]), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
