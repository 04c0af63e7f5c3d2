"""Projection heads: feature (N, D) -> embedding (N, C)."""

from torch import nn


def build_head(feature_dim: int, dim: int, *, mlp: bool) -> nn.Module:
    """The fc head of MoCo v1, or the two-layer MLP head of MoCo v2 (MoCo v2 sec. 2; with biases, without BN).

    Args:
        feature_dim: Width D of the backbone's output, also the MLP's hidden width.
        dim: Width C of the embedding (128 in the papers).
        mlp: The paper's ablation column "MLP".

    """
    if not mlp:
        return nn.Linear(feature_dim, dim)
    return nn.Sequential(nn.Linear(feature_dim, feature_dim), nn.ReLU(inplace=True), nn.Linear(feature_dim, dim))
