"""Fast-MoCo: MoCo v3's step with queries from combined patches (Ci et al. 2022, arXiv:2207.08220).

The key encoder reads whole views, and the queries of a view come from pairs of its 2 x 2 patches (nets/patches.py).
Numbers follow orashi/Fast-MoCo@d4fef97. Beside the patches it differs from MoCo v3 in three things:

- The loss is the mean over all 12 queries of an image, without the factor 2T: half the sum of both directions.
- m is constant.
- Projector and predictor are those of nets/heads.py::build_fast_moco_mlps.

One thing is not followed: the official key encoder starts from random weights of its own. Ours starts as a copy of the
query encoder, as the paper and MoCo do; after 500 steps at m = 0.99 either start has less than 1 % of the weight.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import nn

from mocokit.methods.contract import MethodInputs, MethodSpec, PatchSettings
from mocokit.methods.leak import warn_of_groups
from mocokit.methods.moco_v3 import MoCoV3, passes
from mocokit.nets.heads import build_fast_moco_mlps
from mocokit.settings import flag


@dataclass(frozen=True, kw_only=True)
class FastMoCoSettings(PatchSettings):
    """Fast-MoCo: MoCo v3's step, with queries from combinations of patches."""

    name: Annotated[Literal["fast-moco"], flag("--method")] = "fast-moco"
    key_momentum: float = 0.99
    """m of the key encoder's moving average."""
    patch_grid: int = 2
    """Cut a query view into this many patches a side; their combinations each make a query."""


def build(settings: FastMoCoSettings, inputs: MethodInputs) -> MoCoV3:
    """Return the method in its first state."""
    return MoCoV3(
        inputs.encoder_q,
        global_batch_size=inputs.global_batch_size,
        key_momentum=lambda step: settings.key_momentum,
        loss_scale=0.5,  # ctr(q1, k2) + ctr(q2, k1), each a mean over 6 queries: half of it is the mean over 12
        **inputs.shared(settings),
    )


def build_head(
    feature_dim: int, *, dim: int, head_width: int, predictor_width: int | None
) -> tuple[nn.Module, nn.Module]:
    """Return projector, D -> C, and predictor, C -> C."""
    return build_fast_moco_mlps(
        feature_dim, dim, width=head_width, predictor_width=head_width if predictor_width is None else predictor_width
    )


SPEC = MethodSpec(
    settings=FastMoCoSettings,
    build=build,
    build_head=build_head,
    model_settings=("head_width", "predictor_width"),
    passes=passes,
    warnings=warn_of_groups,
)
