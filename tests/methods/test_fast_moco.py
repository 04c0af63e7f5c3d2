"""Fast-MoCo against its official formulas, written out slowly (orashi/Fast-MoCo@d4fef97)."""

import copy
import math
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from mocokit.methods.contract import Method, MethodInputs
from mocokit.methods.fast_moco import SPEC, FastMoCoSettings
from mocokit.nets.encoder import Encoder
from mocokit.nets.patches import CombinedPatches
from mocokit.run.verify import TraceBackbone
from tests.methods.small import (
    B,
    C,
    Noise,
    assert_any_micro_batch_gives_the_same_run,
    layout,
    passes,
    step_of,
    views,
)

T = 0.5
MODEL = {"head_width": 12, "predictor_width": 5, "head_layers": 2, "mlp": True, "predictor_bn": False}


def _fast_moco(micro: int = 0, *, groups: int = 4) -> Method[object]:
    torch.manual_seed(0)
    heads = SPEC.heads(16, dim=C, model=MODEL)
    encoder = Encoder(TraceBackbone(), *heads, patches=CombinedPatches(2, 2)).double()
    inputs = MethodInputs(
        encoder_q=encoder,
        pixels=nn.Identity(),
        layout=layout(groups, micro),
        dim=C,
        global_batch_size=B,
        num_images=100,
        total_steps=10,
        seed=0,
    )
    method: Method[object] = SPEC.build(FastMoCoSettings(temperature=T, bn_groups=groups), inputs).double()
    return method


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_any_micro_batch_gives_the_same_step(noise: Noise, micro: int) -> None:
    assert_any_micro_batch_gives_the_same_run(_fast_moco, noise, micro, num_crops=0)


def _official_loss(net: Encoder, keys_net: Encoder, views_of: tuple[Tensor, Tensor]) -> Tensor:
    """Patches of a view in one batch, means of pairs, projector, predictor; then the mean over 12 cross entropies."""
    predictions = []
    targets = []
    for view in views_of:
        half = view.shape[-1] // 2
        cuts = [view[:, :, y : y + half, x : x + half] for x in (0, half) for y in (0, half)]
        features = net.backbone(torch.cat(cuts)).chunk(4)
        pairs = torch.cat([(a + b) / 2 for a, b in combinations(features, 2)])
        predictions.append(net.predictor(net.head(pairs)).chunk(6))
        targets.append(keys_net.head(keys_net.backbone(view)).detach())
    total = torch.zeros((), dtype=torch.float64)
    for each, z in zip(predictions, reversed(targets), strict=True):
        for p in each:
            for i in range(B):
                scores = torch.stack([torch.cosine_similarity(p[i], z[j], dim=0) / T for j in range(B)])
                total = total - (scores[i] - scores.exp().sum().log()) / B
    return total / 12


def test_loss_and_gradient_are_the_official_ones(noise: Noise) -> None:
    """One BatchNorm group, as there: the mean over 12 queries, without 2T."""
    method = _fast_moco(groups=1)
    plain = copy.deepcopy(method.encoder_q)
    keys_net = copy.deepcopy(method.get_submodule("encoder_k"))
    batch = views(noise)
    loss = passes(method, batch).total
    want = _official_loss(plain, keys_net, (batch.query, batch.key))  # type: ignore[arg-type]
    assert loss == pytest.approx(want.item(), rel=1e-12)
    want.backward()
    for ours, theirs in zip(method.encoder_q.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-8, atol=1e-12)


def test_chance_is_log_b_and_the_bound_is_free_of_the_factor(noise: Noise) -> None:
    method = _fast_moco()
    rows = step_of(method, noise, 0).rows
    assert method.chance_loss == pytest.approx(math.log(B))
    assert torch.allclose(rows["mi_bound"], math.log(B) - rows["loss"], rtol=1e-9)


def test_the_keys_follow_at_a_constant_rate_and_read_whole_views(noise: Noise) -> None:
    method = _fast_moco()
    encoder_k = method.get_submodule("encoder_k")
    assert isinstance(encoder_k, Encoder) and encoder_k.patches is None
    for step in range(3):
        before = [value.detach().clone() for value in encoder_k.parameters()]
        leading = {name: value.detach().clone() for name, value in method.encoder_q.named_parameters()}
        step_of(method, noise, step)
        assert method.gauges() == {"key_momentum": 0.99}
        for (name, value), old in zip(encoder_k.named_parameters(), before, strict=True):
            assert torch.allclose(value, 0.99 * old + 0.01 * leading[name], rtol=1e-12, atol=1e-15)
